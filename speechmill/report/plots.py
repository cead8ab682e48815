"""Charts: the same bytes from the same numbers, in colours that colour-blind people tell apart.

What draws into axes returns the handles of a legend (label -> artist): the page explains colours beside its charts, a
file of its own has to in the picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from speechmill.metrics import INPUT_PREFIX, Metric
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate
from speechmill.report.summary import Overview
from speechmill.utils.statistics import Distribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, SKY, GREEN, ORANGE, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"  # Okabe & Ito
INK, GREY, LINE = "#1b2430", "#55606e", "#c3cad3"
BINS = 40
CLOSENESS_BINS = 50
SHOWN = (0.005, 0.995)  # quantiles between which a histogram shows every value where it is
OUTCOMES = (
    ("accepted", "accepted", GREEN),
    ("closeness", "below the threshold", VERMILION),
    ("gate", "failed a gate, or kept out", GREY),
)
Handles: TypeAlias = dict[str, Any]  # of a legend
STYLE: Any = {
    "svg.hashsalt": "speechmill",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": GREY,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.formatter.useoffset": False,
    "grid.color": "#e6e9ee",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Chart:
    """An SVG image, what it shows in words for who cannot see it, and what to read beside it."""

    title: str
    svg: bytes
    alt: str
    about: str = ""
    notes: list[str] = field(default_factory=list)


@contextmanager
def new_figure(width: float, height: float, dpi: int = 72) -> Iterator[Figure]:
    """A figure of so many inches, apart from pyplot's global state and from anybody's own style file."""
    import matplotlib  # here: what draws nothing does not wait for it
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def svg(figure: Figure, fonts: str, transparent: bool) -> bytes:
    """SVG of a figure, laid out with matplotlib's font and shown in the first of `fonts` that there is."""
    data = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(data, format="svg", metadata=nothing, transparent=transparent)
    return data.getvalue().replace(b"'DejaVu Sans'", fonts.encode())


def page_svg(figure: Figure) -> bytes:
    """SVG that looks like the page around it."""
    return svg(figure, "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", transparent=True)


def number(value: float, digits: int = 4) -> str:
    """A number with so many significant digits, without an exponent where people expect none."""
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"
    return text.replace("-", "−")


def binned(distribution: Distribution, edges: np.ndarray) -> np.ndarray:
    """Values per bin (B,); what lies beyond the edges is counted in the outermost bins."""
    values, counts = distribution.steps()
    return np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges, weights=counts)[0]


def count_axis(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_ylabel("clips")
    axes.set_ylim(bottom=0, top=None if axes.dataLim.y1 > 0 else 1)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def axis_label(name: str, metric: Metric | None) -> str:
    """A metric's name with its unit, or with its range where it has no unit; the name alone if nobody declares it."""
    if metric is None:
        return name
    return f"{name} ({f'{metric.low:g} to {metric.high:g}' if metric.unit == '1' else metric.unit})"


def draw_closeness(axes: Axes, found: Overview, threshold: float) -> Handles:
    """Histogram of the ranked clips' closeness, by what became of them, with the threshold."""
    edges = np.linspace(0, 1, CLOSENESS_BINS + 1)
    below = np.zeros(CLOSENESS_BINS)
    handles: Handles = {}
    for name, label, colour in OUTCOMES:
        above = below + binned(found.closeness[name], edges)
        handles[label] = axes.stairs(above, edges, baseline=below, fill=True, color=colour, linewidth=0)
        below = above
    handles[f"threshold {number(threshold)}"] = axes.axvline(threshold, color=INK, linewidth=1.5, linestyle=(0, (4, 2)))
    axes.set_xlim(0, 1)
    axes.set_xlabel("closeness to the ideal (0 worst, 1 best)")
    count_axis(axes)
    return handles


def closeness_chart(found: Overview, threshold: float, width: float) -> Chart:
    """`draw_closeness` for the page; `width` in inches."""
    with new_figure(width, 2.6) as figure:
        draw_closeness(figure.add_subplot(), found, threshold)
        image = page_svg(figure)
    counts = ", ".join(f"{found.closeness[name].count} {label}" for name, label, _ in OUTCOMES)
    return Chart("Closeness", image, f"Histogram of closeness with the threshold at {number(threshold)}: {counts}.")


@dataclass(frozen=True)
class Panel:
    """What the histogram of a metric shows: of the published clips and of the input, if both are measured."""

    title: str
    metric: Metric | None  # None if nobody declares it
    names: list[str]
    series: dict[str, Distribution]  # those of `names` that have values
    gates: list[Gate]
    criteria: list[Criterion]


def metric_panels(found: Overview, profile: FrozenProfile, declared: Mapping[str, Metric]) -> list[Panel]:
    """All metrics of the ranked clips; a metric of the input shares the panel of the published clip.

    Those that the profile ranks or gates by come first, by weight. Metrics that nobody declares have no unit.
    """
    weights = {criterion.metric: criterion.weight for criterion in profile.criteria}
    weights = {gate.metric: 0.0 for gate in profile.gates} | weights
    panels: dict[str, list[str]] = {}
    for name in sorted(found.metrics, key=lambda name: (not name.startswith(INPUT_PREFIX), name)):
        base = name.removeprefix(INPUT_PREFIX)
        panels.setdefault(base if base in found.metrics else name, []).append(name)
    order = sorted(panels, key=lambda title: (-max(weights.get(name, -1.0) for name in panels[title]), title))
    return [
        Panel(
            title,
            declared.get(title),
            panels[title],
            {name: found.metrics[name] for name in panels[title] if found.metrics[name].count},
            [gate for gate in profile.gates if gate.metric in panels[title]],
            [criterion for criterion in profile.criteria if criterion.metric in panels[title]],
        )
        for title in order
    ]


def draw_metric(axes: Axes, panel: Panel) -> Handles:
    """Histogram of a metric with the profile's gates and bounds."""
    logarithmic = any(criterion.scale == "log10" for criterion in panel.criteria)
    edges = bin_edges(list(panel.series.values()), panel.gates, panel.criteria, logarithmic, panel.metric)
    handles: Handles = {}
    for name, values in panel.series.items():
        # With two of them, the input is an area and what is published a line over it.
        before = name.startswith(INPUT_PREFIX)
        area = before or len(panel.series) == 1
        handles["before enhancement (input)" if before else "published"] = axes.stairs(
            binned(values, edges), edges, fill=area, color=SKY if before else BLUE, linewidth=0 if area else 1.6
        )
    handles |= _draw_limits(axes, panel.gates, panel.criteria, edges)
    value_axis(axes, edges, logarithmic, 6)
    axes.set_xlabel(axis_label(panel.title, panel.metric))
    count_axis(axes)
    return handles


def value_axis(axes: Axes, edges: np.ndarray, logarithmic: bool, ticks: int) -> None:
    """The axis of a metric's values over bins with these edges (B + 1,), with about so many ticks."""
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    else:
        axes.locator_params(axis="x", nbins=ticks)
    axes.set_xlim(edges[0], edges[-1])


def metric_charts(found: Overview, profile: FrozenProfile, declared: Mapping[str, Metric]) -> list[Chart]:
    """`draw_metric` of all panels for the page, with what they say in words."""
    return [_metric_chart(panel, found) for panel in metric_panels(found, profile, declared)]


def _metric_chart(panel: Panel, found: Overview) -> Chart:
    with new_figure(3.5, 2.1) as figure:
        draw_metric(figure.add_subplot(), panel)
        image = page_svg(figure)
    metric = panel.metric
    unit = "" if metric is None or metric.unit == "1" else metric.unit
    spread = [_spread(name if len(panel.names) > 1 else "", values, unit) for name, values in panel.series.items()]
    notes = [
        *(_gate_note(gate, found.failed_gates[gate.metric], unit) for gate in panel.gates),
        *(_criterion_note(criterion, unit) for criterion in panel.criteria),
    ]
    if not panel.series:
        notes.append("No ranked clip has a value.")
    alt = f"Histogram of {panel.title}. " + " ".join([*spread, *notes])
    return Chart(panel.title, image, alt, metric.description if metric else "", [*spread, *notes])


def bin_edges(
    series: list[Distribution],
    gates: list[Gate],
    criteria: list[Criterion],
    logarithmic: bool,
    metric: Metric | None,
) -> np.ndarray:
    """Bins over nearly all values, within what the metric declares, and over all gates and bounds."""
    limits = [bound for gate in gates for bound in (gate.min, gate.max) if bound is not None]
    limits += [bound for criterion in criteria for bound in (criterion.low, criterion.high)]
    for value in (values.quantile(share) for values in series for share in SHOWN):
        if value is not None:
            limits.append(value if metric is None else min(max(value, metric.low), metric.high))
    if logarithmic:
        return np.geomspace(min(criterion.low for criterion in criteria), max(limits), BINS + 1)
    low, high = (min(limits), max(limits)) if limits else (0.0, 1.0)
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        low, high = low - max(0.5, abs(low) / 20), high + max(0.5, abs(high) / 20)
    return np.linspace(low, high, BINS + 1)


def _draw_limits(axes: Axes, gates: list[Gate], criteria: list[Criterion], edges: np.ndarray) -> Handles:
    handles: Handles = {}
    for gate in gates:
        for limit, beyond in ((gate.min, edges[0]), (gate.max, edges[-1])):
            if limit is not None:
                ends = sorted((limit, float(beyond)))
                handles["fails a gate"] = (
                    axes.axvspan(*ends, color=VERMILION, alpha=0.1, linewidth=0, zorder=0),
                    axes.axvline(limit, color=VERMILION, linewidth=1.5),
                )
    for criterion in criteria:
        for bound in (criterion.low, criterion.high):
            handles["bounds of a criterion"] = axes.axvline(bound, color=INK, linewidth=1, linestyle=(0, (1, 1.6)))
        if criterion.ideal is not None:
            handles["ideal interval"] = axes.axvspan(*criterion.ideal, color=GREEN, alpha=0.12, linewidth=0, zorder=0)
    return handles


def _spread(name: str, values: Distribution, unit: str) -> str:
    low, middle, high = (number(values.quantile(share) or 0.0, 3) for share in (0.05, 0.5, 0.95))
    whose = "" if not name else "Input: " if name.startswith(INPUT_PREFIX) else "Published: "
    text = f"{whose}median {middle}, 90 % within {low} … {high}{f' {unit}' if unit else ''}."
    return text[0].upper() + text[1:]


def _gate_note(gate: Gate, failed: int, unit: str) -> str:
    bounds = [f"{word} {number(bound)}" for word, bound in (("≥", gate.min), ("≤", gate.max)) if bound is not None]
    clips = f"{failed:,} clip fails" if failed == 1 else f"{failed:,} clips fail"
    return f"Gate on {gate.metric} {' and '.join(bounds)}{f' {unit}' if unit else ''}: {clips}."


def _criterion_note(criterion: Criterion, unit: str) -> str:
    ends = f"from {number(criterion.low)} to {number(criterion.high)}{f' {unit}' if unit else ''}"
    how = {"benefit": "more is better", "cost": "less is better"}.get(criterion.direction)
    if criterion.ideal is not None:
        how = f"best within {number(criterion.ideal[0])} … {number(criterion.ideal[1])}"
    return f"{criterion.metric} weighs {100 * criterion.weight:.0f} %, {ends}, {how}."
