"""The clips to listen to: which ones, and their audio and spectrograms, ready to be embedded in a page."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.audio.encode import decode_flac, encode_flac
from speechmill.errors import SpeechmillError
from speechmill.report.plots import spectrogram_db, spectrogram_png
from speechmill.shards import reading_shard

READ_ROWS = 65_536
MAX_SECONDS = 15.0
MIN_SECONDS = 3.0
AUDIO_BYTES = 12_000_000  # of all players together, about: more players get fewer seconds each
FLAC_BYTES = 1.2  # per sample, about
REMOVED = "denoise_removed_db"
GROUPS = {
    "best": ("Best", "The highest closeness of all ranked clips."),
    "worst": ("Worst", "The lowest closeness of all ranked clips."),
    "borderline": ("Borderline", "Closest to the threshold, on either side of it, where closeness decided."),
    "denoised": ("Most removed", "Where denoising took most away: listen for damage to the speech."),
}


@dataclass(frozen=True)
class Player:
    """One recording: audio and spectrogram as data: URIs, and how many seconds of it."""

    audio: str
    spectrogram: str
    seconds: float


@dataclass(frozen=True)
class Example:
    """A clip: its row of the ranking table, what is published, and the same not denoised where that differs."""

    row: dict[str, Any]
    published: Player
    original: Player | None


def _candidates(table: pa.Table) -> dict[str, tuple[pa.ChunkedArray, pa.ChunkedArray]]:
    """Per pool: which rows may enter, and the key whose smallest values win."""
    closeness, away = table["closeness"], pc.negate(table["closeness"])
    ranked = pc.and_(pc.is_valid(closeness), pc.not_equal(table["state"], "duplicate"))
    pools = {
        "best": (ranked, away),
        "worst": (ranked, closeness),
        "above": (pc.equal(table["state"], "accepted"), closeness),
        "below": (pc.equal(table["criterion"], "closeness"), away),
    }
    if REMOVED in table.column_names:
        enhanced = pc.and_(ranked, pc.equal(table["variant"], "enhanced"))
        pools["denoised"] = (pc.and_(enhanced, pc.is_finite(table[REMOVED])), pc.negate(table[REMOVED]))
    return pools


def choose(ranking_files: Sequence[Path], count: int) -> dict[str, list[dict[str, Any]]]:
    """The ranking rows of `count` clips for each group of `GROUPS`, the most telling first; ties by id.

    Borderline clips come half from either side of the threshold, or more from one if the other has too few, and are
    ordered by closeness. Memory does not grow with the number of clips, and the order of the files does not matter.
    """
    held: dict[str, pa.Table] = {}
    for path in ranking_files:
        with pq.ParquetFile(path) as file:
            wanted = ["id", "state", "criterion", "closeness", "variant", REMOVED]
            columns = [name for name in wanted if name in file.schema_arrow.names]
            for part in file.iter_batches(batch_size=READ_ROWS, columns=columns):
                table = pa.Table.from_batches([part])
                for pool, (mask, key) in _candidates(table).items():
                    known = [held[pool]] if pool in held else []
                    if known and len(held[pool]) == count:  # most clips come after those that are held
                        mask = pc.and_(mask, pc.less_equal(key, held[pool]["key"][-1] if count else None))
                    rows = pa.table({"id": table["id"], "key": key.cast(pa.float64())}).filter(mask)
                    if known and not len(rows):
                        continue
                    rows = rows.append_column("file", pa.array([str(path)] * len(rows), pa.string()))
                    ordered = pa.concat_tables([*known, rows]).sort_by([("key", "ascending"), ("id", "ascending")])
                    held[pool] = ordered.slice(0, count)
    chosen = {
        pool: list(zip(*(table[c].to_pylist() for c in ("file", "id")), strict=True)) for pool, table in held.items()
    }
    above, below = chosen.pop("above", []), chosen.pop("below", [])
    half = max((count + 1) // 2, count - len(below))
    chosen["borderline"] = [*reversed(above[:half]), *below[: max(0, count - len(above[:half]))]]
    rows_of = _rows({clip for clips in chosen.values() for clip in clips})
    return {group: [rows_of[clip_id] for _, clip_id in chosen.get(group, [])] for group in GROUPS}


def _rows(clips: set[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    ids: dict[str, list[str]] = defaultdict(list)
    for path, clip_id in sorted(clips):
        ids[path].append(clip_id)
    tables = (pq.read_table(path, filters=[("id", "in", wanted)]) for path, wanted in ids.items())
    return {row["id"]: row for table in tables for row in table.to_pylist()}


def load_examples(
    groups: Mapping[str, Sequence[dict[str, Any]]], enhanced_files: Sequence[Path]
) -> dict[str, list[Example]]:
    """Audio and spectrograms of chosen clips, each of them loaded once, however many groups it is in.

    Of `enhanced_files`, {batch}.parquet each, only the row groups that hold a chosen clip are read.

    Raises:
        SpeechmillError: a clip is not in its enhanced shard, or is damaged there.
    """
    shards = {Path(path).stem: Path(path) for path in enhanced_files}
    rows = {row["id"]: row for group in groups.values() for row in group}
    batches: dict[str, set[str]] = defaultdict(set)
    for row in rows.values():
        batches[row["batch"]].add(row["id"])
    loaded: dict[str, Example] = {}
    for batch, ids in sorted(batches.items()):
        found = _audio(shards[batch], ids) if batch in shards else {}
        missing = sorted(ids - found.keys())
        if missing:
            raise SpeechmillError(
                f"{len(missing)} ranked clips are not in enhanced/{batch}.parquet, such as {missing[0]}: "
                "the shard is of another run; remove it and run again"
            )
        for clip_id, (published, original) in found.items():
            with reading_shard(shards[batch], clip_id):
                loaded[clip_id] = _example(rows[clip_id], published, original, len(rows))
    return {name: [loaded[row["id"]] for row in group] for name, group in groups.items()}


def _audio(shard: Path, ids: set[str]) -> dict[str, tuple[bytes, bytes | None]]:
    """FLAC bytes of clips: (published, the same not denoised or None)."""
    found: dict[str, tuple[bytes, bytes | None]] = {}
    with reading_shard(shard), pq.ParquetFile(shard) as file:
        for index in range(file.num_row_groups):
            names = file.read_row_group(index, columns=["id"])["id"].to_pylist()
            places = [place for place, name in enumerate(names) if name in ids]
            if not places:
                continue
            table = file.read_row_group(index, columns=["id", "audio", "original"]).take(places)
            for row in table.to_pylist():
                found[row["id"]] = ((row["audio"] or {}).get("bytes") or b"", (row["original"] or {}).get("bytes"))
    return found


def _example(row: dict[str, Any], published: bytes, original: bytes | None, clips: int) -> Example:
    recordings = [published] if original is None else [published, original]
    sounds = []
    for data in recordings:
        samples, rate = decode_flac(data)
        seconds = min(MAX_SECONDS, max(MIN_SECONDS, AUDIO_BYTES / (2 * clips * FLAC_BYTES * rate)))
        if len(samples) > seconds * rate:
            samples = samples[: int(seconds * rate)]
            data = encode_flac(samples, rate)
        sounds.append((data, samples, rate))
    levels = [spectrogram_db(samples, rate) for _, samples, rate in sounds]
    loudest = max(float(np.max(level.db)) for level in levels)  # one scale, so that before and after can be compared
    players = [
        Player(
            audio=data_uri("audio/flac", data),
            spectrogram=data_uri("image/png", spectrogram_png(level, loudest)),
            seconds=len(samples) / rate,
        )
        for (data, samples, rate), level in zip(sounds, levels, strict=True)
    ]
    return Example(row, players[0], players[1] if original is not None else None)


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as a data: URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
