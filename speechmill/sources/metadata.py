"""Metadata beside a folder of audio: TSV, CSV or JSONL, one row per file, joined by path."""

from __future__ import annotations

import csv
import json
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechmill.config import nearest
from speechmill.errors import SourceError


def normalize_path(path: str) -> str:
    """The form in which paths are compared: NFC, forward slashes, no leading `./`."""
    return unicodedata.normalize("NFC", path.replace("\\", "/")).removeprefix("./")


def read_metadata(file: Path, key: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Rows by normalised path, without the key column, and notes about rows that were not usable.

    TSV is read without quoting, as Common Voice writes it; CSV with it. The first row of a path wins.

    Raises:
        SourceError: the file is not UTF-8 text of a known kind, or has no column `key`.
    """
    rows: dict[str, dict[str, Any]] = {}
    bad: list[str] = []
    repeated = 0
    try:
        for line, row in table_rows(file, key):
            path = row.pop(key, None)
            if not isinstance(path, str) or not path:
                bad.append(f"line {line}")
                continue
            path = normalize_path(path)
            if path in rows:
                repeated += 1
            else:
                rows[path] = row
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: not UTF-8 text (byte {error.start}); convert it, for example with iconv") from error
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror}") from error
    notes = []
    if bad:
        notes.append(
            f"{file}: {len(bad)} unusable rows were skipped ({', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''})"
        )
    if repeated:
        notes.append(f"{file}: {repeated} rows repeat a path; the first row of a path counts")
    return rows, notes


def table_rows(file: Path, key: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and row of a TSV, CSV or JSONL file; an unusable row is empty.

    Raises:
        SourceError: it is of another kind, or has no column `key`.
    """
    suffix = file.suffix.lower()
    with open(file, encoding="utf-8-sig", newline="") as handle:
        if suffix in (".jsonl", ".ndjson"):
            for line, text in enumerate(handle, 1):
                if text.strip():
                    try:
                        row = json.loads(text)
                    except json.JSONDecodeError:
                        row = {}
                    yield line, row if isinstance(row, dict) else {}
        elif suffix in (".tsv", ".csv"):
            csv.field_size_limit(min(sys.maxsize, 1 << 26))
            options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
            reader = csv.DictReader(handle, **options)
            names = reader.fieldnames or []
            if key is not None and key not in names:
                raise SourceError(f"{file}: no column {key!r}; {nearest(key, names)} Set source.metadata_key.")
            for row in reader:
                # More cells than the header has end up under None: the columns cannot be told apart.
                yield reader.line_num, {} if None in row else dict(row)
        else:
            raise SourceError(f"{file}: metadata must be .tsv, .csv, .jsonl or .ndjson")
