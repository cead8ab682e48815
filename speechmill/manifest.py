"""The manifest: which clips there are, cut into batches that never change because others are added."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from speechmill.audio.decode import read_header
from speechmill.errors import ClipError, SourceError
from speechmill.files import read_json, sha256_file, write_json, write_text
from speechmill.parallel import bounded_map
from speechmill.shards import MANIFEST, write_table
from speechmill.sources import BatchPlan, Listing, Source, SourceFile

THREADS = 8
CLIP_ID_DIGITS = 24  # 96 bits: a collision among 10^9 clips has a chance of about 10^-11


def clip_id(source: str, source_file: str, source_row: int | None) -> str:
    """Id of a clip: a hash of the corpus's name and the clip's place in it, whatever the revision or its bytes."""
    place = f"{source}\0{source_file}\0{'' if source_row is None else source_row}"
    return hashlib.sha256(place.encode()).hexdigest()[:CLIP_ID_DIGITS]


def describe_source(source: Source, config: dict[str, Any], checksums: Path) -> dict[str, Any]:
    """The content of source.json: kind, revision, licence and every file with size and sha256.

    The revision of a local source is a hash of the names and checksums of its files.
    """
    listing = source.list_files(checksums)
    files = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in listing.files]
    digest = hashlib.sha256("".join(f"{f.path}\0{f.sha256}\n" for f in listing.files).encode()).hexdigest()
    section = config["source"]
    return {
        "dataset": config["dataset"],
        "kind": section["kind"],
        "path": section["path"],
        "revision": f"sha256:{digest}",
        "license": section["license"],
        "attribution": section["attribution"],
        "bytes": sum(f.size for f in listing.files),
        "metadata_sha256": sha256_file(section["metadata"]) if section["metadata"] else None,
        "files": files,
        "notes": listing.notes,
    }


def build_manifest(source: Source, description: dict[str, Any], config: dict[str, Any], directory: Path) -> list[str]:
    """Write {batch}.json and {batch}.parquet for every batch, then batches.tsv; returns notes for a person.

    Files of unchanged batches are left untouched. Batches of an earlier state that are no more are removed.

    Raises:
        SourceError: the source holds no clip.
    """
    directory.mkdir(parents=True, exist_ok=True)
    identity = {"kind": config["source"]["kind"], "path": config["source"]["path"], "batch_size": config["batch_size"]}
    listing = Listing([SourceFile(**f) for f in description["files"]], [])
    previous = _previous_plans(directory, identity)
    checksums = {file.path: file.sha256 for file in listing.files}
    known = {
        sha: duration
        for plan in previous
        for sha, duration in zip(*(plan.clips[c].to_pylist() for c in ("sha256", "header_duration")), strict=True)
        if sha is not None
    }
    index = []
    with ThreadPoolExecutor(THREADS) as pool, tqdm(desc="headers", unit="clip", mininterval=2) as progress:
        for plan in source.plan(listing, config["batch_size"], previous):
            table = _complete(plan, source, description["dataset"], known, pool, progress)
            revision = f"sha256:{checksums[plan.source_file]}" if plan.source_file else None
            index.append(_write_batch(plan, table, identity, revision, directory))
    if not index:
        raise SourceError(f"{config['source']['path']}: holds no clip")
    index.sort(key=lambda row: row["batch"])
    keep = {row["batch"] for row in index}
    for path in directory.iterdir():
        if path.suffix in (".json", ".parquet") and path.stem not in keep:
            path.unlink()
    write_text(directory / "batches.tsv", _tsv(index))
    return listing.notes


def read_batches(batches_tsv: Path) -> list[dict[str, str]]:
    """The rows of batches.tsv."""
    with open(batches_tsv, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def read_batch(batch_json: Path) -> tuple[dict[str, Any], pa.Table]:
    """One batch's description and clip table.

    Raises:
        SourceError: the table is not the one that the description was written with.
    """
    description = read_json(batch_json)
    table_path = batch_json.with_suffix(".parquet")
    if not table_path.is_file() or sha256_file(table_path) != description["table_sha256"]:
        raise SourceError(
            f"{table_path} is missing or was changed; delete {batch_json.parent}/batches.tsv and run again"
        )
    return description, pq.read_table(table_path)


def _previous_plans(directory: Path, identity: dict[str, Any]) -> list[BatchPlan]:
    plans = []
    for path in sorted(directory.glob("*.json")):
        try:
            description, table = read_batch(path)
        except (SourceError, ValueError, KeyError, OSError, pa.ArrowException):
            continue  # torn by a crash: planned anew
        if description.get("identity") == identity:
            plans.append(BatchPlan(description["batch"], description["source_file"], table))
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
    rows = plan.clips.select([f.name for f in MANIFEST if f.name not in ("id", "source")]).to_pylist()
    for row in rows:
        row["id"] = clip_id(dataset, row["source_file"], row["source_row"])
        row["source"] = dataset
    todo = [row for row in rows if row["sha256"] is None or row["sha256"] not in known]
    for row in rows:
        row["header_duration"] = known.get(row["sha256"]) if row["sha256"] is not None else None
    wanted = plan.clips
    if len(todo) < len(rows):
        missing = {row["id"] for row in todo}
        wanted = plan.clips.filter(pa.array([row["id"] in missing for row in rows]))
    durations = bounded_map(pool, _header_duration, source.read(plan.source_file, wanted)) if todo else ()
    for row, duration in zip(todo, durations, strict=True):
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
    plan: BatchPlan, table: pa.Table, identity: dict[str, Any], revision: str | None, directory: Path
) -> dict[str, Any]:
    seconds = math.fsum(value or 0.0 for value in table["header_duration"].to_pylist())
    table_path, json_path = directory / f"{plan.batch}.parquet", directory / f"{plan.batch}.json"
    if not (table_path.is_file() and _same_table(table_path, table)):
        write_table(table, table_path)
    description = {
        "batch": plan.batch,
        "identity": identity,
        "source_file": plan.source_file,
        "source_revision": revision,  # of the source file; null where each clip is a file
        "clips": table.num_rows,
        "seconds": round(seconds, 3),
        "table_sha256": sha256_file(table_path),
    }
    try:
        unchanged = read_json(json_path) == description
    except (OSError, ValueError):
        unchanged = False
    if not unchanged:
        write_json(json_path, description)
    return {key: description[key] for key in ("batch", "clips", "seconds", "source_file")}


def _same_table(path: Path, table: pa.Table) -> bool:
    try:
        return pq.read_table(path).equals(table)
    except (pa.ArrowException, OSError):
        return False


def _tsv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["batch", "clips", "seconds", "source_file"], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
