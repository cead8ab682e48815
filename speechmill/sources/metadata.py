"""Metadata files of a folder of audio: TSV, CSV or JSONL, one row per audio file, joined by path."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from speechmill.errors import SourceError
from speechmill.sources.text_files import UTF8, table_rows
from speechmill.utils.text import plain

EXAMPLES = 3  # of each side, if metadata and files do not match
REASONS = 5  # of rows that are skipped


def normalize_path(path: str) -> str:
    """The form in which paths are compared: NFC, forward slashes, no leading `./`."""
    return unicodedata.normalize("NFC", path.replace("\\", "/")).removeprefix("./")


@dataclass
class Metadata:
    """The rows of a metadata file.

    Attributes:
        rows: normalised path -> row without the key column.
        lines: normalised path -> line.
        skipped: why rows are not used, with their lines.
        repeated: number of rows that repeat a path.
    """

    file: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    repeated: int = 0

    def skip(self, line: int, problem: str) -> None:
        """Do not use a row."""
        self.skipped.append(f"line {line}: {problem}")

    def notes(self) -> list[str]:
        """What the user should know: rows that are not used."""
        notes = []
        if self.skipped:
            some = "; ".join(plain(text, 200) for text in self.skipped[:REASONS])
            more = "; ..." if len(self.skipped) > REASONS else ""
            notes.append(f"{self.file}: {len(self.skipped)} unusable rows were skipped ({some}{more})")
        if self.repeated:
            notes.append(f"{self.file}: {self.repeated} rows repeat a path; the first row of a path counts")
        return notes


def read_metadata(file: Path, key: str, encodings: Sequence[str] = UTF8) -> Metadata:
    """Read a metadata file. If a path is repeated, its first row counts.

    Args:
        file: .tsv, .csv, .jsonl or .ndjson.
        key: the column with the path of the audio file.
        encodings: tried in this order.

    Raises:
        SourceError: the file has another format, cannot be read, or has no column `key`.
    """
    found = Metadata(file)
    try:
        for row in table_rows(file, encodings, key):
            path = row.cells.pop(key, None)
            if row.problem or not isinstance(path, str) or not path:
                found.skip(row.line, row.problem or f"it has no {key}")
                continue
            path = normalize_path(path)
            if path in found.rows:
                found.repeated += 1
            else:
                found.rows[path], found.lines[path] = row.cells, row.line
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from error
    return found


def check_match(metadata: Metadata, paths: Collection[str], least: float) -> None:
    """Check that rows of the metadata name files.

    Args:
        metadata: the rows.
        paths: normalised paths of the files.
        least: share of the usable rows that has to name a file (`source.metadata_match`); 0 accepts any.

    Raises:
        SourceError: too few do. The message has examples of both sides and the likely cause.
    """
    rows = list(metadata.rows)
    matched = sum(path in paths for path in rows)
    if matched >= least * len(rows) and (rows or not least):
        return
    unmatched = [path for path in rows if path not in paths]
    described = sorted(path for path in paths if path not in metadata.rows)
    raise SourceError(
        f"{metadata.file}: {matched} of {len(rows)} rows name a file below source.path; source.metadata_match asks for "
        f"{least:g} of them. Rows: {_examples(unmatched)}. Files: {_examples(described)}. "
        f"{_cause(unmatched, set(paths)) if rows else 'No row is usable. ' + '; '.join(metadata.notes())} "
        "If this is as it should be, set source.metadata_match: 0"
    )


def _examples(paths: list[str]) -> str:
    return ", ".join(repr(plain(path, 120)) for path in paths[:EXAMPLES]) or "none"


def _cause(rows: list[str], paths: set[str]) -> str:
    """The likely cause that rows name no file."""
    some = rows[:1000]
    absolute = sum(path.startswith("/") or path[1:3] == ":/" for path in some)
    if absolute * 2 > len(some):
        return "The rows have absolute paths: write them relative to source.path."
    stems = {str(PurePosixPath(path).with_suffix("")) for path in paths}
    if sum(path in stems or _stem(path) in stems for path in some) * 2 > len(some):
        return "The suffix differs: write the paths with the suffix of the files."
    names = {PurePosixPath(path).name for path in paths}
    if sum(PurePosixPath(path).name in names for path in some) * 2 > len(some):
        return "The folder differs: the files have the same names in another folder; correct the paths or source.path."
    names = {_stem(name) for name in names}
    if sum(_stem(PurePosixPath(path).name) in names for path in some) * 2 > len(some):
        return "Folder and suffix differ: write the paths as the files have them."
    return "Check source.path, source.metadata and source.metadata_key."


def _stem(path: str) -> str:
    suffix = PurePosixPath(path).suffix
    return path[: len(path) - len(suffix)] if suffix else path
