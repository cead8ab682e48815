"""The score job: reads an enhanced shard, writes one row of metrics per clip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from speechmill import versions
from speechmill.audio.encode import decode_flac
from speechmill.audio.resample import resample
from speechmill.audio.vad import CHUNK, RATE, SileroVad, vad_versions
from speechmill.config import result_settings
from speechmill.engine.batch_job import BatchJob
from speechmill.engine.batches import Engine, batches_at_once
from speechmill.engine.memory import device_kind, first_budget
from speechmill.engine.tensors import pad
from speechmill.errors import ClipError
from speechmill.metrics import ClipBatch
from speechmill.metrics.found import as_preflight_found, check_models, load_found_groups
from speechmill.runlog.joblog import Problems
from speechmill.storage.files import sha256_json
from speechmill.tables.parquet_io import reading_shard, table_writer
from speechmill.tables.schemas import ENHANCED, with_models

DESCRIPTIVE = ("duration", "variant", "variant_reason")  # columns of the shard that ranking and report need
READ_ROWS = 16  # rows of a shard in memory as Python objects
BYTES_PER_SECOND = 1.5e6  # device memory per second of audio; measured: 0.9e6

Loaded = tuple[dict[str, Any], np.ndarray]  # a row of the shard, and its audio at RATE


def score_batch(
    enhanced: Path,
    config: dict[str, Any],
    found: Mapping[str, Any],
    device: str,
    threads: int,
    scores: Path,
    attempt: int = 1,
) -> dict[str, int]:
    """Run the job; returns the number of clips scored and errored.

    Resumes from the checkpoints of earlier attempts (`speechmill.engine.checkpoint`). Later attempts use smaller
    device batches.

    Raises:
        SpeechmillError: this node lacks what preflight `found`, or its GPU fails; or the shard, or a clip in it, is
            damaged. That is not an error of the clip, so no clip becomes errored.
    """
    torch.set_num_threads(threads)
    with as_preflight_found():
        groups = load_found_groups(found, device, config["score"]["squim_weights"])
        vad = SileroVad(device)
        models = vad_versions() | {name: version for group in groups for name, version in group.versions.items()}
        check_models(models, found)
    with reading_shard(enhanced):
        shard = pq.ParquetFile(enhanced)
    # Copies the input metrics of the enhance job, so that ranking needs only the scores.
    carried = [name for name in shard.schema_arrow.names if name not in ENHANCED.names]
    columns = sorted({metric.name for group in groups for metric in group.metrics} | set(carried))
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("error_class", pa.string()),
            pa.field("message", pa.string()),
            *(ENHANCED.field(name) for name in DESCRIPTIVE),
            *(pa.field(name, pa.float64()) for name in columns),
        ]
    )
    schema = with_models(schema, models)

    def measure(items: Sequence[Loaded]) -> list[dict[str, float]]:
        batch, lengths = pad([samples for _, samples in items], device, multiple=CHUNK)
        clip_batch = ClipBatch(batch, lengths, vad.probabilities(batch, lengths))
        values: dict[str, np.ndarray] = {}
        for group in groups:
            values.update(group.measure(clip_batch))
        return [{name: float(column[i]) for name, column in values.items()} for i in range(len(items))]

    counts = {"scored": 0, "errored": 0}
    problems = Problems()
    names = ["id", "audio", *DESCRIPTIVE, *carried]
    rows = shard.metadata.num_rows
    key = _key(enhanced, config, models, schema.names, device)
    with (
        BatchJob(scores, schema.remove_metadata(), key, enhanced.stem, rows, threads) as job,
        table_writer(schema, scores) as writer,
    ):

        def write(row: dict[str, Any]) -> None:
            counts["errored" if row["error_class"] else "scored"] += 1
            writer.write(row)

        def log_problem(row: dict[str, Any]) -> None:
            if row["error_class"]:
                problems.add(row["message"], clip=row["id"], file=enhanced, error_class=row["error_class"])

        budget = first_budget(
            device, config["score"]["batch_seconds"], attempt, BYTES_PER_SECOND, batches_at_once(device)
        )
        job.run(
            _read(shard, enhanced, names),
            partial(_load, enhanced),
            Engine(lambda item: len(item[1]), measure, "score_failed", budget, device, RATE, CHUNK),
            row_of=lambda loaded, result: _row(loaded[0], result, schema.names),
            write=write,
            log=log_problem,
        )
    return counts


def _key(enhanced: Path, config: dict[str, Any], models: Mapping[str, str], columns: list[str], device: str) -> str:
    """A hash of everything that the rows of the scores depend on."""
    stat = enhanced.stat()
    return sha256_json(
        {
            "shard": [stat.st_size, stat.st_mtime_ns],
            "models": models,
            "columns": columns,
            "settings": result_settings(config["score"]),
            "device": device_kind(device),
            "version": [versions.SCORE, versions.package_versions()],
        }
    )


def _row(values: dict[str, Any], result: dict[str, float] | ClipError | None, columns: Sequence[str]) -> dict[str, Any]:
    if isinstance(result, ClipError):
        values.update(error_class=result.error_class, message=result.message)
    elif result is not None:
        values.update({name: value if math.isfinite(value) else None for name, value in result.items()})
    return {name: values.get(name) for name in columns}


def _read(shard: pq.ParquetFile, path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a shard, with the FLAC of one row group in memory."""
    chunks = shard.iter_batches(batch_size=READ_ROWS, columns=columns)
    while True:
        with reading_shard(path):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield from chunk.to_pylist()


def _load(shard: Path, row: dict[str, Any]) -> Loaded:
    """A row of the shard without its audio, and the audio at RATE."""
    audio = row.pop("audio") or {}
    with reading_shard(shard, row["id"]):
        samples, rate = decode_flac(audio.get("bytes") or b"")
    return row, resample(samples, rate, RATE)
