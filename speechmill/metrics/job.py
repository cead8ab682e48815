"""The score job: one enhanced shard in, one row of metrics per clip out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from speechmill import versions
from speechmill.audio.encode import decode_flac
from speechmill.audio.resample import resample
from speechmill.config import result_settings
from speechmill.engine import Engine, Window, batches_at_once, pad
from speechmill.errors import ClipError
from speechmill.files import sha256_json
from speechmill.joblog import Problems
from speechmill.memory import device_kind, first_budget
from speechmill.metrics import ClipBatch
from speechmill.parallel import Behind, bounded_map
from speechmill.parts import Parts
from speechmill.preflight import as_preflight_found, check_models, load_found_groups
from speechmill.shards import ENHANCED, reading_shard, table_writer, with_models
from speechmill.vad import CHUNK, RATE, SileroVad, vad_versions

DESCRIPTIVE = ("duration", "variant", "variant_reason")  # what ranking and report need to know of the shard
READ_ROWS = 16  # of a shard, as Python objects
BYTES_PER_SECOND = 1.5e6  # of device memory that a second of audio takes; measured: 0.9

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

    What an earlier attempt has finished is taken over (`speechmill.parts`); a later `attempt` computes smaller device
    batches.

    Raises:
        SpeechmillError: this node lacks what preflight `found`, or its GPU fails; or the shard, or a clip in it, is
            damaged, which is no clip's fault, so none becomes errored by it.
    """
    torch.set_num_threads(threads)
    with as_preflight_found():
        groups = load_found_groups(found, device, config["score"]["squim_weights"])
        vad = SileroVad(device)
        models = vad_versions() | {name: version for group in groups for name, version in group.versions.items()}
        check_models(models, found)
    with reading_shard(enhanced):
        shard = pq.ParquetFile(enhanced)
    # The enhance job measured the input: those columns are carried over, so that ranking needs no audio.
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
        Parts(scores, schema.remove_metadata(), key, rows) as parts,
        ThreadPoolExecutor(threads) as pool,
        table_writer(schema, scores) as writer,
        tqdm(total=rows, desc=enhanced.stem, unit="clip", mininterval=5) as progress,
    ):

        def put(rows: Iterable[dict[str, Any]]) -> None:
            for row in rows:
                counts["errored" if row["error_class"] else "scored"] += 1
                writer.write(row)
                progress.update()

        def finish(window: Window[Loaded, dict[str, float]]) -> None:
            rows = [_row(values, result, schema.names) for (values, _), result in window.pairs()]
            for row in rows:
                if row["error_class"]:
                    problems.add(row["message"], clip=row["id"], file=enhanced, error_class=row["error_class"])
            put(rows)
            parts.add(rows)

        for done in parts.finished():
            put(done)
        loaded = bounded_map(
            pool, partial(_load, enhanced), islice(_read(shard, enhanced, names), parts.rows, None), ahead=4 * threads
        )
        budget = first_budget(
            device, config["score"]["batch_seconds"], attempt, BYTES_PER_SECOND, batches_at_once(device)
        )
        engine = Engine(lambda item: len(item[1]), measure, "score_failed", budget, device, RATE, CHUNK)
        with Behind() as behind:
            for window in engine.run(loaded):
                behind.call(finish, window)
    return counts


def _key(enhanced: Path, config: dict[str, Any], models: Mapping[str, str], columns: list[str], device: str) -> str:
    """Names all that the rows of the scores depend on."""
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
    """The rows of a shard; of their FLAC, that of one row group is held."""
    chunks = shard.iter_batches(batch_size=READ_ROWS, columns=columns)
    while True:
        with reading_shard(path):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield from chunk.to_pylist()


def _load(shard: Path, row: dict[str, Any]) -> Loaded:
    """A row of our own shard without its audio, and the audio at RATE."""
    audio = row.pop("audio") or {}
    with reading_shard(shard, row["id"]):
        samples, rate = decode_flac(audio.get("bytes") or b"")
    return row, resample(samples, rate, RATE)
