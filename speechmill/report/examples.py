"""The clips to listen to: which ones, and their audio and pictures, ready to be embedded in a page."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from speechmill.audio.encode import decode_flac, encode_flac
from speechmill.errors import SpeechmillError
from speechmill.ranking.removals import REMOVED
from speechmill.report.parts import NOT_JUDGED, BottomK, Draw, Part, read_parts
from speechmill.report.spectrogram import recording_png, spectrogram_db
from speechmill.report.summary import Overview
from speechmill.tables.parquet_io import reading_shard
from speechmill.utils.text import plain

MAX_SECONDS = 15.0
MIN_SECONDS = 3.0
AUDIO_BYTES = 12_000_000  # of all players together, about: more players get fewer seconds each
FLAC_BYTES = 1.2  # per sample, about
CHANGED = "denoise_removed_db"
REASONS = 8
GROUPS = {  # before those of the reasons of rejection
    "best": ("Best", "The highest closeness of all ranked clips."),
    "worst": ("Worst", "The lowest closeness of all ranked clips."),
    "borderline": ("Borderline", "Closest to the threshold, on either side of it, where closeness decided."),
    "denoised": ("Most changed", "Where denoising took most away: listen for damage to the speech."),
    "random": ("Random", "Drawn from all ranked clips, whatever became of them: what most of the corpus is like."),
}


@dataclass(frozen=True)
class Player:
    """One recording: audio and picture (waveform and spectrogram) as data: URIs, and how many seconds of it."""

    audio: str
    picture: str | None  # None where only audio was asked for
    seconds: float


@dataclass(frozen=True)
class Example:
    """A clip: its row of the ranking table, what is published, and the same not denoised where that differs."""

    row: dict[str, Any]
    published: Player
    original: Player | None


def choose(ranking_files: Sequence[Path], count: int, of_each_reason: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The ranking rows of the clips of each group: see `Choice.result`."""
    reader = Choice(count, of_each_reason)
    read_parts(ranking_files, reader)
    return reader.result()


class Choice:
    """Collects the clips of each group over the ranking tables. Memory does not grow with the number of clips."""

    def __init__(self, count: int, of_each_reason: int = 0):
        self._count, self._of_each_reason = count, of_each_reason
        self._pools = {name: BottomK(count) for name in ("best", "worst", "above", "below", "denoised")}
        self._random = Draw(1, count)
        self._reasons: dict[str, Draw] = defaultdict(lambda: Draw(1, of_each_reason))

    def columns(self, names: Sequence[str]) -> Iterable[str]:
        wanted = ["id", "state", "criterion", "closeness", "variant", CHANGED]
        return [name for name in wanted if name in names]

    def add(self, part: Part) -> None:
        """Take in clips with a closeness, but no duplicates and none that was removed on request."""
        ranked = part.has_closeness & ~part.has_state("duplicate") & ~part.has_criterion(REMOVED)
        for name, (mask, key) in _candidates(part).items():
            pool, mask = self._pools[name], mask & ranked
            if pool.last is not None:
                mask &= key <= pool.last
            places = np.flatnonzero(mask)
            if len(places):
                ids, files = part.table["id"].take(places), part.files(places)
                pool.offer(pa.table({"id": ids, "key": pa.array(key[places]), "file": files}))
        self._random.add(part, np.where(ranked, 0, -1), ["id"])
        rejected = ranked & part.has_state("rejected")
        for reason in part.criterion.dictionary.to_pylist():
            if reason not in NOT_JUDGED and np.any(of_reason := rejected & part.has_criterion(reason)):
                self._reasons[reason].add(part, np.where(of_reason, 0, -1), ["id"])

    def result(self) -> dict[str, list[dict[str, Any]]]:
        """The ranking rows of the clips of each group, the most telling first; ties by id.

        `count` clips for each of `GROUPS`, then `of_each_reason` for each of the `REASONS` most frequent criteria that
        rejected scored clips: rejected-1, rejected-2, .... Borderline clips come half from either side of the
        threshold, or more from one if the other has too few, and are ordered by closeness. Random ones are those whose
        reversed ids come first, since ids are hashes. Clips that were removed on request are in no group. The order of
        the files does not matter.
        """
        chosen = {name: _clips(pool) for name, pool in self._pools.items()} | {"random": _clips(self._random.pools[0])}
        above, below = chosen.pop("above"), chosen.pop("below")
        half = max((self._count + 1) // 2, self._count - len(below))
        chosen["borderline"] = [*reversed(above[:half]), *below[: max(0, self._count - len(above[:half]))]]
        groups = {name: chosen[name] for name in GROUPS}
        if self._of_each_reason:
            frequency = {reason: int(draw.sizes[0]) for reason, draw in self._reasons.items()}
            most = sorted(frequency, key=lambda reason: (-frequency[reason], reason))[:REASONS]
            groups |= {
                f"rejected-{number}": _clips(self._reasons[reason].pools[0])
                for number, reason in enumerate(most, start=1)
            }
        rows_of = rows_of_clips({clip for clips in groups.values() for clip in clips})
        return {group: [rows_of[clip_id] for _, clip_id in clips] for group, clips in groups.items()}


def _clips(pool: BottomK) -> list[tuple[str, str]]:
    """File and id of the clips of a pool."""
    if pool.rows is None:
        return []
    return list(zip(*(pool.rows[name].to_pylist() for name in ("file", "id")), strict=True))


def _candidates(part: Part) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Per pool: which clips may enter if they are ranked, and the key whose smallest values win."""
    closeness, everyone = part.closeness, np.ones(len(part.closeness), bool)
    pools = {
        "best": (everyone, -closeness),
        "worst": (everyone, closeness),
        "above": (part.has_state("accepted"), closeness),
        "below": (part.has_criterion("closeness"), -closeness),
    }
    if CHANGED in part.table.column_names:
        changed = part.numbers(CHANGED)
        enhanced = pc.fill_null(pc.equal(part.table["variant"], "enhanced"), False).to_numpy()
        pools["denoised"] = (enhanced & np.isfinite(changed), -changed)
    return pools


def headings(groups: Mapping[str, Sequence[Mapping[str, Any]]], found: Overview) -> dict[str, tuple[str, str]]:
    """Title of each group that `choose` made, of its rows, and what it is for. Text of the corpus is in them, as it is.

    The last one of a reason of rejection says what cannot be heard, since clips that were rejected before they were
    scored have no audio.
    """
    texts = {}
    for name, rows in groups.items():
        if name in GROUPS:
            texts[name] = GROUPS[name]
            continue
        reason = rows[0]["criterion"]
        clips = found.rejected_by[reason] - found.unranked[reason]
        title = f"Rejected by {'closeness' if reason == 'closeness' else f'the gate on {plain(reason, 60)}'}"
        texts[name] = (title, f"{len(rows)} of {clips:,}, drawn at random.")
    unheard = [(reason, clips) for reason, clips in found.unranked.most_common() if reason not in NOT_JUDGED]
    last = next((name for name in reversed(texts) if name not in GROUPS), None)
    if unheard and last:
        listed = ", ".join(f"{plain(reason, 60)} ({clips:,})" for reason, clips in unheard[:REASONS])
        title, why = texts[last]
        more = ", …" if len(unheard) > REASONS else ""
        texts[last] = (title, f"{why} Rejected before scoring, so that there is nothing to hear: {listed}{more}.")
    return texts


def rows_of_clips(clips: set[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """The whole ranking rows of clips, given as (file, id), by id."""
    ids: dict[str, list[str]] = defaultdict(list)
    for path, clip_id in sorted(clips):
        ids[path].append(clip_id)
    tables = (pq.read_table(path, filters=[("id", "in", wanted)]) for path, wanted in ids.items())
    return {row["id"]: row for table in tables for row in table.to_pylist()}


def load_examples(
    groups: Mapping[str, Sequence[dict[str, Any]]],
    enhanced_files: Sequence[Path],
    only_audio: Collection[str] = (),
) -> dict[str, list[Example]]:
    """Audio and pictures of chosen clips, each of them loaded once, however many groups it is in.

    Of `enhanced_files`, {batch}.parquet each, only the row groups that hold a chosen clip are read. Clips that are in
    none but the groups `only_audio` get no picture. All audio together has about `AUDIO_BYTES`.

    Raises:
        SpeechmillError: a clip is not in its enhanced shard, or is damaged there.
    """
    shards = {Path(path).stem: Path(path) for path in enhanced_files}
    rows = {row["id"]: row for group in groups.values() for row in group}
    pictured = {row["id"] for name, group in groups.items() if name not in only_audio for row in group}
    lengths = [row["duration"] or 0.0 for row in rows.values() for _ in range(1 + (row["variant"] == "enhanced"))]
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
                loaded[clip_id] = _example(rows[clip_id], published, original, lengths, clip_id in pictured)
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


def seconds_each(lengths: Sequence[float], total: float) -> float:
    """How many seconds of each recording fit into `total`, from `MIN_SECONDS` to `MAX_SECONDS`.

    What recordings shorter than that leave unused is the others'.
    """
    ordered = sorted(lengths)
    for place, length in enumerate(ordered):
        share = total / (len(ordered) - place)
        if length > share:
            return min(MAX_SECONDS, max(MIN_SECONDS, share))
        total -= length
    return MAX_SECONDS


def _example(
    row: dict[str, Any], published: bytes, original: bytes | None, lengths: Sequence[float], pictured: bool
) -> Example:
    sounds = []
    for data in (published,) if original is None else (published, original):
        samples, rate = decode_flac(data)
        end = int(seconds_each(lengths, AUDIO_BYTES / (FLAC_BYTES * rate)) * rate)
        if len(samples) > end:
            samples = samples[:end]
            data = encode_flac(samples, rate)
        sounds.append((data, samples, rate))
    heard = [(samples, rate) for _, samples, rate in sounds]
    pictures = [data_uri("image/png", image) for image in _pictures(heard)] if pictured else [None] * len(heard)
    players = [
        Player(data_uri("audio/flac", data), picture, len(samples) / rate)
        for (data, samples, rate), picture in zip(sounds, pictures, strict=True)
    ]
    return Example(row, players[0], players[1] if original is not None else None)


def _pictures(sounds: Sequence[tuple[np.ndarray, int]]) -> list[bytes]:
    """PNGs of samples (n,) and their rates, on one scale of level and amplitude, so that they can be compared."""
    levels = [spectrogram_db(samples, rate) for samples, rate in sounds]
    loudest = max(float(np.max(level.db)) for level in levels)
    peak = max(float(np.max(np.abs(samples), initial=0)) for samples, _ in sounds)
    return [recording_png(samples, level, loudest, peak) for (samples, _), level in zip(sounds, levels, strict=True)]


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as a data: URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
