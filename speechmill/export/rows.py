"""Read the clips to export from the tables of a finished run, or from a published data set.

Both give a clip the columns of a published row. Ids become file names, so they are checked before anything is
written. Memory: one row group of audio, and eight bytes per clip.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.errors import LedgerError, SpeechmillError
from speechmill.publish.shards import data_schema, rows_of
from speechmill.publish.target import published_by
from speechmill.publish.to_folder import CARD, MARK
from speechmill.ranking.states import count_states
from speechmill.runlog import run_lock
from speechmill.storage.files import read_json, sha256_json
from speechmill.tables.batches import read_batches
from speechmill.tables.parquet_io import reading_shard
from speechmill.tables.schemas import AUDIO, RANKING, models_of
from speechmill.tables.splits import SPLITS, split_index

SAFE_ID = re.compile(r"[0-9a-f]{16,64}")
_SHARD = re.compile(r"((?:train|validation|test)(?:-[A-Za-z0-9_-]+)?)-(\d{5,})-of-(\d{5,})\.parquet")
_NEEDED = {"id": pa.string(), "audio": AUDIO, "duration": pa.float64(), "sampling_rate": pa.int32()}
_TYPES = _NEEDED | dict.fromkeys(("text", "language", "speaker_id"), pa.string())


@dataclass(frozen=True)
class Clip:
    """A clip of a split: its FLAC file, and the columns of its published row except `audio`, as JSON values."""

    split: str
    row: dict[str, Any]
    audio: bytes

    @property
    def id(self) -> str:
        """Hex digits."""
        return self.row["id"]


@dataclass(frozen=True)
class Origin:
    """Clips to export: their origin, the columns of their rows, their number, and a function that reads them.

    They are always read in the same order. The fingerprint covers the clips' ids and the files that contain them.
    """

    name: str
    schema: pa.Schema
    clips: int
    fingerprint: str
    read: Callable[[], Iterator[Clip]]


def of_run(run: Path) -> Origin:
    """The accepted clips of a finished run, in the order of its batches.

    Raises:
        SpeechmillError: it is not finished, or its enhanced shards are missing or damaged.
        LedgerError: its tables do not agree.
    """
    summary = _summary(run)
    table = run / "manifest" / "batches.tsv"
    names = sorted({row["batch"] for row in read_batches(table)} - set(summary["failed_batches"]))
    batches = [(run / "ranking" / f"{name}.parquet", run / "enhanced" / f"{name}.parquet") for name in names]
    missing = [ranking for ranking, _ in batches if not ranking.is_file()]
    if missing:
        raise SpeechmillError(f"{missing[0]} is missing: the run is not finished; {_how_to_resume(run)}")
    missing = [enhanced for _, enhanced in batches if not enhanced.is_file()]
    if missing:
        raise SpeechmillError(
            f"{len(missing)} enhanced shards of {run} are missing (keep_enhanced: false?). "
            f"{_how_to_export_published(run)}"
        )
    metrics = [
        column.name
        for ranking, _ in batches
        for column in pq.read_schema(ranking)
        if pa.types.is_floating(column.type) and column.name not in RANKING.names
    ]
    published = data_schema(list(dict.fromkeys(metrics)), 0)  # the rate is only in the schema's metadata
    schema = pa.schema([field for field in published if field.name != "audio"])
    criteria = sha256_json(read_json(run / "ranking" / "profile.json")["criteria"])
    count, fingerprint = _check_ids(_accepted_ids(run, batches, summary))

    def read() -> Iterator[Clip]:
        for ranking, enhanced in batches:
            yield from _of_batch(ranking, enhanced, schema, criteria)

    return Origin(str(run), schema, count, fingerprint, read)


def of_data_set(path: Path) -> Origin:
    """The clips of a published data set, or of its copy from the Hub, in the order of its files.

    Raises:
        SpeechmillError: it is incomplete or not readable, or speechmill did not publish it.
    """
    files = sorted((path / "data").glob("*.parquet"))
    if not files:
        raise SpeechmillError(f"{path}: no data/*.parquet here; name the folder of a published data set")
    if (path / MARK).exists() and not (path / CARD).exists():
        raise SpeechmillError(f"{path} is not complete ({CARD} is missing): it is being published, or was interrupted")
    _check_names(path, files)
    schema = _schema_of(files)

    def ids() -> Iterator[tuple[Path, list[Any]]]:
        for file in files:
            with _reading_published(file):
                yield file, pq.read_table(file, columns=["id"])["id"].to_pylist()

    def read() -> Iterator[Clip]:
        for file in files:
            yield from _of_file(file, schema.names)

    return Origin(str(path), schema, *_check_ids(ids()), read)


def _summary(run: Path) -> dict[str, Any]:
    """The summary of a complete run: one that is published or, if it publishes nothing, has a report."""
    holder = run_lock.read_owner(run)
    if holder and holder.is_alive:
        raise SpeechmillError(f"{holder} is working on {run}; export it after that process has ended")
    if holder:
        raise SpeechmillError(f"{run} is not finished: {holder} no longer runs; {_how_to_resume(run)}")
    if not (run / "report" / "summary.json").is_file():
        raise SpeechmillError(f"{run}: no finished run here (report/summary.json is missing); {_how_to_resume(run)}")
    summary: dict[str, Any] = read_json(run / "report" / "summary.json")
    if (run / "published" / "UPLOADED.json").is_file():
        return summary
    if (run / "published").exists():  # no rule creates it if publish.kind is none
        raise SpeechmillError(f"{run} is not published yet (published/UPLOADED.json is missing); {_how_to_resume(run)}")
    plan = run / "run.json"
    if summary["failed_batches"] and not (plan.is_file() and read_json(plan).get("failed_batches") == "publish"):
        failed = ", ".join(sorted(summary["failed_batches"])[:5])
        raise SpeechmillError(
            f"{run}: batches failed ({failed}) and nothing was published. Fix the cause and run again, "
            "or set failed_batches: publish to continue without them"
        )
    return summary


def _how_to_resume(run: Path) -> str:
    return f"see speechmill status {run}; resume it with speechmill resume or the command that started it"


def _how_to_export_published(run: Path) -> str:
    sentinel = run / "published" / "UPLOADED.json"
    published = read_json(sentinel) if sentinel.is_file() else {}
    if published and (option := published_by(published).export_option(published)):
        return f"Export the published data set: {option} instead of the run"
    return "Export the published data set (--data-set), or set keep_enhanced: true and run again"


def _accepted_ids(
    run: Path, batches: list[tuple[Path, Path]], summary: dict[str, Any]
) -> Iterator[tuple[Path, list[Any]]]:
    """Enhanced shard and accepted ids of every batch, checked against each other and finally against the summary."""
    accepted = ranked = 0
    for ranking, enhanced in batches:
        table = pq.read_table(ranking, columns=["id", "state"])
        counts = count_states(table)
        accepted += counts["accepted"]
        ranked += counts["input"]
        ids = table.filter(pc.equal(table["state"], "accepted"))["id"].combine_chunks()
        with reading_shard(enhanced):
            there = pq.read_table(enhanced, columns=["id"])["id"].combine_chunks()
        found = len(pc.unique(pc.index_in(ids, value_set=there)).drop_null())
        if found < len(ids) or len(pc.unique(there)) < len(there):
            raise LedgerError(
                f"{len(ids) - found} of {len(ids)} accepted clips are missing from {enhanced}, or some ids occur "
                f"twice; delete it and {ranking} and run again"
            )
        yield enhanced, ids.to_pylist()
    ranked += sum(summary["failed_batches"].values())
    if (accepted, ranked) != (summary["clips"]["accepted"], summary["clips"]["input"]):
        raise LedgerError(
            f"the ranking tables of {run} have {accepted} accepted of {ranked} clips, its report "
            f"{summary['clips']['accepted']} of {summary['clips']['input']}: run again to update the report"
        )


def _check_ids(files: Iterable[tuple[Path, list[Any]]]) -> tuple[int, str]:
    """Number and fingerprint of all clips. Checks that ids are safe as file names, and unique."""
    digest = hashlib.sha256()
    hashes = [np.empty(0, np.uint64)]
    for file, ids in files:
        bad = next((i for i in ids if not isinstance(i, str) or not SAFE_ID.fullmatch(i)), None)
        if bad is not None or None in ids:
            raise SpeechmillError(
                f"{file}: {str(bad)[:80]!r} is not an id of speechmill (hex digits only), so it cannot name a file"
            )
        digest.update(f"{file.name} {file.stat().st_size} {' '.join(ids)}\n".encode())
        short = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
        hashes.append(np.frombuffer(short, np.uint64))
    together = np.concatenate(hashes)
    if len(np.unique(together)) < len(together):
        raise SpeechmillError("several clips have the same id: publish the data set, or download it, again")
    return len(together), digest.hexdigest()


def _of_batch(ranking: Path, enhanced: Path, schema: pa.Schema, criteria_sha256: str) -> Iterator[Clip]:
    ranked = pq.read_schema(ranking).names
    scored = [name for name in schema.names if name in ranked and (name == "closeness" or name not in RANKING.names)]
    accepted = pq.read_table(ranking, columns=["id", *scored], filters=[("state", "=", "accepted")]).combine_chunks()
    models = models_of(pq.read_schema(enhanced)) | models_of(pq.read_schema(ranking))
    fixed = {"models": json.dumps(models, sort_keys=True), "criteria_sha256": criteria_sha256}
    for part, data, places in rows_of(enhanced, accepted["id"], [n for n in schema.names if n not in scored]):
        scores = accepted.select(scored).take(pa.array(places)).to_pylist()
        for row, score, audio in zip(part.to_pylist(), scores, data, strict=True):
            values = row | score | fixed
            split = SPLITS[split_index(values["source_split"])]
            yield _clip(split, {name: values.get(name) for name in schema.names}, audio, enhanced)


def _of_file(file: Path, names: list[str]) -> Iterator[Clip]:
    split = file.name.partition("-")[0]
    with _reading_published(file), pq.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            part = table.read_row_group(group, columns=[*names, "audio.bytes"])
            for i, row in enumerate(part.select(names).to_pylist()):
                yield _clip(split, row, part["audio"][i]["bytes"].as_py(), file)


def _clip(split: str, row: dict[str, Any], audio: bytes | None, file: Path) -> Clip:
    if not (audio or b"").startswith(b"fLaC") or row["duration"] is None or row["sampling_rate"] is None:
        raise SpeechmillError(f"{file}: clip {row['id']} has no FLAC audio, duration or sampling rate")
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return Clip(split, plain, audio or b"")


def _check_names(path: Path, files: list[Path]) -> None:
    """Check that the shards of every split are complete and of one version."""
    numbers = defaultdict(list)
    for file in files:
        match = _SHARD.fullmatch(file.name)
        if not match:
            raise SpeechmillError(f"{file} does not have the name of a published shard (train-00000-of-00001)")
        numbers[match[1], int(match[3])].append(int(match[2]))
    splits = [split for split, _ in numbers]
    for (split, count), found in numbers.items():
        if found != list(range(count)) or splits.count(split) > 1:
            raise SpeechmillError(
                f"{path} is not complete: {len(found)} files of {split} with -of-{count:05d}. Download or publish it again"
            )


def _schema_of(files: list[Path]) -> pa.Schema:
    """The columns except `audio`. Checks that they are the same in all files, and of types that JSON has."""
    schema: pa.Schema | None = None
    for file in files:
        with _reading_published(file):
            found = pq.read_schema(file).remove_metadata()
        if schema is not None and found != schema:
            raise SpeechmillError(f"the columns of {file} and {files[0]} differ: they are of different versions")
        schema = found
        wrong = [n for n, t in _TYPES.items() if (n in found.names or n in _NEEDED) and not _is(found, n, t)]
        wrong += [f.name for f in found if f.name != "audio" and not _is_plain(f.type)]
        if wrong:
            raise SpeechmillError(f"speechmill did not publish {file}: unexpected column {wrong[0]}")
    assert schema is not None
    return pa.schema([field for field in schema if field.name != "audio"])


def _is(schema: pa.Schema, name: str, kind: pa.DataType) -> bool:
    return schema.names.count(name) == 1 and schema.field(name).type == kind


def _is_plain(kind: pa.DataType) -> bool:
    return any(
        is_(kind) for is_ in (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    )


@contextmanager
def _reading_published(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise
        what = " ".join(str(error).split()).rstrip(".")
        raise SpeechmillError(f"{file} is damaged: {what}. Download or publish it again") from error
