"""The clips of the listening audit: a stratified random sample that people judge without seeing the decisions.

Strata cut the ranked clips by their decision and by how near the threshold is: where closeness decides, a sample drawn
evenly would have few clips where the threshold could matter. Clips that are neither accepted nor rejected by closeness
or a gate are in none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.report.examples import Example, rows_of_clips
from speechmill.report.smallest import Smallest
from speechmill.report.summary import NOT_JUDGED, Distribution

FORMAT, VERSION = "speechmill-audit", 1
MAX_CLIPS = 200  # of a sheet
# Stratum -> its part of the sample.
STRATA = {"far above": 2, "just above": 3, "just below": 3, "far below": 2, "gate": 2}
ACCEPTED = ("far above", "just above")
NEAR = 0.25  # of the clips on either side of the threshold: these are just above or just below
READ_ROWS = 65_536
DECISION = ["state", "criterion", "closeness"]


@dataclass(frozen=True)
class Edges:
    """Closeness up to which an accepted clip is just above, and from which a rejected one is just below."""

    above: float
    below: float


def find_edges(ranking_files: Sequence[Path]) -> Edges:
    """The edges of a run's strata, whatever the order or number of its ranking tables."""
    accepted, rejected = Distribution(), Distribution()
    for _, table in parts(ranking_files, DECISION):
        closeness = _floats(table["closeness"])
        for side, mask in zip((accepted, rejected), _decisions(table)[:2], strict=True):
            side.add(closeness[mask])
    above, below = accepted.quantile(NEAR), rejected.quantile(1 - NEAR)
    return Edges(1.0 if above is None else above, 0.0 if below is None else below)


def strata(table: pa.Table, edges: Edges) -> np.ndarray:
    """The stratum of each row of a table with the columns `DECISION`, as its place in `STRATA`: int8 (N,), -1 for none."""
    accepted, rejected, gated = _decisions(table)
    closeness = _floats(table["closeness"])
    near_above, near_below = closeness <= edges.above, closeness >= edges.below
    masks = [accepted & ~near_above, accepted & near_above, rejected & near_below, rejected & ~near_below, gated]
    return np.select(masks, np.arange(len(STRATA), dtype=np.int8), np.int8(-1))


def parts(ranking_files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[Path, pa.Table]]:
    """Pieces of ranking tables, and the file of each."""
    for path in ranking_files:
        with pq.ParquetFile(path) as file:
            for part in file.iter_batches(batch_size=READ_ROWS, columns=list(columns)):
                yield path, pa.Table.from_batches([part])


def _decisions(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows (N,) of those that can be audited are accepted, rejected by closeness, rejected by a gate."""
    state, criterion = table["state"], table["criterion"]
    rejected = pc.and_(pc.equal(state, "rejected"), pc.is_valid(table["closeness"]))
    not_judged = pc.is_in(criterion, value_set=pa.array(NOT_JUDGED))
    by_closeness = pc.fill_null(pc.equal(criterion, "closeness"), False)
    return (
        pc.equal(state, "accepted").to_numpy(),
        pc.and_(rejected, by_closeness).to_numpy(),
        pc.and_not(pc.and_not(rejected, not_judged), by_closeness).to_numpy(),
    )


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return pc.cast(column, pa.float64()).to_numpy()


def choose_audit(ranking_files: Sequence[Path], count: int) -> list[dict[str, Any]]:
    """At most `count` clips to judge: [{row, stratum, clips, sampled}], `clips` being the size of the whole stratum.

    Of each stratum the clips whose reversed ids come first, as in `ranking.advice`: ids are hashes. So the choice
    depends neither on the order nor on the number of files, and a larger sample has the smaller one in it. What a small
    stratum leaves goes to the others. Two passes, in memory that does not grow with the number of clips.
    """
    if not count:
        return []
    edges = find_edges(ranking_files)
    sizes = dict.fromkeys(STRATA, 0)
    held = {name: Smallest(count) for name in STRATA}
    for path, table in parts(ranking_files, ["id", *DECISION]):
        stratum = strata(table, edges)
        for number, name in enumerate(STRATA):
            ids = table["id"].filter(pa.array(stratum == number))
            sizes[name] += len(ids)
            held[name].offer(pa.table({"key": pc.utf8_reverse(ids), "id": ids}), file=str(path))
    shares = _allot(sizes, count)
    chosen = {
        name: [] if (rows := held[name].rows) is None else rows.slice(0, shares[name]).to_pylist() for name in STRATA
    }
    rows_of = rows_of_clips({(clip["file"], clip["id"]) for clips in chosen.values() for clip in clips})
    return [
        {"row": rows_of[clip["id"]], "stratum": name, "clips": sizes[name], "sampled": shares[name]}
        for name, clips in chosen.items()
        for clip in clips
    ]


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
