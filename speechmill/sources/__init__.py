"""Sources: where clips come from, one adapter per kind; knows no metric, ranking or publish target.

An adapter lists the files of a source at a pinned revision, cuts them into batches, and reads the clips of a batch
with their metadata. To add a kind, write a class with the methods of `Source`. Name it in `KINDS` and in
config/schema.yaml (CONTRIBUTING.md).
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from speechmill.errors import ConfigError
from speechmill.sources.boundary import Clip, read_file
from speechmill.storage import s3
from speechmill.storage.files import sha256_file

# kind -> (module, class). The module is imported only where the kind is used, because it may need extra libraries.
KINDS = {
    "folder": ("folder", "FolderSource"),
    "parquet": ("parquet", "ParquetSource"),
    "hf_parquet": ("hf_parquet", "HubParquetSource"),
    "gigaspeech2": ("gigaspeech2", "GigaSpeech2Source"),
    "common_voice": ("common_voice", "CommonVoiceSource"),
    "webdataset": ("webdataset", "WebDatasetSource"),
    "lhotse_shar": ("lhotse_shar", "LhotseSharSource"),
}

__all__ = ["BatchPlan", "Clip", "Listing", "Source", "SourceFile", "batch_id", "open_source", "slug"]

QUICK_LOOK_SECONDS = 20.0  # time limit of `Source.quick_look`
QUICK_LOOK_HEADERS = 200  # audio headers that it reads at most


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: relative to the root of the source, with forward slashes.
        size: in bytes.
        sha256: of the content, in hex. Empty for small files of the Hub, which have only `git_sha1`.
        git_sha1: the hash that git gives to the content (blob id), in hex.
        rows: number of rows, for Parquet files.
        split: split of the clips, if the name of the file or the repository says it.
    """

    path: str
    size: int
    sha256: str
    git_sha1: str = ""
    rows: int | None = None
    split: str | None = None

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256}" if self.sha256 else f"git-sha1:{self.git_sha1}"

    @property
    def key(self) -> str:
        """Name of the fetched file, [A-Za-z0-9_-]: readable, unique, and different if the content changes."""
        return f"{slug(self.path)}-{hashlib.sha256(f'{self.path}|{self.digest}'.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Listing:
    """The content of a source.

    Attributes:
        files: files with audio.
        notes: messages for the user, such as which files were skipped.
        commit: of a repository.
        tables: files that list the clips. They are fetched while listing, and kept.
    """

    files: list[SourceFile]
    notes: list[str]
    commit: str | None = None
    tables: list[SourceFile] = field(default_factory=list)


@dataclass(frozen=True)
class BatchPlan:
    """One batch: its id ([A-Za-z0-9_-], at most 64 characters), the source file that it is cut from, and its clips.

    Either `clips` lists the clips (MANIFEST schema without `id` and `source`). Or the clips are a range of rows of the
    source file, and become known when the file is read: `rows` rows from `first_row`. If `rows` is None, the clips
    are all that the file contains, and their number is not known in advance.
    """

    batch: str
    source_file: str | None
    clips: pa.Table | None = None
    first_row: int = 0
    rows: int | None = None
    split: str | None = None


class Source:
    """A corpus on disk or on a hub. A kind overrides `fingerprint`, `list_files`, `plan` and `clips`.

    Attributes:
        fetched: the files are downloaded one by one (rule fetch) and deleted after their last batch.
        reads_headers: the duration of a clip is read from its header while the manifest is made.
    """

    fetched = False
    reads_headers = False

    def __init__(self, config: dict[str, Any]):
        self.section: dict[str, Any] = config["source"]
        self.max_bytes: int = config["enhance"]["max_bytes"]  # of an encoded clip
        self.patience_minutes: float = config["download"]["patience_minutes"]
        # The folder of the run, for caches (.checksums.parquet) and fetched tables (tables/).
        self.work = Path(config["outdir"]) / config["dataset"]

    def check_access(self) -> None:
        """Check that this machine may read the source. For a source on disk, there is nothing to check.

        Raises:
            SourceError: the source cannot be accessed; the message says what to do.
        """

    def pin(self, revision: str) -> None:
        """Read this revision, as returned by `fingerprint`, even if the source has changed. No effect on disk."""

    def fingerprint(self) -> str:
        """A value that changes when the source changes: a digest of names, sizes and times, or a commit.

        Raises:
            SourceError: the files cannot be listed, or the repository does not answer.
        """
        raise NotImplementedError

    def metadata_sha256(self) -> str | None:
        """SHA-256 of the metadata file in hex; None without a metadata file."""
        return sha256_file(self.section["metadata"]) if self.section["metadata"] else None

    def list_files(self) -> Listing:
        """All files with their checksums.

        Raises:
            SourceError: the source cannot be read or is empty.
        """
        raise NotImplementedError

    def quick_look(self, longest: float) -> tuple[int, float, int] | None:
        """Estimate the size of the source from a few audio headers, within about `QUICK_LOOK_SECONDS`.

        Args:
            longest: seconds above which a clip is not decoded. Longer clips and damaged ones count as 0 seconds.

        Returns:
            Number of clips, estimated total seconds, number of headers read. None if it takes too long, or if this
            kind of source has no quick way.
        """
        return None

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        """Cut the clips into batches, in a stable order.

        An unchanged part of the source gives the same batches again, even if files were added elsewhere.

        Args:
            listing: from `list_files`. Notes for the user are appended to it.
            batch_size: clips per batch.
            previous: batches of the last manifest.
        """
        raise NotImplementedError

    def fetch(self, file: SourceFile, target: Path) -> None:
        """Download a file of the pinned revision and verify it. An interrupted download is resumed.

        Raises:
            SourceError: access is denied, the server does not answer, or the content differs from the listing.
        """
        raise NotImplementedError

    def clips(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        """Yield every clip of a batch once. If the batch lists its clips, they may come in another order.

        What a row contains is read in `boundary.read_row`, so that an exception becomes the row's error.

        Args:
            plan: the batch.
            file: the fetched source file of the batch; None for a source on disk.
            passed_over: receives the number of skipped items (which belong to no clip), by description.
        """
        raise NotImplementedError

    def read(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        """Yield the `clips` of a batch. A row with a value that cannot be stored comes with a ClipError.

        Raises:
            SourceError: the file of the batch cannot be read, or all of its rows fail alike.
        """
        return read_file(plan.source_file or plan.batch, self.clips(plan, file, passed_over))


def open_source(config: dict[str, Any]) -> Source:
    """The adapter for the `source` section of a validated configuration.

    Raises:
        ConfigError: the kind is unknown, or cannot be read from a bucket.
    """
    section = config["source"]
    if section["kind"] not in KINDS:
        raise ConfigError(f"source.kind {section['kind']!r} is not one of {', '.join(KINDS)}")
    module, name = KINDS[section["kind"]]
    if s3.is_url(section["path"]):
        if section["kind"] != "folder":
            raise ConfigError(
                f"source.path {section['path']}: source.kind {section['kind']} cannot be read from a bucket; "
                "copy the source to a disk, or set source.kind folder"
            )
        module, name = "bucket_folder", "BucketFolderSource"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(config)


def slug(path: str) -> str:
    """A short readable name, [A-Za-z0-9_-], at most 32 characters, from a file name without its suffixes."""
    stem = PurePosixPath(path).name.split(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:32].strip("-") or "file"


def batch_id(path: str, number: int) -> str:
    """Id of a batch, [A-Za-z0-9_-]: name of the source file, hash of its path, number of the range in the file."""
    return f"{slug(path)}-{hashlib.sha256(path.encode()).hexdigest()[:6]}-{number:03d}"
