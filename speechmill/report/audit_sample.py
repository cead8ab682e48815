"""The clips of the listening audit: a stratified random sample that people judge without seeing the decisions.

Strata cut the ranked clips by their decision and by how near the threshold is: where closeness decides, a sample drawn
evenly would have few clips where the threshold could matter. Clips that are neither accepted nor rejected by closeness
or a gate are in none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from speechmill.report.examples import Example, rows_of_clips
from speechmill.report.parts import NOT_JUDGED, Draw, Part, read_parts
from speechmill.utils.statistics import Distribution

FORMAT, VERSION = "speechmill-audit", 1
MAX_CLIPS = 200  # of a sheet
# Stratum -> its part of the sample.
STRATA = {"far above": 2, "just above": 3, "just below": 3, "far below": 2, "gate": 2}
ACCEPTED = ("far above", "just above")
NEAR = 0.25  # of the clips on either side of the threshold: these are just above or just below
DECISION = ["state", "criterion", "closeness"]
DECISIONS = ("accepted", "rejected", "gated")  # by closeness, but for the last
DRAWN = 2_000  # clips of each: with 25 % of them near the threshold, enough for `MAX_CLIPS`


@dataclass(frozen=True)
class Edges:
    """Closeness up to which an accepted clip is just above, and from which a rejected one is just below."""

    above: float
    below: float


def find_edges(ranking_files: Sequence[Path]) -> Edges:
    """The edges of a run's strata, whatever the order or number of its ranking tables."""
    sides = AuditEdges()
    read_parts(ranking_files, sides)
    return sides.edges()


class AuditEdges:
    """Collects the closeness of the clips that closeness decided, and of each decision the clips that are drawn first."""

    def __init__(self) -> None:
        self._accepted, self._rejected = Distribution(), Distribution()
        self._drawn = Draw(len(DECISIONS), DRAWN)

    def columns(self, names: Sequence[str]) -> Iterable[str]:
        return ["id", *DECISION]

    def add(self, part: Part) -> None:
        masks = _decisions(part)
        for side, mask in zip((self._accepted, self._rejected), masks[:2], strict=True):
            side.add(part.closeness[mask])
        groups = np.select(masks, np.arange(len(DECISIONS), dtype=np.int8), np.int8(-1))
        self._drawn.add(part, groups, ["id", "closeness"])

    def drawn(self, edges: Edges) -> dict[str, pa.Table]:
        """Of each stratum some clips that are drawn first, in that order; all of them if the decision has few clips."""
        found = {}
        for decision, pool in zip(DECISIONS, self._drawn.pools, strict=True):
            if pool.rows is None:
                continue
            closeness = pool.rows["closeness"].to_numpy()
            masks = _strata(closeness, [np.full(len(closeness), decision == name) for name in DECISIONS], edges)
            for name, mask in zip(STRATA, masks, strict=True):
                if mask.any():
                    found[name] = pool.rows.filter(pa.array(mask))
        return found

    def edges(self) -> Edges:
        above, below = self._accepted.quantile(NEAR), self._rejected.quantile(1 - NEAR)
        return Edges(1.0 if above is None else above, 0.0 if below is None else below)


def strata(part: Part, edges: Edges) -> np.ndarray:
    """The stratum of each row of a part with the columns `DECISION`, as its place in `STRATA`: int8 (N,), -1 for none."""
    masks = _strata(part.closeness, _decisions(part), edges)
    return np.select(masks, np.arange(len(STRATA), dtype=np.int8), np.int8(-1))


def _strata(
    closeness: NDArray[np.float64], decisions: Sequence[NDArray[np.bool_]], edges: Edges
) -> list[NDArray[np.bool_]]:
    """Which clips (N,) are in each of `STRATA`; `decisions` as in `DECISIONS`."""
    accepted, rejected, gated = decisions
    near_above, near_below = closeness <= edges.above, closeness >= edges.below
    return [accepted & ~near_above, accepted & near_above, rejected & near_below, rejected & ~near_below, gated]


def _decisions(part: Part) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows (N,) of those that can be audited are accepted, rejected by closeness, rejected by a gate."""
    rejected, by_closeness = part.has_state("rejected") & part.has_closeness, part.has_criterion("closeness")
    gated = rejected & ~part.has_criterion(*NOT_JUDGED) & ~by_closeness
    return part.has_state("accepted"), rejected & by_closeness, gated


def choose_audit(ranking_files: Sequence[Path], count: int, seen: AuditEdges | None = None) -> list[dict[str, Any]]:
    """At most `count` clips to judge: [{row, stratum, clips, sampled}]; `clips` is the size of the whole stratum.

    Of each stratum, the clips whose reversed ids come first are chosen, as in `ranking.advice`: ids are hashes. The
    choice does not depend on the order or number of files, and a larger sample contains the smaller one. What a small
    stratum leaves goes to the others. `seen` has read all rows of the files, if another pass did so. Memory does not
    grow with the number of clips.
    """
    if not count:
        return []
    if seen is None:
        read_parts(ranking_files, seen := AuditEdges())
    edges = seen.edges()
    sizing = _Sizes(edges)
    read_parts(ranking_files, sizing)
    sizes = dict(zip(STRATA, sizing.sizes.tolist(), strict=True))
    shares = _allot(sizes, count)
    held = seen.drawn(edges)
    if any(len(held.get(name, ())) < share for name, share in shares.items()):  # a small stratum of many clips
        sample = _Sample(edges, count)
        read_parts(ranking_files, sample)
        held = {name: pool.rows for name, pool in zip(STRATA, sample.drawn.pools, strict=True) if pool.rows is not None}
    chosen = {name: held[name].slice(0, share).to_pylist() if share else [] for name, share in shares.items()}
    rows_of = rows_of_clips({(clip["file"], clip["id"]) for clips in chosen.values() for clip in clips})
    return [
        {"row": rows_of[clip["id"]], "stratum": name, "clips": sizes[name], "sampled": shares[name]}
        for name, clips in chosen.items()
        for clip in clips
    ]


class _Sizes:
    """Counts the clips of each stratum."""

    def __init__(self, edges: Edges):
        self.sizes = np.zeros(len(STRATA), np.int64)
        self._edges = edges

    def columns(self, names: Sequence[str]) -> Iterable[str]:
        return DECISION

    def add(self, part: Part) -> None:
        of = strata(part, self._edges)
        self.sizes += np.bincount(of[of >= 0], minlength=len(STRATA))


class _Sample:
    """Draws from each stratum."""

    def __init__(self, edges: Edges, count: int):
        self.drawn = Draw(len(STRATA), count)
        self._edges = edges

    def columns(self, names: Sequence[str]) -> Iterable[str]:
        return ["id", *DECISION]

    def add(self, part: Part) -> None:
        self.drawn.add(part, strata(part, self._edges), ["id"])


def _allot(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """How many clips of each stratum: one by one, to the stratum that is furthest behind its part and has more."""
    given = dict.fromkeys(sizes, 0)
    for _ in range(min(count, sum(sizes.values()))):
        name = min((name for name in sizes if given[name] < sizes[name]), key=lambda n: (given[n] + 1) / STRATA[n])
        given[name] += 1
    return given


def audit_sheet(
    chosen: Sequence[Mapping[str, Any]], examples: Sequence[Example], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page needs for the sheet, ready for JSON; `examples` are those of `chosen`, in its order.

    `clips` are in the order in which to show them. `published` and `original` are data: URIs, the latter None where
    the clip is published as it was. `first` says which of them is to be played as A; `seconds` of the
    `whole` are there. Order and `first` come from the
    ids alone: neither tells anything about the decision.
    """
    clips = [
        {
            "id": one["row"]["id"],
            "stratum": one["stratum"],
            "clips": one["clips"],
            "sampled": one["sampled"],
            "published": example.published.audio,
            "original": None if example.original is None else example.original.audio,
            "seconds": example.published.seconds,
            "whole": one["row"]["duration"] or 0.0,
            "first": "published" if _draw("first", one["row"]["id"])[-1] in "02468ace" else "original",
        }
        for one, example in zip(chosen, examples, strict=True)
    ]
    facts = {name: summary[name] for name in ("dataset", "profile_sha256", "threshold", "source_revision")}
    ordered = sorted(clips, key=lambda clip: _draw("order", clip["id"]))
    return {"format": FORMAT, "version": VERSION, **facts, "clips": ordered}


def _draw(purpose: str, clip_id: str) -> str:
    return hashlib.sha256(f"{purpose} {clip_id}".encode()).hexdigest()
