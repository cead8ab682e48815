"""`ranking/ranked.tsv`: the index of the ranking tables of a run, written after all of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from speechmill.storage.files import write_text
from speechmill.storage.run_folder import run_folder

INDEX = "ranked.tsv"


@dataclass(frozen=True)
class Ranked:
    """A row of the index.

    Attributes:
        batch: id of the batch.
        clips: rows of its ranking table.
        accepted: accepted clips.
        sha256: of the file, in hex.
        bytes: size of the file.
    """

    batch: str
    clips: int
    accepted: int
    sha256: str
    bytes: int


def write_index(rows: Iterable[Ranked], path: Path) -> None:
    """Write an index."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Ranked)], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_index(text: str) -> list[Ranked]:
    """Parse the content of an index.

    Raises:
        ValueError: it is not an index.
    """

    def row(line: dict[str, Any]) -> Ranked:
        try:
            numbers = {name: int(line[name]) for name in ("clips", "accepted", "bytes")}
            return Ranked(batch=line["batch"], sha256=line["sha256"], **numbers)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a row of {INDEX}: {line}") from error

    return [row(line) for line in csv.DictReader(io.StringIO(text), delimiter="\t")]


def ranking_files(index: Path) -> dict[str, Path]:
    """Return batch -> ranking table, in the order of the index. From a bucket, the tables are copied beside it first."""
    run_folder().fetch_all(index.parent, is_table)
    rows = read_index(index.read_text(encoding="utf-8"))
    return {row.batch: index.with_name(f"{row.batch}.parquet") for row in rows}


def damaged_tables(folder: Path) -> list[str]:
    """Return the batches whose ranking table is missing, or was changed since the index was written.

    Empty without an index: then all batches are ranked in any case.

    Args:
        folder: `ranking/` of the run.
    """
    found = run_folder().states(folder)
    if INDEX not in found:
        return []
    _, written = found[INDEX]
    try:
        rows = read_index(run_folder().read_text(folder / INDEX))
    except ValueError:
        return [INDEX]

    def is_intact(row: Ranked) -> bool:
        size, changed = found.get(f"{row.batch}.parquet", (-1, 0))
        return size == row.bytes and changed <= written

    return [row.batch for row in rows if not is_intact(row)]


def is_table(name: str) -> bool:
    """Return whether a file of `ranking/` is the table of a batch, and not a temporary file."""
    return name.endswith(".parquet") and not name.startswith(".")
