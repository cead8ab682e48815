"""Who is filtered out: what became of the clips of every source, split, speaker, language, length, gender and age."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechmill.ranking.removals import REMOVED
from speechmill.ranking.states import STATES
from speechmill.report.parts import Part
from speechmill.utils.statistics import newcombe, wilson
from speechmill.utils.text import plain

SPEAKER = "speaker_id"
# Column -> what a page calls it.
DIMENSIONS = {
    "source": "source",
    "source_split": "split",
    SPEAKER: "speaker",
    "language": "language",
    "input_duration": "duration",
    "gender": "gender",
    "age": "age",
}
COLUMNS = (*DIMENSIONS, "state", "criterion")
EDGES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)  # seconds of decoded input; the last bin is open
BINS = (*(f"{low:g}–{high:g} s" for low, high in pairwise(EDGES)), f"{EDGES[-1]:g} s or more")
MAX_VALUES = 200_000  # of a dimension that are kept apart: some 100 MB where they are names of 128 letters
SHOWN = 20
NAME_LENGTH = 256  # characters by which values are told apart
SHOWN_LENGTH = 80
LARGEST = 0.01  # of the speakers
FEW = 10  # clips: fewer stand out from nothing
STANDS_OUT = 0.1  # accepted share that differs so much from the rest
# Cramér's V from which groups are said to differ; Cohen 1988, section 7.2, of tables with two rows.
WORDS = ((0.5, "very different"), (0.3, "different"), (0.1, "slightly different"), (0.0, "alike"))
CHANCE = "may be chance"
SIGNIFICANT = 0.05
DIGITS = 6
ACCEPTED = STATES.index("accepted")


class Groups:
    """Clips and seconds by state of each value of a dimension, of at most `most` values.

    Of more values every second one is let go, by its hash and with all its clips, as often as needed: those that are
    kept are a random sample of the values (`share` of them), each with all its clips. What is kept depends on the
    values alone, not on their order or grouping.
    """

    def __init__(self, most: int = MAX_VALUES):
        self.share = 1.0
        self.clips = np.zeros((0, len(STATES)), np.int64)
        self.seconds = np.zeros((0, len(STATES)))
        self._most = most
        self._place: dict[str | None, int] = {}

    @property
    def values(self) -> list[str | None]:
        """The values (G,) that are kept, None for clips without one, in the order of the rows (G, 4)."""
        return list(self._place)

    def add(self, values: Sequence[str | None], clips: np.ndarray, seconds: np.ndarray) -> None:
        """Take in what is known of values (G,): clips and seconds (G, 4)."""
        if self.share < 1:
            kept = [index for index, value in enumerate(values) if self._is_kept(value)]
            values, clips, seconds = [values[index] for index in kept], clips[kept], seconds[kept]
        place = np.array([self._place.setdefault(value, len(self._place)) for value in values], np.intp)
        more = len(self._place) - len(self.clips)
        if more > 0:
            room = ((0, more), (0, 0))
            self.clips, self.seconds = np.pad(self.clips, room), np.pad(self.seconds, room)
        np.add.at(self.clips, place, clips)
        np.add.at(self.seconds, place, seconds)
        while len(self._place) > self._most:
            self.share /= 2
            kept = [index for index, value in enumerate(self._place) if self._is_kept(value)]
            held = self.values
            self._place = {held[index]: number for number, index in enumerate(kept)}
            self.clips, self.seconds = self.clips[kept], self.seconds[kept]

    def _is_kept(self, value: str | None) -> bool:
        if value is None:
            return True
        return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "big") < self.share * 2**64


class Breakdown:
    """The groups of every dimension, filled from parts of ranking tables.

    Clips that somebody asked to have removed are in none of them, nor are batches that failed, which have no table.
    """

    def __init__(self, most: int = MAX_VALUES):
        self.clips = np.zeros(len(STATES), np.int64)
        self.seconds = np.zeros(len(STATES))
        self.groups = {column: Groups(most) for column in DIMENSIONS}

    def add(self, part: Part) -> None:
        """Take in rows of ranking tables, which may lack a column of `DIMENSIONS`."""
        wanted = (part.state >= 0) & ~part.has_criterion(REMOVED)
        table = part.table if wanted.all() else part.table.select(self._there(part)).filter(pa.array(wanted))
        states, seconds = part.state[wanted].astype(np.intp), part.numbers("input_duration")[wanted]
        known = np.nan_to_num(seconds)
        clips, total = _by_state(np.zeros(len(states), np.intp), 1, states, known)
        self.clips, self.seconds = self.clips + clips[0], self.seconds + total[0]
        for column, groups in self.groups.items():
            if column == "input_duration":
                values: list[str | None] = [*BINS, None]
                bins = np.maximum(np.searchsorted(EDGES, seconds, side="right") - 1, 0)
                codes = np.where(np.isnan(seconds), len(BINS), bins)
            elif column in table.column_names:
                encoded = pc.dictionary_encode(table[column].combine_chunks(), null_encoding="encode")
                values = pc.utf8_slice_codeunits(encoded.dictionary, 0, NAME_LENGTH).to_pylist()
                codes = encoded.indices.to_numpy()
            else:
                values, codes = [None], np.zeros(len(states), np.intp)
            groups.add(values, *_by_state(codes, len(values), states, known))

    def _there(self, part: Part) -> list[str]:
        return [name for name in self.groups if name in part.table.column_names]


def _by_state(codes: np.ndarray, groups: int, states: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips and seconds (groups, 4) of clips (N,) by group and state."""
    cells, shape = codes * len(STATES) + states, (groups, len(STATES))
    clips = np.bincount(cells, minlength=groups * len(STATES)).reshape(shape)
    return clips, np.bincount(cells, seconds, groups * len(STATES)).reshape(shape)


def breakdown_of(found: Breakdown) -> dict[str, Any]:
    """What report/summary.json and the page say of it: `clips`, `hours` (by state) and `dimensions`, ready for JSON.

    A dimension with less than two values is left out. Each has `name`, `column`, `values` (how many, about so many
    where `sampled` is below 1: the share of the values that rows and figures are of), `cramers_v`, `word`, and `rows`:
    the 20 values with the most clips, or the bins of duration in their order (`kind` is value), the clips without one
    (none), and all others together (others). Hours are of decoded input. Of each row the share of its clips that was accepted has a Wilson
    interval and a difference to all other clips of the corpus; it `stands_out` where that is large, the 95 % interval
    of the difference is not around 0, and `word` does not say that the groups may be alike. Clips of a speaker are alike, so that intervals are rather too narrow.

    `cramers_v` is the association of value and acceptance over all clips that have a value, corrected for what chance
    alone gives to many small groups (Bergsma, Journal of the Korean Statistical Society 42, 2013). `word` says what
    it means, or that a chi-square test (5 %) does not tell the groups apart.

    The speakers have `with_accepted`, how many have an accepted clip, and `largest_share`: of the accepted hours, what
    the 1 % of the speakers with the most of them have, which are `largest` ones.
    """
    return {
        "clips": _named(found.clips, int),
        "hours": _named(found.seconds / 3600, _rounded),
        "dimensions": [
            _dimension(column, groups, found) for column, groups in found.groups.items() if _has_values(groups)
        ],
    }


def _has_values(groups: Groups) -> bool:
    """Whether there are two values at least that clips have."""
    return sum(value is not None and count > 0 for value, count in zip(groups.values, _sizes(groups), strict=True)) > 1


def _sizes(groups: Groups) -> list[int]:
    return groups.clips.sum(1).tolist()


def _dimension(column: str, groups: Groups, found: Breakdown) -> dict[str, Any]:
    values, sizes = groups.values, _sizes(groups)
    there = [index for index, value in enumerate(values) if value is not None and sizes[index]]
    if column == "input_duration":
        there.sort(key=lambda index: BINS.index(str(values[index])))
    else:
        there.sort(key=lambda index: (-sizes[index], str(values[index])))
    clips, seconds = groups.clips[there], groups.seconds[there]
    effect, word = association(clips[:, ACCEPTED], clips.sum(1))
    result = {
        "name": DIMENSIONS[column],
        "column": column,
        "values": round(len(there) / groups.share),
        "sampled": groups.share,
        "cramers_v": _rounded(effect),
        "word": word,
        "rows": list(_rows(column, groups, there, found, word != CHANCE)),
    }
    if column == SPEAKER:
        heard = np.sort(seconds[:, ACCEPTED])[::-1]
        largest = math.ceil(LARGEST * len(heard))
        result["with_accepted"] = round(np.count_nonzero(clips[:, ACCEPTED]) / groups.share)
        result["largest_share"] = _rounded(float(heard[:largest].sum() / heard.sum())) if heard.sum() else None
        result["largest"] = round(largest / groups.share)
    return result


def _rows(
    column: str, groups: Groups, there: list[int], found: Breakdown, told_apart: bool
) -> Iterator[dict[str, Any]]:
    values = groups.values
    none = values.index(None) if None in values else None
    shown = there[: len(BINS) if column == "input_duration" else SHOWN]
    total = np.zeros(len(STATES), np.int64), np.zeros(len(STATES))
    for index in [*shown, *([none] if none is not None and groups.clips[none].any() else [])]:
        total = total[0] + groups.clips[index], total[1] + groups.seconds[index]
        yield _row("value", values[index], groups.clips[index], groups.seconds[index], found, told_apart)
    others = found.clips - total[0]
    if others.any():  # also those of values that were let go
        yield _row("others", None, others, np.maximum(found.seconds - total[1], 0.0), found, told_apart)


def _row(
    kind: str, value: str | None, clips: np.ndarray, seconds: np.ndarray, found: Breakdown, told_apart: bool
) -> dict[str, Any]:
    count, accepted = int(clips.sum()), int(clips[ACCEPTED])
    rest, rest_accepted = int(found.clips.sum()) - count, int(found.clips[ACCEPTED]) - accepted
    low, high = wilson(accepted, count)
    difference = accepted / count - rest_accepted / rest if rest else None
    least, most = newcombe(accepted, count, rest_accepted, rest) if rest else (0.0, 0.0)
    apart = min(count, rest) >= FEW and (least > 0 or most < 0)
    return {
        "kind": "none" if kind == "value" and value is None else kind,
        "value": None if value is None else plain(value, SHOWN_LENGTH),
        "clips": _named(clips, int),
        "hours": _named(seconds / 3600, _rounded),
        "accepted_share": _rounded(accepted / count),
        "low": _rounded(low),
        "high": _rounded(high),
        "difference": _rounded(difference),
        "stands_out": told_apart and apart and difference is not None and abs(difference) >= STANDS_OUT,
    }


def association(accepted: np.ndarray, clips: np.ndarray) -> tuple[float | None, str]:
    """Cramér's V, corrected for bias, of groups and acceptance, and a word for it; both by group (G,), clips > 0.

    None where all clips are accepted, or none is, or there are fewer than two groups.
    """
    from scipy.special import chdtrc

    total, share = int(clips.sum()), accepted.sum() / max(1, clips.sum())
    if len(clips) < 2 or not 0 < share < 1:
        return None, WORDS[-1][1]
    statistic = float(np.sum((accepted - clips * share) ** 2 / clips) / (share * (1 - share)))
    groups = len(clips)
    phi2 = max(0.0, statistic / total - (groups - 1) / (total - 1))
    smaller = min(groups - (groups - 1) ** 2 / (total - 1), 2 - 1 / (total - 1)) - 1
    effect = min(1.0, math.sqrt(phi2 / smaller)) if smaller > 0 else 0.0
    if chdtrc(groups - 1, statistic) >= SIGNIFICANT:
        return effect, CHANCE
    return effect, next(word for least, word in WORDS if effect >= least)


def _named(by_state: np.ndarray, number: Any) -> dict[str, Any]:
    return {"input": number(by_state.sum()), **{s: number(v) for s, v in zip(STATES, by_state.tolist(), strict=True)}}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), DIGITS)
