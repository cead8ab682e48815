"""The manifest: all clips of a source, cut into batches that do not change when clips are added."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from speechmill.audio.decode import read_header
from speechmill.errors import ClipError, SourceError
from speechmill.sources import BatchPlan, Listing, Source, SourceFile
from speechmill.sources.boundary import is_machine_error
from speechmill.storage.files import read_json, sha256_file, write_json, write_text
from speechmill.storage.run_folder import run_folder
from speechmill.tables.batches import CLIP_ID_DIGITS
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import MANIFEST
from speechmill.utils.threads import bounded_map

THREADS = 8
COLUMNS = ["batch", "clips", "seconds", "source_file", "fetched_as"]  # of batches.tsv
NOTES = "notes"  # notes.json is in the folder of the batches


def clip_id(source: str, source_file: str, place: int | str | None) -> str:
    """Id of a clip: a hash of its location, independent of the revision and the audio.

    Args:
        source: name of the corpus (the setting `dataset`).
        source_file: path of the source file.
        place: row of a table or member of an archive; None if the file is the clip.

    Returns:
        Hex digits.
    """
    place = f"{source}\0{source_file}\0{'' if place is None else place}"
    return hashlib.sha256(place.encode()).hexdigest()[:CLIP_ID_DIGITS]


def identify(row: dict[str, Any], dataset: str) -> dict[str, Any]:
    """The row of a clip with `id`, and the name of the corpus as `source`."""
    place = row.get("source_row") if row.get("source_member") is None else row["source_member"]
    return {**row, "id": clip_id(dataset, row["source_file"], place), "source": dataset}


def describe_source(source: Source, config: dict[str, Any]) -> dict[str, Any]:
    """The content of source.json: kind, revision, licence and every file with size and sha256.

    The revision of a repository is its commit. The revision of a local source is a hash of the paths and checksums of
    its files.

    Raises:
        SourceError: the source cannot be read or is empty.
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
    """The listing, from the content of source.json."""
    files, tables = ([SourceFile(**file) for file in description[part]] for part in ("files", "tables"))
    commit = None if description["revision"].startswith("sha256:") else description["revision"]
    return Listing(files, [], commit, tables)


def build_manifest(source: Source, description: dict[str, Any], config: dict[str, Any], directory: Path) -> list[str]:
    """Write the manifest to `directory`: {batch}.json, {batch}.parquet if clips are listed, and last batches.tsv.

    Files of unchanged batches are not touched. Batches that no longer exist are removed.

    Args:
        source: the adapter.
        description: the content of source.json.
        config: the configuration.
        directory: manifest/ of the run.

    Returns:
        Notes for the user.

    Raises:
        SourceError: the source contains no clip.
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
    read_as = _read_as(config["source"])
    with ThreadPoolExecutor(THREADS) as pool, tqdm(desc="headers", unit="clip", mininterval=2) as progress:
        for plan in source.plan(listing, config["batch_size"], previous):
            table = None
            if plan.clips is not None:
                table = _complete(plan, source, description["dataset"], known, pool, progress)
            file = files.get(plan.source_file or "")
            index.append(_write_batch(plan, table, identity, file, source.fetched, read_as, directory))
    if not index:
        raise SourceError(f"{description['path']}: no clip found; check the section source of the configuration")
    index.sort(key=lambda row: row["batch"])
    keep = {NOTES, *(row["batch"] for row in index)}
    _write_changed(directory / f"{NOTES}.json", {"notes": listing.notes})
    for path in directory.iterdir():
        if path.suffix in (".json", ".parquet") and path.stem not in keep:
            path.unlink()
    write_text(directory / "batches.tsv", _tsv(index))
    return listing.notes


def with_notes(description: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The content of source.json, with the notes of the manifest: what in the source is not a clip, and why."""
    found = read_json(directory / f"{NOTES}.json")["notes"] if (directory / f"{NOTES}.json").exists() else []
    return {**description, "notes": [*description["notes"], *found]}


READ_AS = ("columns", "language", "license")  # settings that rows depend on, if they are read by the enhance job
READ_AS_IF_SET = {"encodings": ["utf-8"], "sample_key": "stem", "supervisions": "split", "audio_folder": None}


def _read_as(section: dict[str, Any]) -> dict[str, Any]:
    """The settings that the rows of a batch depend on; those with their default value are left out, if they are newer."""
    newer = {name: section[name] for name, default in READ_AS_IF_SET.items() if section[name] != default}
    return {**{name: section[name] for name in READ_AS}, **newer}


def batch_identity(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that batches depend on. If they change, all batches are cut again."""
    section = config["source"]
    # Not the path of an archive: a new release is a new file, and its clips keep their batches.
    kept = {"path": section["path"]} if section["kind"] in ("folder", "parquet") else {}
    return {"kind": section["kind"], "batch_size": config["batch_size"], **kept}


def read_batch(batch_json: Path, columns: list[str] | None = None) -> tuple[dict[str, Any], pa.Table | None]:
    """The description of a batch, and its table of clips (None if the batch is a range of rows of its source file).

    `columns` are those to read of the table; None reads all.

    Raises:
        SourceError: the table is missing, or does not belong to the description.
    """
    description = read_json(batch_json)
    if description["table_sha256"] is None:
        return description, None
    table_path = batch_json.with_suffix(".parquet")
    if not table_path.exists():
        run_folder().fetch(f"manifest/{table_path.name}", table_path)
    if not table_path.is_file() or sha256_file(table_path) != description["table_sha256"]:
        raise SourceError(
            f"{table_path} is missing or was changed; delete {batch_json.parent}/batches.tsv and run again"
        )
    return description, pq.read_table(table_path, columns=columns)


def clips_reader(directory: Path) -> Callable[[str], tuple[int | None, pa.ChunkedArray | None]]:
    """Return a function that gives, for a batch, its number of clips and their ids; None if they are not known.

    Args:
        directory: manifest/ of the run. In a bucket its files are copied there first.
    """
    run_folder().fetch_all(directory, lambda name: name != "batches.tsv")

    def read(batch: str) -> tuple[int | None, pa.ChunkedArray | None]:
        description, clips = read_batch(directory / f"{batch}.json", ["id"])
        return description["clips"], None if clips is None else clips["id"]

    return read


def plan_of(description: dict[str, Any], table: pa.Table | None) -> BatchPlan:
    """The plan of a batch, from the result of `read_batch`."""
    fields = ("batch", "source_file", "first_row", "split")
    return BatchPlan(**{name: description[name] for name in fields}, clips=table, rows=description["clips"])


def _previous_plans(directory: Path, identity: dict[str, Any]) -> list[BatchPlan]:
    plans = []
    for path in sorted(directory.glob("*.json")):
        try:
            description, table = read_batch(path)
            plan = plan_of(description, table)
        except (SourceError, ValueError, KeyError, OSError, pa.ArrowException):
            continue  # damaged by a crash, or of an earlier version: planned again
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
    """The table of a plan with ids, the name of the corpus, and durations from headers (`known`: sha256 -> seconds)."""
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
    except Exception as error:
        if is_machine_error(error):
            raise
        return None  # the enhance stage reports the error


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
        "source_revision": file.digest if file else None,  # of the source file; null if each clip is a file
        "fetched_as": file.key if file and fetched else None,
        "first_row": plan.first_row,
        "read_as": read_as if table is None else None,  # already applied to a table
        "split": plan.split,
        "clips": plan.rows if table is None else table.num_rows,  # null if it is not known before the file is read
        "seconds": round(math.fsum(known), 3) if known else None,  # from headers; null if none was read
        "table_sha256": None if table is None else sha256_file(table_path),
    }
    _write_changed(json_path, description)
    return {key: description[key] for key in COLUMNS}


def _write_changed(path: Path, value: Any) -> None:
    """Write a JSON file, unless it has this content already."""
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
