"""The score job: one enhanced shard in, one row of metrics per clip out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from speechmill.audio.encode import decode_flac
from speechmill.audio.resample import resample
from speechmill.engine import WINDOW_BATCHES, isolate, length_batches, pad, windows
from speechmill.errors import ClipError
from speechmill.metrics import ClipBatch
from speechmill.parallel import bounded_map
from speechmill.preflight import as_preflight_found, check_models, load_found_groups
from speechmill.shards import ENHANCED, reading_shard, table_writer, with_models
from speechmill.vad import CHUNK, RATE, SileroVad, vad_versions

DESCRIPTIVE = ("duration", "variant", "variant_reason")  # what ranking and report need to know of the shard
READ_ROWS = 16  # of a shard, as Python objects


def score_batch(
    enhanced: Path,
    config: dict[str, Any],
    found: Mapping[str, Any],
    device: str,
    threads: int,
    batch_seconds: float,
    scores: Path,
) -> dict[str, int]:
    """Run the job; returns the number of clips scored and errored.

    Raises:
        SpeechmillError: this node lacks what preflight `found`; or the shard, or a clip in it, is damaged, which is
            no clip's fault, so none becomes errored by it.
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

    def measure(clips: Sequence[np.ndarray]) -> list[dict[str, float]]:
        batch, lengths = pad(clips, device, multiple=CHUNK)
        clip_batch = ClipBatch(batch, lengths, vad.probabilities(batch, lengths))
        values: dict[str, np.ndarray] = {}
        for group in groups:
            values.update(group.measure(clip_batch))
        return [{name: float(column[i]) for name, column in values.items()} for i in range(len(clips))]

    counts = {"scored": 0, "errored": 0}
    names = ["id", "audio", *DESCRIPTIVE, *carried]
    with (
        ThreadPoolExecutor(threads) as pool,
        table_writer(schema, scores) as writer,
        tqdm(total=shard.metadata.num_rows, desc=enhanced.stem, unit="clip", mininterval=5) as progress,
    ):
        rows = _read(shard, enhanced, names)
        loaded = bounded_map(pool, partial(_load, enhanced), rows, ahead=4 * threads)
        for window in windows(loaded, lambda item: len(item[1]) / RATE, WINDOW_BATCHES * batch_seconds):
            clips = [samples for _, samples in window]
            results: list[dict[str, float] | ClipError] = [{}] * len(clips)
            for group in length_batches([len(clip) for clip in clips], int(batch_seconds * RATE), CHUNK):
                measured = isolate(measure, [clips[i] for i in group], "score_failed")
                for i, result in zip(group, measured, strict=True):
                    results[i] = result
            for (values, _), result in zip(window, results, strict=True):
                failed = isinstance(result, ClipError)
                counts["errored" if failed else "scored"] += 1
                if isinstance(result, ClipError):
                    values.update(error_class=result.error_class, message=result.message)
                else:
                    values.update({k: v if math.isfinite(v) else None for k, v in result.items()})
                writer.write({name: values.get(name) for name in schema.names})
                progress.update()
    return counts


def _read(shard: pq.ParquetFile, path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a shard; of their FLAC, that of one row group is held."""
    chunks = shard.iter_batches(batch_size=READ_ROWS, columns=columns)
    while True:
        with reading_shard(path):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield from chunk.to_pylist()


def _load(shard: Path, row: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """A row of our own shard without its audio, and the audio at RATE."""
    audio = row.pop("audio") or {}
    with reading_shard(shard, row["id"]):
        samples, rate = decode_flac(audio.get("bytes") or b"")
    return row, resample(samples, rate, RATE)
