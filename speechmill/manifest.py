"""The manifest: which clips there are, cut into batches that never change because others are added."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from speechmill import bucket
from speechmill.audio.decode import read_header
from speechmill.errors import ClipError, SourceError
from speechmill.files import read_json, sha256_file, write_json, write_text
from speechmill.parallel import bounded_map
from speechmill.shards import MANIFEST, write_table
from speechmill.sources import BatchPlan, Listing, Source, SourceFile

THREADS = 8
COLUMNS = ["batch", "clips", "seconds", "source_file", "fetched_as"]  # of batches.tsv
NOTES = "notes"  # .json beside the batches
CLIP_ID_DIGITS = 24  # 96 bits: a collision among 10^9 clips has a chance of about 10^-11


def clip_id(source: str, source_file: str, place: int | str | None) -> str:
    """Id of a clip: a hash of the corpus's name and the clip's place in it, whatever the revision or its bytes.

    The place is a row of a table or a member of an archive, None where a file is a clip.
    """
    place = f"{source}\0{source_file}\0{'' if place is None else place}"
    return hashlib.sha256(place.encode()).hexdigest()[:CLIP_ID_DIGITS]


def identify(row: dict[str, Any], dataset: str) -> dict[str, Any]:
    """A clip's row with its id and the corpus's name."""
    place = row.get("source_row") if row.get("source_member") is None else row["source_member"]
    return {**row, "id": clip_id(dataset, row["source_file"], place), "source": dataset}


def describe_source(source: Source, config: dict[str, Any]) -> dict[str, Any]:
    """The content of source.json: kind, revision, licence and every file with size and sha256.

    The revision of a repository is its commit, that of a local source a hash of the names and checksums of its files.
    """
    listing = source.list_files()
    digest = hashlib.sha256("".join(f"{f.path}\0{f.sha256}\n" for f in listing.files).encode()).hexdigest()
    section = config["source"]
    return {
        "dataset": config["dataset"],
        "kind": section["kind"],
        "path": section["repo"] or section["path"] or section["datacollective"],
        "revision": listing.commit or f"sha256:{digest}",
        "license": section["license"],
        "attribution": section["attribution"],
        "bytes": sum(f.size for f in listing.files),
        "metadata_sha256": source.metadata_sha256(),
        "files": [_described(file) for file in listing.files],
        "tables": [_described(file) for file in listing.tables],
        "notes": listing.notes,
    }


def _described(file: SourceFile) -> dict[str, Any]:
    return {"sha256": "", **{name: value for name, value in asdict(file).items() if value not in (None, "")}}


def listing_of(description: dict[str, Any]) -> Listing:
    """What `describe_source` described."""
    files, tables = ([SourceFile(**file) for file in description[part]] for part in ("files", "tables"))
    commit = None if description["revision"].startswith("sha256:") else description["revision"]
    return Listing(files, [], commit, tables)


def build_manifest(source: Source, description: dict[str, Any], config: dict[str, Any], directory: Path) -> list[str]:
    """Write {batch}.json, and {batch}.parquet where clips are listed, then batches.tsv; returns notes for a person.

    Files of unchanged batches are left untouched. Batches of an earlier state that are no more are removed.

    Raises:
        SourceError: the source holds no clip.
    """
    directory.mkdir(parents=True, exist_ok=True)
    listing = listing_of(description)
    identity = batch_identity(config)
    previous = _previous_plans(directory, identity)
    files = {file.path: file for file in listing.files}
    known = {
        sha: duration
        for plan in previous
        if plan.clips is not None
        for sha, duration in zip(*(plan.clips[c].to_pylist() for c in ("sha256", "header_duration")), strict=True)
        if sha is not None
    }
    index = []
    with ThreadPoolExecutor(THREADS) as pool, tqdm(desc="headers", unit="clip", mininterval=2) as progress:
        for plan in source.plan(listing, config["batch_size"], previous):
            table = None
            if plan.clips is not None:
                table = _complete(plan, source, description["dataset"], known, pool, progress)
            file = files.get(plan.source_file or "")
            read_as = {name: config["source"][name] for name in ("columns", "language", "license")}
            index.append(_write_batch(plan, table, identity, file, source.fetched, read_as, directory))
    if not index:
        raise SourceError(f"{description['path']}: holds no clip")
    index.sort(key=lambda row: row["batch"])
    keep = {NOTES, *(row["batch"] for row in index)}
    _write_changed(directory / f"{NOTES}.json", {"notes": listing.notes})
    for path in directory.iterdir():
        if path.suffix in (".json", ".parquet") and path.stem not in keep:
            path.unlink()
    write_text(directory / "batches.tsv", _tsv(index))
    return listing.notes


def with_notes(description: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The content of source.json with the notes of the manifest, which say what of the source is no clip and why."""
    found = read_json(directory / f"{NOTES}.json")["notes"] if (directory / f"{NOTES}.json").exists() else []
    return {**description, "notes": [*description["notes"], *found]}


def read_batches(batches_tsv: Path) -> list[dict[str, str]]:
    """The rows of batches.tsv."""
    with open(batches_tsv, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def batch_identity(config: dict[str, Any]) -> dict[str, Any]:
    """What batches belong to: with another one, all are cut anew. A release that comes as a new file is none."""
    section = config["source"]
    kept = {"path": section["path"]} if section["kind"] in ("folder", "parquet") else {}
    return {"kind": section["kind"], "batch_size": config["batch_size"], **kept}


def read_batch(batch_json: Path) -> tuple[dict[str, Any], pa.Table | None]:
    """One batch's description and its clip table, None where the batch is a range of its source file.

    Raises:
        SourceError: the table is not the one that the description was written with.
    """
    description = read_json(batch_json)
    if description["table_sha256"] is None:
        return description, None
    table_path = batch_json.with_suffix(".parquet")
    if not table_path.exists():
        bucket.fetch(f"manifest/{table_path.name}", table_path)
    if not table_path.is_file() or sha256_file(table_path) != description["table_sha256"]:
        raise SourceError(
            f"{table_path} is missing or was changed; delete {batch_json.parent}/batches.tsv and run again"
        )
    return description, pq.read_table(table_path)


def plan_of(description: dict[str, Any], table: pa.Table | None) -> BatchPlan:
    """What `read_batch` read, as it was planned."""
    fields = ("batch", "source_file", "first_row", "split")
    return BatchPlan(**{name: description[name] for name in fields}, clips=table, rows=description["clips"])


def _previous_plans(directory: Path, identity: dict[str, Any]) -> list[BatchPlan]:
    plans = []
    for path in sorted(directory.glob("*.json")):
        try:
            description, table = read_batch(path)
            plan = plan_of(description, table)
        except (SourceError, ValueError, KeyError, OSError, pa.ArrowException):
            continue  # torn by a crash, or of an earlier version: planned anew
        if description["identity"] == identity:
            plans.append(plan)
    return plans


def _complete(
    plan: BatchPlan,
    source: Source,
    dataset: str,
    known: dict[str, float | None],
    pool: ThreadPoolExecutor,
    progress: tqdm,
) -> pa.Table:
    """The plan's table with ids, the corpus's name and durations by header."""
    assert plan.clips is not None
    if not source.reads_headers:
        rows = [identify(row, dataset) for row in plan.clips.to_pylist()]
        return pa.Table.from_pylist(rows, schema=MANIFEST)
    rows = [identify(row, dataset) | {"header_duration": known.get(row["sha256"])} for row in plan.clips.to_pylist()]
    todo = [row for row in rows if row["sha256"] not in known]
    wanted = replace(plan, clips=pa.Table.from_pylist(todo, schema=MANIFEST))
    clips = (data for _, data in source.read(wanted, None, Counter())) if todo else ()
    for row, duration in zip(todo, bounded_map(pool, _header_duration, clips), strict=True):
        row["header_duration"] = duration
        progress.update()
    return pa.Table.from_pylist(rows, schema=MANIFEST)


def _header_duration(data: bytes | Path | ClipError) -> float | None:
    if isinstance(data, ClipError):
        return None
    try:
        return read_header(data).duration
    except ClipError:
        return None  # the enhance stage says what is wrong with it


def _write_batch(
    plan: BatchPlan,
    table: pa.Table | None,
    identity: dict[str, Any],
    file: SourceFile | None,
    fetched: bool,
    read_as: dict[str, Any],
    directory: Path,
) -> dict[str, Any]:
    table_path, json_path = directory / f"{plan.batch}.parquet", directory / f"{plan.batch}.json"
    if table is not None and not (table_path.is_file() and _same_table(table_path, table)):
        write_table(table, table_path)
    durations = [] if table is None else table["header_duration"].to_pylist()
    known = [value for value in durations if value is not None]
    description = {
        "batch": plan.batch,
        "identity": identity,
        "source_file": plan.source_file,
        "source_revision": file.digest if file else None,  # of the source file; null where each clip is a file
        "fetched_as": file.key if file and fetched else None,
        "first_row": plan.first_row,
        "read_as": read_as if table is None else None,  # in a table, these have had their effect
        "split": plan.split,
        "clips": plan.rows if table is None else table.num_rows,  # null: known once the file was read
        "seconds": round(math.fsum(known), 3) if known else None,  # as headers claim; null where nobody looked
        "table_sha256": None if table is None else sha256_file(table_path),
    }
    _write_changed(json_path, description)
    return {key: description[key] for key in COLUMNS}


def _write_changed(path: Path, value: Any) -> None:
    """Write a JSON file, unless its content is this already."""
    try:
        unchanged = read_json(path) == value
    except (OSError, ValueError):
        unchanged = False
    if not unchanged:
        write_json(path, value)


def _same_table(path: Path, table: pa.Table) -> bool:
    try:
        return pq.read_table(path).equals(table)
    except (pa.ArrowException, OSError):
        return False


def _tsv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
