"""Where clips come from: one adapter per kind, behind one interface.

An adapter lists a source's files at a pinned revision, cuts them into batches, and reads the clips of a batch with
their metadata. To add a kind, write a class with the methods of `Source` and name it in `KINDS` and in
config/schema.yaml (docs/datasets.md).
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

from speechmill import bucket
from speechmill.errors import ClipError, ConfigError
from speechmill.files import sha256_file

# kind -> (module, class): a kind's libraries are imported only where it is used.
KINDS = {
    "folder": ("folder", "FolderSource"),
    "parquet": ("parquet", "ParquetSource"),
    "hf_parquet": ("hf_parquet", "HubParquetSource"),
    "gigaspeech2": ("gigaspeech2", "GigaSpeech2Source"),
    "common_voice": ("common_voice", "CommonVoiceSource"),
    "webdataset": ("webdataset", "WebDatasetSource"),
    "lhotse_shar": ("lhotse_shar", "LhotseSharSource"),
}

GLANCE_SECONDS = 20.0  # that a look at a source may take, for an estimate
GLANCE_HEADERS = 200  # that it reads


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    path: below the source's root, with forward slashes. size: bytes. sha256 of its content, in hex; empty where the
    Hub knows `git_sha1` alone (of small files). rows: of a Parquet file. split: of its clips, where the file says it.
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
        """A name for the fetched file, [A-Za-z0-9_-]: readable, unique, and another one for another content."""
        return f"{slug(self.path)}-{hashlib.sha256(f'{self.path}|{self.digest}'.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Listing:
    """What a source holds: its files, notes for a person (what was passed over), and the commit of a repository.

    tables: files that say which clips there are. They are fetched while listing, and kept.
    """

    files: list[SourceFile]
    notes: list[str]
    commit: str | None = None
    tables: list[SourceFile] = field(default_factory=list)


@dataclass(frozen=True)
class BatchPlan:
    """One batch: its id ([A-Za-z0-9_-], at most 64), the source file it is cut from, and its clips.

    Either `clips` lists them (MANIFEST schema without `id`, `source`), or they are a range of the file's rows, known
    when it is read: from `first_row`, `rows` of them (None: all there are, not known before).
    """

    batch: str
    source_file: str | None
    clips: pa.Table | None = None
    first_row: int = 0
    rows: int | None = None
    split: str | None = None


Clip = tuple[dict[str, Any], bytes | Path | ClipError]  # a row of MANIFEST without id and source, and its audio


class Source:
    """A corpus on disk or on a hub. A kind overrides `fingerprint`, `list_files`, `plan` and `read`.

    `fetched`: its files are downloaded one by one (rule fetch) and deleted after their last batch.
    `reads_headers`: a clip's duration is read from its header while the manifest is made.
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
        """Whether this machine may read the source; nothing to check where it is on disk.

        Raises:
            SourceError: says what to do.
        """

    def pin(self, revision: str) -> None:
        """Read this revision, as `fingerprint` gave it, whatever the source has become; does nothing on disk."""

    def fingerprint(self) -> str:
        """A digest of names, sizes and times (of a repository: its commit) that changes when the source does.

        Raises:
            SourceError: it cannot be found out.
        """
        raise NotImplementedError

    def metadata_sha256(self) -> str | None:
        """Checksum of the file of metadata, where there is one."""
        return sha256_file(self.section["metadata"]) if self.section["metadata"] else None

    def list_files(self) -> Listing:
        """All files with their checksums.

        Raises:
            SourceError: the source cannot be read or holds nothing.
        """
        raise NotImplementedError

    def glance(self, longest: float) -> tuple[int, float, int] | None:
        """Clips, about how many seconds they are, and how many headers say so, within `GLANCE_SECONDS` or so.

        None: it takes longer, or this kind has no way to. Damaged clips and those of more than `longest` seconds, which
        are not decoded, count with no seconds.
        """
        return None

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        """Cut the clips into batches, in a stable order. `previous` are the batches of an earlier, smaller state.

        An unchanged part of the source gives the same batches again, whatever was added elsewhere.
        """
        raise NotImplementedError

    def fetch(self, file: SourceFile, target: Path) -> None:
        """Download a file of the pinned revision, going on with what an interrupted call left, and verify it.

        Raises:
            SourceError: it may not be read, nobody answers, or what came is not what was listed.
        """
        raise NotImplementedError

    def read(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        """The clips of a batch, each once: of a listed one its rows, though perhaps in another order.

        `file` is where the batch's source file was fetched to. What belongs to no clip is counted in `passed_over`
        by its description.
        """
        raise NotImplementedError


def open_source(config: dict[str, Any]) -> Source:
    """The adapter for the `source` section of a validated configuration."""
    section = config["source"]
    if section["kind"] not in KINDS:
        raise ConfigError(f"source.kind {section['kind']!r} is not one of {', '.join(KINDS)}")
    module, name = KINDS[section["kind"]]
    if bucket.is_url(section["path"]):
        if section["kind"] != "folder":
            raise ConfigError(
                f"source.path {section['path']}: of a bucket only folders of audio files are read, not {section['kind']}"
            )
        module, name = "bucket_folder", "BucketFolderSource"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(config)


def slug(path: str) -> str:
    """A short readable name, [A-Za-z0-9_-], of a path's last part without its suffixes."""
    stem = PurePosixPath(path).name.split(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:32].strip("-") or "file"


def batch_id(path: str, number: int) -> str:
    """A readable, safe and unique name of a batch: the file's name, a hash of its path, the number of the range."""
    return f"{slug(path)}-{hashlib.sha256(path.encode()).hexdigest()[:6]}-{number:03d}"
