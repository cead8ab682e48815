"""A folder of audio files in an S3 bucket. Nothing is copied: each clip is read when its batch is."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from speechmill import bucket
from speechmill.errors import ClipError, SourceError
from speechmill.parallel import bounded_map
from speechmill.sources import BatchPlan, Clip, Listing, SourceFile
from speechmill.sources.folder import SUFFIXES, FolderSource


class BucketFolderSource(FolderSource):
    """Every object with an audio suffix below `path`, s3://bucket/prefix, is a clip."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.url: str = self.section["path"].rstrip("/")

    def _objects(self) -> list[bucket.Stored]:
        return [found for found in bucket.objects(self.url) if not _is_hidden(found.path)]

    def check_access(self) -> None:
        if not any(True for _ in bucket.objects(self.url)):
            raise SourceError(f"{self.url}: nothing is there")

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for found in self._objects():
            digest.update(f"{found.path}\0{found.size}\0{found.tag}\n".encode())
        if self.section["metadata"]:
            digest.update((self.metadata_sha256() or "").encode())
        return digest.hexdigest()

    def metadata_sha256(self) -> str | None:
        name = self.section["metadata"]
        return hashlib.sha256(bucket.read(name)).hexdigest() if bucket.is_url(name) else super().metadata_sha256()

    def glance(self, longest: float) -> tuple[int, float, int] | None:
        return None

    def list_files(self) -> Listing:
        found = self._objects()
        clips = [one for one in found if PurePosixPath(one.path).suffix.lower() in SUFFIXES]
        if not clips:
            raise SourceError(f"{self.url}: no audio file found (looked for {', '.join(sorted(SUFFIXES))})")

        def described(one: bucket.Stored) -> SourceFile:
            data = bucket.read(self.url, one.path)
            return SourceFile(one.path, len(data), hashlib.sha256(data).hexdigest())

        with ThreadPoolExecutor(bucket.THREADS) as pool:
            files = list(
                tqdm(
                    bounded_map(pool, described, clips), total=len(clips), desc="checksums", unit="file", mininterval=2
                )
            )
        others = Counter(PurePosixPath(one.path).suffix.lower() or "no suffix" for one in found)
        notes = [f"{n} files passed over: {suffix}" for suffix, n in sorted(others.items()) if suffix not in SUFFIXES]
        return Listing(files, notes)

    def _rows(self, listing: Listing) -> dict[str, dict[str, Any]]:
        name = self.section["metadata"]
        if not bucket.is_url(name):
            return super()._rows(listing)
        with tempfile.TemporaryDirectory() as folder:
            self.metadata = Path(folder) / PurePosixPath(name).name
            self.metadata.write_bytes(bucket.read(name))
            return super()._rows(listing)

    def read(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.clips is not None

        def loaded(row: dict[str, Any]) -> Clip:
            if row["size"] > self.max_bytes:
                return row, ClipError("too_large", f"{row['size']} bytes; enhance.max_bytes allows {self.max_bytes}")
            data = bucket.read(self.url, row["source_file"])
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                return row, ClipError("changed", "the file was changed after it was listed; run again to list it anew")
            return row, data

        with ThreadPoolExecutor(bucket.THREADS) as pool:
            yield from bounded_map(pool, loaded, plan.clips.to_pylist(), bucket.THREADS)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
