"""The enhance job: one batch of the manifest in, its enhanced shard and its ledger out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm import tqdm

from speechmill import versions
from speechmill.audio.decode import Decoded
from speechmill.config import result_settings
from speechmill.engine import Engine, Window, batches_at_once
from speechmill.enhance.processor import Clip, Enhanced, Loaded, Outcome, Processor
from speechmill.errors import ClipError, ClipRejection
from speechmill.files import sha256_file, sha256_json
from speechmill.joblog import Problems
from speechmill.manifest import identify, plan_of, read_batch
from speechmill.memory import device_kind, first_budget
from speechmill.metrics import ENHANCE_METRICS
from speechmill.parallel import Behind, bounded_map
from speechmill.parts import Parts
from speechmill.shards import ENHANCED, LEDGER, table_writer, with_models
from speechmill.sources import Source
from speechmill.sources.columns import stated
from speechmill.transcript import normalize, utterance_key
from speechmill.vad import CHUNK, vad_versions
from speechmill.vad import RATE as MODEL_RATE

AUDIO_COLUMNS = ("audio.bytes", "original.bytes")
ROW_GROUP = 100  # the Hub's advice for audio
BYTES_PER_SECOND = 4e6  # of device memory that a second of audio takes; measured: 2 with the spectral gate at 48 kHz


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

    `fetched` is where the batch's source file was downloaded to, None where it is read in place. What an earlier
    attempt has finished is taken over (`speechmill.parts`); a later `attempt` computes smaller device batches.

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
    with (
        Parts(enhanced, both, key, plan.rows) as parts,
        ThreadPoolExecutor(threads) as pool,
        table_writer(LEDGER, ledger) as ledger_writer,
        table_writer(schema, enhanced, row_group_size=ROW_GROUP, uncompressed=AUDIO_COLUMNS) as shard_writer,
        tqdm(total=plan.rows, desc=plan.batch, unit="clip", mininterval=5) as progress,
    ):

        def put(rows: Iterable[dict[str, Any]]) -> None:
            for row in rows:
                counts[row["ledger"]["state"]] += 1
                ledger_writer.write(row["ledger"])
                if row["shard"] is not None:
                    shard_writer.write(row["shard"])
                progress.update()

        def finish(window: Window[Loaded, Outcome]) -> None:
            rows = [_row(item, result, schema, revision) for item, result in window.pairs()]
            for row in rows:
                _note(row["ledger"], problems)
            put(rows)
            parts.add(rows)

        revision = description["source_revision"]
        processor = Processor(config, found, device, pool)
        for rows in parts.finished():
            put(rows)
        rest = islice(source.read(plan, fetched, passed_over), parts.rows, None)
        clips = ((_complete(row, config["dataset"]), data) for row, data in rest)
        loaded = bounded_map(pool, processor.load, clips, ahead=4 * threads)
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
        with Behind() as writer:
            for window in engine.run(loaded):
                writer.call(finish, window)
        ledger_writer.note(passed_over=passed_over)
    for what, count in sorted(passed_over.items()):
        print(f"passed over: {count} {what}")
    return counts


def _key(batch_json: Path, config: dict[str, Any], found: Mapping[str, Any], device: str) -> str:
    """Names all that the rows of a batch depend on."""
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
    """A source's row with the clip's id, its transcript in one form, what the same utterance has in common, and who speaks."""
    row = identify(row, dataset)
    row["text_norm"] = normalize(row.get("text"))
    row["utterance"] = utterance_key(row["text_norm"], row.get("speaker_id"))
    return row | stated(row.get("extra"))


def _samples(loaded: Loaded) -> int:
    """Of a clip one at least: also one that resampling left without any is judged."""
    return max(1, len(loaded[1].model)) if isinstance(loaded[1], Clip) else 0


def _row(loaded: Loaded, result: Outcome | None, schema: pa.Schema, revision: str | None) -> dict[str, Any]:
    """The row of the ledger, and that of the shard where the clip passed."""
    row, item = loaded
    outcome = result if isinstance(item, Clip) else item
    assert outcome is not None, "a clip was lost"
    entry = _ledger_row(row, item.decoded if isinstance(item, Clip) else None, outcome)
    shard_row = _shard_row(row, entry, outcome, schema, revision) if isinstance(outcome, Enhanced) else None
    return {"ledger": entry, "shard": shard_row}


def _ledger_row(row: dict[str, Any], decoded: Decoded | None, outcome: Outcome) -> dict[str, Any]:
    entry = {name: row.get(name) for name in LEDGER.names}
    entry["state"] = "passed"
    entry["input_duration"] = decoded.duration if decoded else None  # never what a header claims
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


def _note(entry: Mapping[str, Any], problems: Problems) -> None:
    """An errored clip goes to the log of the job too, with its file."""
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
