"""SHA-256 of many files: computed in threads, and cached by path, size and modification time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from speechmill.errors import SourceError
from speechmill.sources import SourceFile
from speechmill.storage.files import sha256_file
from speechmill.tables.parquet_io import write_table

THREADS = 8
CACHE = ".checksums.parquet"  # in the run's folder


def checksum_files(root: Path, paths: list[str], cache: Path) -> list[SourceFile]:
    """Size and SHA-256 of every file, in the order of `paths` (relative to `root`). `cache` is read and rewritten.

    Raises:
        SourceError: files cannot be read; the message names the first ten.
    """
    known: dict[str, tuple[int, int, str]] = {}
    if cache.is_file():
        try:
            table = pq.read_table(cache).to_pydict()
            rows = zip(table["path"], table["size"], table["mtime_ns"], table["sha256"], strict=True)
            known = {path: (size, mtime, sha256) for path, size, mtime, sha256 in rows}
        except (pa.ArrowException, KeyError, OSError):
            known = {}  # a damaged cache only costs time

    def one(path: str) -> tuple[str, int, int, str] | OSError:
        try:
            stat = (root / path).stat()
            size, mtime, sha256 = known.get(path, (-1, -1, ""))
            if (size, mtime) != (stat.st_size, stat.st_mtime_ns):
                sha256 = sha256_file(root / path)
            return path, stat.st_size, stat.st_mtime_ns, sha256
        except OSError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(tqdm(pool.map(one, paths), total=len(paths), desc="checksums", unit="file", mininterval=2))
    failed = [f"{error.filename}: {error.strerror}" for error in results if isinstance(error, OSError)]
    if failed:
        more = f"\n  ... and {len(failed) - 10} more" if len(failed) > 10 else ""
        raise SourceError("source files cannot be read:\n  " + "\n  ".join(failed[:10]) + more)
    done = [result for result in results if not isinstance(result, OSError)]
    columns = list(zip(*done, strict=True)) or [(), (), (), ()]
    names = ("path", "size", "mtime_ns", "sha256")
    types = (pa.string(), pa.int64(), pa.int64(), pa.string())
    write_table(pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)}), cache)
    return [SourceFile(path, size, sha256) for path, size, _, sha256 in done]
