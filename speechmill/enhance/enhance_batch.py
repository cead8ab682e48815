"""The enhance job: reads a batch of the manifest, writes its enhanced shard and its ledger."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from speechmill import versions
from speechmill.audio.decode import Decoded
from speechmill.audio.vad import CHUNK, vad_versions
from speechmill.audio.vad import RATE as MODEL_RATE
from speechmill.config import result_settings
from speechmill.engine.batch_job import BatchJob
from speechmill.engine.batches import Engine, batches_at_once
from speechmill.engine.memory import device_kind, first_budget
from speechmill.enhance.processor import Clip, Enhanced, Loaded, Outcome, Processor
from speechmill.errors import ClipError, ClipRejection
from speechmill.metrics import ENHANCE_METRICS
from speechmill.runlog.joblog import Problems
from speechmill.sources import Source
from speechmill.sources.columns import speaker_attributes
from speechmill.sources.manifest import identify, plan_of, read_batch
from speechmill.sources.transcript import clean_row, normalize, utterance_key
from speechmill.storage.files import sha256_file, sha256_json
from speechmill.tables.parquet_io import table_writer
from speechmill.tables.schemas import ENHANCED, LEDGER, with_models

AUDIO_COLUMNS = ("audio.bytes", "original.bytes")
ROW_GROUP = 100  # as the Hub recommends for audio
BYTES_PER_SECOND = 4e6  # device memory per second of audio; measured: 2e6 with the spectral gate at 48 kHz


def enhance_batch(
    batch_json: Path,
    source: Source,
    fetched: Path | None,
    config: dict[str, Any],
    found: Mapping[str, Any],
    device: str,
    threads: int,
    enhanced: Path,
    ledger: Path,
    attempt: int = 1,
) -> dict[str, int]:
    """Run the job; returns the number of clips by state. Both files appear complete or not at all.

    `fetched` is the path of the batch's downloaded source file, None if the source is read in place. Resumes from the
    checkpoints of earlier attempts (`speechmill.engine.checkpoint`). Later attempts use smaller device batches.

    Raises:
        SpeechmillError: this node lacks what preflight `found`, or its GPU fails.
    """
    description, table = read_batch(batch_json)
    plan = plan_of(description, table)
    torch.set_num_threads(threads)
    metric_fields = [pa.field(name, pa.float64()) for name in ENHANCE_METRICS]
    schema = with_models(pa.schema([*ENHANCED, *metric_fields]), vad_versions())
    both = pa.schema([("ledger", pa.struct(list(LEDGER))), ("shard", pa.struct(list(schema)))])
    key = _key(batch_json, config, found, device)
    counts = {"passed": 0, "rejected": 0, "errored": 0}
    passed_over: Counter[str] = Counter()
    problems = Problems()
    dataset, revision = config["dataset"], description["source_revision"]

    with (
        BatchJob(enhanced, both, key, plan.batch, plan.rows, threads) as job,
        table_writer(LEDGER, ledger) as ledger_writer,
        table_writer(schema, enhanced, row_group_size=ROW_GROUP, uncompressed=AUDIO_COLUMNS) as shard_writer,
    ):
        processor = Processor(config, found, device, job.pool)

        def load(clip: tuple[dict[str, Any], bytes | Path | ClipError]) -> Loaded:
            row, data = clip
            return processor.load((_complete(row, dataset), data))

        def write(row: dict[str, Any]) -> None:
            counts[row["ledger"]["state"]] += 1
            ledger_writer.write(row["ledger"])
            if row["shard"] is not None:
                shard_writer.write(row["shard"])

        engine: Engine[Loaded, Outcome] = Engine(
            length=_samples,
            compute=lambda items: processor.process([clip for _, clip in items if isinstance(clip, Clip)]),
            error_class="enhance_failed",
            budget=first_budget(
                device, config["enhance"]["batch_seconds"], attempt, BYTES_PER_SECOND, batches_at_once(device)
            ),
            device=device,
            rate=MODEL_RATE,
            multiple=CHUNK,
        )
        job.run(
            source.read(plan, fetched, passed_over),
            load,
            engine,
            row_of=lambda loaded, result: _row(loaded, result, schema, revision),
            write=write,
            log=lambda row: _log_problem(row["ledger"], problems),
        )
        ledger_writer.add_metadata(passed_over=passed_over)
    for what, count in sorted(passed_over.items()):
        print(f"passed over: {count} {what}")
    return counts


def _key(batch_json: Path, config: dict[str, Any], found: Mapping[str, Any], device: str) -> str:
    """A hash of everything that the rows of a batch depend on."""
    listed = batch_json.with_suffix(".parquet")
    return sha256_json(
        {
            "batch": [sha256_file(path) for path in (batch_json, listed) if path.exists()],
            "dataset": config["dataset"],
            "settings": result_settings(config["enhance"]),
            "enhancer": found["enhancer"],
            "models": vad_versions(),
            "device": device_kind(device),
            "version": [versions.ENHANCE, versions.package_versions()],
        }
    )


def _complete(row: dict[str, Any], dataset: str) -> dict[str, Any]:
    """A source's row with the clip's id, its normalised transcript, the key of its utterance, and its speaker."""
    row = clean_row(identify(row, dataset))  # the id is that of the original names
    row["text_norm"] = normalize(row.get("text"))
    row["utterance"] = utterance_key(row["text_norm"], row.get("speaker_id"))
    return row | speaker_attributes(row.get("extra"))


def _samples(loaded: Loaded) -> int:
    """Length of a clip. At least 1, so that a clip which resampling leaves empty is computed and judged too."""
    return max(1, len(loaded[1].model)) if isinstance(loaded[1], Clip) else 0


def _row(loaded: Loaded, result: Outcome | None, schema: pa.Schema, revision: str | None) -> dict[str, Any]:
    """The row of the ledger, and the row of the shard if the clip passed."""
    row, item = loaded
    outcome = result if isinstance(item, Clip) else item
    assert outcome is not None, "a clip has no outcome"
    entry = _ledger_row(row, item.decoded if isinstance(item, Clip) else None, outcome)
    shard_row = _shard_row(row, entry, outcome, schema, revision) if isinstance(outcome, Enhanced) else None
    return {"ledger": entry, "shard": shard_row}


def _ledger_row(row: dict[str, Any], decoded: Decoded | None, outcome: Outcome) -> dict[str, Any]:
    entry = {name: row.get(name) for name in LEDGER.names}
    entry["state"] = "passed"
    entry["input_duration"] = decoded.duration if decoded else None  # never the header's claim
    entry["input_sha256"] = decoded.input_sha256 if decoded else row.get("sha256")
    entry["pcm_sha256"] = decoded.pcm_sha256 if decoded else None
    if isinstance(outcome, ClipError):
        entry.update(state="errored", error_class=outcome.error_class, message=outcome.message)
    elif isinstance(outcome, ClipRejection):
        entry.update(
            state="rejected",
            criterion=outcome.criterion,
            value=outcome.value,
            threshold=outcome.threshold,
            message=outcome.message,
        )
    return entry


def _log_problem(entry: Mapping[str, Any], problems: Problems) -> None:
    """Log an errored clip, with its file."""
    if entry["state"] == "errored":
        place = entry["source_member"] if entry["source_member"] is not None else entry["source_row"]
        file = entry["source_file"] or entry["source_id"] or entry["source"]
        problems.add(
            entry["message"],
            clip=entry["id"],
            file=file if place is None else f"{file}, {place}",
            error_class=entry["error_class"],
        )


def _shard_row(
    row: dict[str, Any], entry: dict[str, Any], outcome: Enhanced, schema: pa.Schema, revision: str | None
) -> dict[str, Any]:
    values = {**row, **entry, **outcome.values, "source_revision": revision or f"sha256:{entry['input_sha256']}"}
    shard_row = {name: values.get(name) for name in schema.names}
    for name, value in shard_row.items():
        if isinstance(value, float) and not math.isfinite(value):
            shard_row[name] = None  # missing is null, never NaN
    return shard_row
