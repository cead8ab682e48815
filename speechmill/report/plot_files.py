"""The report's charts as files for papers and the data set card: PNG for screens, SVG for print and for editing.

Each explains itself: units on its axes, a legend above them, no title, which is the caption's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from speechmill.errors import SpeechmillError
from speechmill.metrics import Metric
from speechmill.ranking.profile import FrozenProfile
from speechmill.report.plots import (
    BLUE,
    INK,
    ORANGE,
    VERMILION,
    Handles,
    draw_closeness,
    draw_metric,
    metric_panels,
    new_figure,
    svg,
)
from speechmill.report.summary import Overview, funnel
from speechmill.storage.files import atomic_directory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 300
WIDE, NARROW = (6.9, 3.0), (4.6, 3.0)  # inches: two columns of a paper, and a little more than one
LEGEND_COLUMNS = {WIDE: 4, NARROW: 2}
# Text stays text, to be searched and edited. Where the font is missing, the next one is as wide.
FONTS = "'DejaVu Sans', Verdana, Arial, sans-serif"
STATE_COLOURS = {"errored": INK, "rejected": VERMILION, "duplicate": ORANGE}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def write_plots(folder: Path, found: Overview, profile: FrozenProfile, declared: Mapping[str, Metric]) -> list[Path]:
    """Write closeness, funnel and metric_{name} of each metric, as .png and .svg; returns the files.

    `folder` appears complete or not at all. The same input gives the same bytes.

    Raises:
        SpeechmillError: a metric's name cannot be a file's.
    """
    draw: dict[str, tuple[tuple[float, float], Callable[[Axes], Handles]]] = {
        "closeness": (WIDE, partial(draw_closeness, found=found, threshold=profile.threshold)),
        "funnel": (WIDE, partial(draw_funnel, found=found)),
    }
    for panel in metric_panels(found, profile, declared):
        if not _NAME.fullmatch(panel.title):
            raise SpeechmillError(
                f"the metric {panel.title[:100]!r} cannot be drawn into a file of its name: "
                "letters, digits, _ and - can be in it; rename it in its metric group and score again"
            )
        draw[f"metric_{panel.title}"] = (NARROW, partial(draw_metric, panel=panel))
    names = []
    with atomic_directory(folder) as temporary:
        for name, (size, content) in draw.items():
            with new_figure(*size, DPI) as figure:
                handles = content(figure.add_subplot())
                figure.legend(
                    handles.values(),
                    handles.keys(),
                    loc="outside upper left",
                    ncols=LEGEND_COLUMNS[size],
                    frameon=False,
                )
                for ending, data in _images(figure):
                    names.append(f"{name}.{ending}")
                    (temporary / names[-1]).write_bytes(data)
    return [folder / name for name in names]


def draw_funnel(axes: Axes, found: Overview) -> Handles:
    """From all clips to the accepted ones: what each step took out and what it left."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    steps = funnel(found)
    handles: Handles = {}
    rows = range(len(steps) + 1)
    left = [found.clips["input"], *(step.left for step in steps)]
    handles["left"] = axes.barh(rows, left, height=0.7, color=BLUE, linewidth=0)
    for row, step in enumerate(steps, start=1):
        handles[step.state] = axes.barh(
            row, step.lost, left=step.left, height=0.7, color=STATE_COLOURS[step.state], linewidth=0
        )
    texts = [f"{left[0]:,}", *(f"{f'−{step.lost:,}, ' if step.lost else ''}{step.left:,} left" for step in steps)]
    for row, text in enumerate(texts):
        axes.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), va="center")
    axes.set_yticks(rows, ["Came in", *(step.title for step in steps)])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")
    axes.set_xlim(0, max(left[0], 1))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("clips")
    return handles


def _images(figure: Figure) -> Iterator[tuple[str, bytes]]:
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})  # which names matplotlib's version
    yield "png", data.getvalue()
    yield "svg", svg(figure, FONTS, transparent=False)
