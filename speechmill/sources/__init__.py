"""Where clips come from: one adapter per kind, behind one interface.

An adapter lists the source's files at a pinned revision and yields the encoded bytes of its clips. To add a
kind, write a class with the methods of `Source` and name it in `open_source` and in config/schema.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from speechmill.errors import ClipError, ConfigError


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: `path` below its root with forward slashes, `size` in bytes, `sha256` in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """What a source holds: its files, and notes for a person (ignored files, rows without a file)."""

    files: list[SourceFile]
    notes: list[str]


@dataclass(frozen=True)
class BatchPlan:
    """One batch: its id ([A-Za-z0-9_-], at most 64), the source file it is cut from, and its clip table."""

    batch: str
    source_file: str | None
    clips: pa.Table  # MANIFEST schema without `id`, `source`


class Source(Protocol):
    """A corpus on disk or on a hub."""

    def fingerprint(self) -> str:
        """A digest of names, sizes and times that changes when the source does; reads no content."""

    def list_files(self, checksums: Path) -> Listing:
        """All files with their checksums; `checksums` is a cache file that spares unchanged ones.

        Raises:
            SourceError: the source cannot be read or holds nothing.
        """

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        """Cut the clips into batches, in a stable order. `previous` are the batches of an earlier, smaller state.

        An unchanged part of the source gives the same batches again, whatever was added elsewhere.
        """

    def read(self, source_file: str | None, clips: pa.Table) -> Iterator[bytes | Path | ClipError]:
        """The encoded clips of a batch's table, in its order: bytes, a path to read, or why there is neither."""


def open_source(config: dict[str, Any]) -> Source:
    """The adapter for the `source` section of a validated configuration."""
    from speechmill.sources.folder import FolderSource
    from speechmill.sources.parquet import ParquetSource

    kinds: dict[str, Callable[[dict[str, Any]], Source]] = {"folder": FolderSource, "parquet": ParquetSource}
    section = config["source"]
    if section["kind"] not in kinds:
        raise ConfigError(f"source.kind {section['kind']!r} is not one of {', '.join(kinds)}")
    return kinds[section["kind"]](section)
