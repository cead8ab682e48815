"""Charts and spectrograms: the same bytes from the same numbers, in colours that colour-blind people tell apart."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.colors
import numpy as np

from speechmill.metrics import INPUT_PREFIX, Metric
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate
from speechmill.report.summary import Distribution, Overview

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

BLUE, SKY, GREEN, ORANGE, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"  # Okabe & Ito
INK, GREY, LINE = "#1b2430", "#55606e", "#c3cad3"
BINS = 40
CLOSENESS_BINS = 50
SHOWN = (0.005, 0.995)  # quantiles between which a histogram shows every value where it is
RANGE_DB = 70.0  # of a spectrogram's colours, down from the loudest point
COLOUR_MAP = "magma_r"
WINDOW_S, HOP_S, MAX_FRAMES = 0.032, 0.008, 700
PNG_COLOURS, PNG_GREYS = 52, 12
DPI = 150  # of spectrograms
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


@dataclass(frozen=True)
class Spectrogram:
    """Levels in dB (F, T), at frequencies 0 .. `nyquist` Hz and times 0 .. `seconds`."""

    db: np.ndarray
    nyquist: float
    seconds: float


@contextmanager
def new_figure(width: float, height: float, dpi: int = 72) -> Iterator[Figure]:
    """A figure of so many inches, apart from pyplot's global state and from anybody's own style file."""
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def _svg(figure: Figure) -> bytes:
    data = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(data, format="svg", metadata=nothing, transparent=True)
    # Laid out with matplotlib's font, shown in the page's.
    return data.getvalue().replace(b"'DejaVu Sans'", b"system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif")


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


def closeness_chart(found: Overview, threshold: float, width: float) -> Chart:
    """Histogram of the ranked clips' closeness, by what became of them, with the threshold; `width` in inches."""
    parts = (("accepted", "accepted", GREEN), ("closeness", "below", VERMILION), ("gate", "failed a gate", GREY))
    edges = np.linspace(0, 1, CLOSENESS_BINS + 1)
    below = np.zeros(CLOSENESS_BINS)
    with new_figure(width, 2.6) as figure:
        axes = figure.add_subplot()
        for name, _, colour in parts:
            above = below + binned(found.closeness[name], edges)
            axes.stairs(above, edges, baseline=below, fill=True, color=colour, linewidth=0)
            below = above
        axes.axvline(threshold, color=INK, linewidth=1.5, linestyle=(0, (4, 2)))
        axes.set_xlim(0, 1)
        axes.set_xlabel("closeness to the ideal (0 worst, 1 best)")
        count_axis(axes)
        svg = _svg(figure)
    counts = ", ".join(f"{found.closeness[name].count} {label}" for name, label, _ in parts)
    return Chart("Closeness", svg, f"Histogram of closeness with the threshold at {number(threshold)}: {counts}.")


def metric_charts(found: Overview, profile: FrozenProfile, declared: Mapping[str, Metric]) -> list[Chart]:
    """A histogram per metric over the ranked clips; a metric of the input shares that of the published clip.

    Those that the profile ranks or gates by come first, by weight. Metrics that nobody declares have no unit.
    """
    weights = {criterion.metric: criterion.weight for criterion in profile.criteria}
    weights = {gate.metric: 0.0 for gate in profile.gates} | weights
    panels: dict[str, list[str]] = {}
    for name in sorted(found.metrics, key=lambda name: (not name.startswith(INPUT_PREFIX), name)):
        base = name.removeprefix(INPUT_PREFIX)
        panels.setdefault(base if base in found.metrics else name, []).append(name)
    order = sorted(panels, key=lambda title: (-max(weights.get(name, -1.0) for name in panels[title]), title))
    return [_metric_chart(title, panels[title], found, profile, declared) for title in order]


def _metric_chart(
    title: str, panel: list[str], found: Overview, profile: FrozenProfile, declared: Mapping[str, Metric]
) -> Chart:
    metric = declared.get(title)
    unit = "" if metric is None or metric.unit == "1" else metric.unit
    gates = [gate for gate in profile.gates if gate.metric in panel]
    criteria = [criterion for criterion in profile.criteria if criterion.metric in panel]
    series = {name: found.metrics[name] for name in panel if found.metrics[name].count}
    logarithmic = any(criterion.scale == "log10" for criterion in criteria)
    edges = bin_edges(list(series.values()), gates, criteria, logarithmic, metric)
    with new_figure(3.5, 2.1) as figure:
        axes = figure.add_subplot()
        for name, values in series.items():
            # With two of them, the input is an area and what is published a line over it.
            area = name.startswith(INPUT_PREFIX) or len(series) == 1
            colour = SKY if name.startswith(INPUT_PREFIX) else BLUE
            counts = binned(values, edges)
            axes.stairs(counts, edges, fill=area, color=colour, linewidth=0 if area else 1.6)
        _draw_limits(axes, gates, criteria, edges)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(f"{title} ({unit})" if unit else title)
        if not logarithmic:
            axes.locator_params(axis="x", nbins=6)
        count_axis(axes)
        svg = _svg(figure)
    spread = [_spread(name if len(panel) > 1 else "", values, unit) for name, values in series.items()]
    notes = [
        *(_gate_note(gate, found.failed_gates[gate.metric], unit) for gate in gates),
        *(_criterion_note(criterion, unit) for criterion in criteria),
    ]
    if not series:
        notes.append("No ranked clip has a value.")
    alt = f"Histogram of {title}. " + " ".join([*spread, *notes])
    return Chart(title, svg, alt, metric.description if metric else "", [*spread, *notes])


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


def _draw_limits(axes: Axes, gates: list[Gate], criteria: list[Criterion], edges: np.ndarray) -> None:
    for criterion in criteria:
        if criterion.ideal is not None:
            axes.axvspan(*criterion.ideal, color=GREEN, alpha=0.12, linewidth=0, zorder=0)
        for bound in (criterion.low, criterion.high):
            axes.axvline(bound, color=GREY, linewidth=1, linestyle=(0, (1, 1.6)))
    for gate in gates:
        for limit, beyond in ((gate.min, edges[0]), (gate.max, edges[-1])):
            if limit is not None:
                axes.axvspan(*sorted((limit, float(beyond))), color=VERMILION, alpha=0.1, linewidth=0, zorder=0)
                axes.axvline(limit, color=VERMILION, linewidth=1.5)


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


def spectrogram_db(samples: np.ndarray, rate: int) -> Spectrogram:
    """Short-time Fourier magnitudes of samples (n,), 32 ms Hann windows, in dB re a full-scale sine."""
    size = round(WINDOW_S * rate)
    padded = np.pad(samples, (0, max(0, size - len(samples))))
    hop = max(round(HOP_S * rate), math.ceil(len(padded) / MAX_FRAMES))
    window = np.hanning(size)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    magnitude = np.abs(np.fft.rfft(frames * window, axis=1)).T * (2 / window.sum())
    return Spectrogram(20 * np.log10(np.maximum(magnitude, 1e-7)), rate / 2, len(samples) / rate)


def spectrogram_png(spectrogram: Spectrogram, loudest: float) -> bytes:
    """PNG of a spectrogram with axes; the colours span `RANGE_DB` down from `loudest` (dB)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    with new_figure(4.0, 1.6, DPI) as figure:
        axes = figure.add_subplot()
        axes.grid(False)
        axes.imshow(
            spectrogram.db,
            origin="lower",
            aspect="auto",
            extent=(0, max(spectrogram.seconds, 1e-3), 0, spectrogram.nyquist / 1000),
            cmap=COLOUR_MAP,
            vmin=loudest - RANGE_DB,
            vmax=loudest,
        )
        axes.set_xlabel("time (s)")
        axes.set_ylabel("frequency (kHz)")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    data = io.BytesIO()
    Image.fromarray(pixels).quantize(palette=_palette(), dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    return data.getvalue()


def _palette() -> Image:
    """The colours of a spectrogram and of its axes: a third of the bytes of full colour."""
    from PIL import Image

    colours = matplotlib.colormaps[COLOUR_MAP](np.linspace(0, 1, PNG_COLOURS))[:, :3]
    ink = np.array(matplotlib.colors.to_rgb(GREY))
    shades = 1 - np.linspace(0, 1, PNG_GREYS)[:, None] * (1 - ink)
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * np.concatenate([shades, colours])).astype(np.uint8).tobytes())
    return palette


def level_scale() -> Chart:
    """The colours of all spectrograms."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    with new_figure(3.6, 0.62) as figure:
        axes = figure.add_subplot()
        axes.grid(False)
        colours = ScalarMappable(Normalize(-RANGE_DB, 0), COLOUR_MAP)
        bar = figure.colorbar(colours, cax=axes, orientation="horizontal")
        bar.outline.set_visible(False)
        bar.set_label("level (dB re the loudest point of the clip)")
        svg = _svg(figure)
    return Chart(
        "Level",
        svg,
        f"Colours of the spectrograms: light is {RANGE_DB:.0f} dB below the loudest point, dark is loudest.",
    )
