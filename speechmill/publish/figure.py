"""The figure of the data set card: histograms of accepted and rejected clips, as one PNG.

It shows clips that were judged by their quality. Clips without a closeness, held-out clips and removals are left out.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.metrics import Metric, all_metrics
from speechmill.ranking.profile import FrozenProfile
from speechmill.report.parts import NOT_JUDGED, READ_ROWS
from speechmill.report.plots import (
    BLUE,
    CLOSENESS_BINS,
    INK,
    VERMILION,
    axis_label,
    bin_edges,
    binned,
    count_axis,
    new_figure,
    value_axis,
)
from speechmill.utils.statistics import Distribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "assets/metrics.png"  # below the data set
SHOWN = 6  # metrics besides closeness and duration
STATES = ("accepted", "rejected")
COLUMNS = 3
MERGED = 2  # so many bins of the report's charts, which are wider, become one
WIDTH_IN, ROW_IN, LEGEND_IN = 9.0, 2.2, 0.4
DPI = 200  # 1,800 pixels wide, for high-resolution screens that show it 900 wide
DURATION = Metric("duration", "s", 0, 3600, "target", "Length of the published clip", "decoded")

Histograms = Mapping[str, Mapping[str, Distribution]]  # column -> state -> values


def write_figure(
    sink: BinaryIO, ranking_files: Iterable[Path], profile: Mapping[str, Any], summary: Mapping[str, Any]
) -> None:
    """Write the figure of a run as PNG.

    Args:
        sink: a binary file.
        ranking_files: ranking tables of all batches.
        profile, summary: contents of ranking/profile.json and report/summary.json.

    Raises:
        ConfigError: the profile was edited after it was frozen.
    """
    frozen = FrozenProfile.from_json(dict(profile))
    found = count_histograms(ranking_files, figure_metrics(frozen, summary["metrics"]))
    sink.write(metrics_figure(found, frozen, all_metrics()))


def figure_metrics(profile: FrozenProfile, measured: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """The metrics that the figure shows: at most `SHOWN` of those that clips are judged by, the heaviest first.

    The heaviest metric of each group comes before the second of any group, because the metrics of a group are similar.
    Metrics that only have a gate come last. `measured` maps names to quantiles, as in the summary. A metric without a
    median is left out.
    """
    seen: set[str] = set()
    ranks = {}
    for criterion in sorted(profile.criteria, key=lambda c: (-c.weight, c.metric)):
        ranks[criterion.metric] = (criterion.group in seen, -criterion.weight)
        seen.add(criterion.group)
    names = [*sorted(ranks, key=lambda name: (ranks[name], name)), *(gate.metric for gate in profile.gates)]
    return [n for n in dict.fromkeys(names) if measured.get(n, {}).get("p50") is not None][:SHOWN]


def count_histograms(ranking_files: Iterable[Path], metrics: Sequence[str]) -> Histograms:
    """Distributions of closeness, duration and `metrics` over the ranked clips, by state.

    Memory does not grow with the number of clips (`Distribution`). The order of clips and files does not matter.
    """
    found = {name: {state: Distribution() for state in STATES} for name in ("closeness", "duration", *metrics)}
    for path in ranking_files:
        with pq.ParquetFile(path) as file:
            there = [name for name in found if name in file.schema_arrow.names]
            for part in file.iter_batches(batch_size=READ_ROWS, columns=["state", "criterion", *there]):
                table = pa.Table.from_batches([part])
                judged = pc.invert(pc.is_in(table["criterion"], value_set=pa.array(NOT_JUDGED)))
                ranked = table.filter(pc.and_(judged, pc.is_valid(table["closeness"])))
                for state in STATES:
                    rows = ranked.filter(pc.equal(ranked["state"], state))
                    for name in there:
                        found[name][state].add(pc.cast(rows[name], pa.float64()).to_numpy())
    return found


def metrics_figure(found: Histograms, profile: FrozenProfile, declared: Mapping[str, Metric]) -> bytes:
    """PNG with a histogram of each column of `found`, closeness first. The same numbers give the same bytes.

    A metric that is not in `declared` has no unit. Accepted clips are drawn as an area, rejected ones as a line, so
    that the states differ in shape and in colour.
    """
    others = [name for name in found if name != "closeness"]
    rows = -(-(2 + len(others)) // COLUMNS)  # closeness is two columns wide
    with new_figure(WIDTH_IN, rows * ROW_IN + LEGEND_IN, DPI) as figure:
        grid = figure.add_gridspec(rows, COLUMNS)
        handles = _closeness(figure.add_subplot(grid[0, :2]), found["closeness"], profile.threshold)
        for cell, name in enumerate(others, start=2):
            axes = figure.add_subplot(grid[divmod(cell, COLUMNS)])
            _metric(axes, name, found[name], profile, DURATION if name == "duration" else declared.get(name))
        labels = [f"{state} ({found['closeness'][state].count:,} scored clips)" for state in STATES]
        figure.legend(handles, [*labels, "threshold or gate"], loc="outside upper left", ncols=3, frameon=False)
        data = io.BytesIO()
        figure.savefig(data, format="png", metadata={"Software": None})  # it would contain matplotlib's version
    return data.getvalue()


def _closeness(axes: Axes, found: Mapping[str, Distribution], threshold: float) -> list[Any]:
    """Draw the histogram of closeness; returns the legend handles of accepted, rejected and threshold."""
    edges = np.linspace(0, 1, CLOSENESS_BINS + 1)
    handles = _draw(axes, {state: binned(found[state], edges) for state in STATES}, edges)
    handles.append(_limit(axes, threshold))
    axes.set_xlim(0, 1)
    axes.set_xlabel("closeness to the ideal (0 worst, 1 best)")
    count_axis(axes)
    return handles


def _metric(
    axes: Axes, name: str, found: Mapping[str, Distribution], profile: FrozenProfile, metric: Metric | None
) -> None:
    gates = [gate for gate in profile.gates if gate.metric == name]
    criteria = [criterion for criterion in profile.criteria if criterion.metric == name]
    logarithmic = any(criterion.scale == "log10" for criterion in criteria)
    edges = bin_edges([found[state] for state in STATES], gates, criteria, logarithmic, metric)[::MERGED]
    _draw(axes, {state: _percent(binned(found[state], edges)) for state in STATES}, edges)
    for gate in gates:
        for limit in (gate.min, gate.max):
            if limit is not None:
                _limit(axes, limit)
    value_axis(axes, edges, logarithmic, 5)
    axes.set_xlabel(axis_label(_short(name), metric))
    axes.set_ylabel("share of clips (%)")
    axes.set_ylim(bottom=0, top=None if axes.dataLim.y1 > 0 else 1)
    axes.locator_params(axis="y", nbins=4)


def _draw(axes: Axes, heights: Mapping[str, np.ndarray], edges: np.ndarray) -> list[Any]:
    """Draw heights (B,) between edges (B + 1,): accepted as an area, rejected as a line over it."""
    area = axes.stairs(heights["accepted"], edges, fill=True, color=BLUE, alpha=0.45, linewidth=0)
    line = axes.stairs(heights["rejected"], edges, color=VERMILION, linewidth=1.6)
    return [area, line]


def _limit(axes: Axes, value: float) -> Any:
    return axes.axvline(value, color=INK, linewidth=1.3, linestyle=(0, (4, 2)), clip_on=False)


def _percent(counts: np.ndarray) -> np.ndarray:
    return 100 * counts / max(counts.sum(), 1)


def _short(name: str, length: int = 32) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
