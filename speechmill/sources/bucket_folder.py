"""Source kind `folder` in an S3 bucket. Nothing is copied: a clip is read when its batch is processed."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from speechmill.errors import ClipError, SourceError
from speechmill.sources import BatchPlan, Clip, Listing, SourceFile
from speechmill.sources.folder import SUFFIXES, FolderSource
from speechmill.storage import s3
from speechmill.utils.threads import bounded_map


class BucketFolderSource(FolderSource):
    """A clip per object with an audio suffix below `source.path` (s3://bucket/prefix)."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.url: str = self.section["path"].rstrip("/")

    def _objects(self) -> list[s3.Stored]:
        return [found for found in s3.objects(self.url) if not _hidden_part(found.path)]

    def check_access(self) -> None:
        if not any(True for _ in s3.objects(self.url)):
            raise SourceError(f"{self.url}: no object found; check the bucket and prefix in source.path")

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for found in self._objects():
            digest.update(f"{found.path}\0{found.size}\0{found.tag}\n".encode())
        if self.section["metadata"]:
            digest.update((self.metadata_sha256() or "").encode())
        return digest.hexdigest()

    def metadata_sha256(self) -> str | None:
        name = self.section["metadata"]
        return hashlib.sha256(s3.read(name)).hexdigest() if s3.is_url(name) else super().metadata_sha256()

    def quick_look(self, longest: float) -> tuple[int, float, int] | None:
        return None

    def list_files(self) -> Listing:
        everything = list(s3.objects(self.url))
        hidden = {path for one in everything if (path := _hidden_part(one.path))}
        found = [one for one in everything if not _hidden_part(one.path)]
        clips = [one for one in found if PurePosixPath(one.path).suffix.lower() in SUFFIXES]
        if not clips:
            raise SourceError(f"{self.url}: no audio file found (looked for {', '.join(sorted(SUFFIXES))})")

        def with_checksum(one: s3.Stored) -> SourceFile:
            data = s3.read(self.url, one.path)
            return SourceFile(one.path, len(data), hashlib.sha256(data).hexdigest())

        with ThreadPoolExecutor(s3.THREADS) as pool:
            files = list(
                tqdm(
                    bounded_map(pool, with_checksum, clips),
                    total=len(clips),
                    desc="checksums",
                    unit="file",
                    mininterval=2,
                )
            )
        others = Counter(PurePosixPath(one.path).suffix.lower() or "no suffix" for one in found)
        notes = [f"{n} files passed over: {suffix}" for suffix, n in sorted(others.items()) if suffix not in SUFFIXES]
        notes += [f"{len(hidden)} hidden files and folders"] if hidden else []
        return Listing(files, notes)

    def _rows(self, listing: Listing) -> dict[str, dict[str, Any]]:
        name = self.section["metadata"]
        if not s3.is_url(name):
            return super()._rows(listing)
        with tempfile.TemporaryDirectory() as folder:
            self.metadata = Path(folder) / PurePosixPath(name).name
            self.metadata.write_bytes(s3.read(name))
            return super()._rows(listing)

    def clips(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.clips is not None

        def load(row: dict[str, Any]) -> Clip:
            if row["size"] > self.max_bytes:
                return row, ClipError("too_large", f"{row['size']} bytes; enhance.max_bytes allows {self.max_bytes}")
            data = s3.read(self.url, row["source_file"])
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                return row, ClipError("changed", "the file was changed after it was listed; run again to list it again")
            return row, data

        with ThreadPoolExecutor(s3.THREADS) as pool:
            yield from bounded_map(pool, load, plan.clips.to_pylist(), s3.THREADS)


def _hidden_part(path: str) -> str | None:
    """The path of the hidden file or folder that an object is or is in, if there is one."""
    parts = path.split("/")
    first = next((number for number, part in enumerate(parts, 1) if part.startswith(".")), None)
    return "/".join(parts[:first]) if first else None
