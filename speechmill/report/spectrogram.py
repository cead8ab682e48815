"""The picture of a recording: waveform and spectrogram over one time axis, in few bytes."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechmill.report.plots import BLUE, GREY, Chart, new_figure, page_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

RANGE_DB = 70.0  # of a spectrogram's colours, down from the loudest point
COLOUR_MAP = "magma_r"
WINDOW_S, HOP_S, MAX_FRAMES = 0.032, 0.008, 700
PNG_COLOURS, PNG_GREYS, PNG_BLUES = 52, 12, 4
DPI = 150
WIDTH, HEIGHT = 600, 380  # pixels of a picture
LEFT, RIGHT = 110, 572  # of both axes, so that before and after stand under each other
SPECTROGRAM, WAVEFORM = (62, 240), (258, 372)  # bottom and top of each
LABEL = 62  # pixels from the axes
LEAST_PEAK = 0.01  # silence is a line, not noise that fills the picture


@dataclass(frozen=True)
class Spectrogram:
    """Levels in dB (F, T), at frequencies 0 .. `nyquist` Hz and at times 0, `hop` .. of `seconds`."""

    db: np.ndarray
    nyquist: float
    hop: float
    seconds: float


def spectrogram_db(samples: np.ndarray, rate: int) -> Spectrogram:
    """Short-time Fourier magnitudes of samples (n,), 32 ms Hann windows, in dB re a full-scale sine."""
    size = round(WINDOW_S * rate)
    hop = max(round(HOP_S * rate), math.ceil(len(samples) / MAX_FRAMES))
    padded = np.pad(samples, (size // 2, size - size // 2))  # a window's middle is its time
    window = np.hanning(size)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    magnitude = np.abs(np.fft.rfft(frames * window, axis=1)).T * (2 / window.sum())
    return Spectrogram(20 * np.log10(np.maximum(magnitude, 1e-7)), rate / 2, hop / rate, len(samples) / rate)


def recording_png(samples: np.ndarray, spectrogram: Spectrogram, loudest: float, peak: float) -> bytes:
    """PNG of a recording, samples (n,) and their spectrogram, with axes.

    The colours span `RANGE_DB` down from `loudest` (dB), the waveform's axis reaches to `peak` (1 is full scale): with
    the same two, pictures can be compared.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    with new_figure(WIDTH / DPI, HEIGHT / DPI, DPI) as figure:
        figure.set_layout_engine("none")
        above, below = (
            figure.add_axes((LEFT / WIDTH, low / HEIGHT, (RIGHT - LEFT) / WIDTH, (high - low) / HEIGHT))
            for low, high in (WAVEFORM, SPECTROGRAM)
        )
        _draw_waveform(above, samples, spectrogram.seconds, max(peak, LEAST_PEAK))
        _draw_spectrogram(below, spectrogram, loudest)
        for axes in (above, below):
            axes.set_xlim(0, spectrogram.seconds or 1e-3)
            axes.yaxis.set_label_coords(-LABEL / (RIGHT - LEFT), 0.5)
        above.tick_params(axis="x", length=0, labelbottom=False)
        above.tick_params(axis="y", labelsize=8)
        above.spines.bottom.set_visible(False)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    data = io.BytesIO()
    Image.fromarray(pixels).quantize(palette=_palette(), dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    return data.getvalue()


def envelope(samples: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample of each of so many parts of samples (n,), n >= 1, or of each sample if those are fewer.

    Each part reaches to where the one before it ended, as a line through the samples does.
    """
    starts = np.linspace(0, len(samples), min(columns, len(samples)), endpoint=False).astype(int)
    low, high = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
    return (
        np.concatenate([low[:1], np.minimum(low[1:], high[:-1])]),
        np.concatenate([high[:1], np.maximum(high[1:], low[:-1])]),
    )


def _draw_waveform(axes: Axes, samples: np.ndarray, seconds: float, peak: float) -> None:
    low, high = envelope(samples if len(samples) else np.zeros(1), RIGHT - LEFT)
    times = np.linspace(0, seconds, len(low) + 1)
    axes.fill_between(
        times,
        np.append(low, low[-1]),
        np.append(high, high[-1]),
        step="post",
        color=BLUE,
        linewidth=0.5,  # or silence is invisible
        antialiased=False,
    )
    tick = _round_below(peak)
    axes.set_ylim(-1.15 * peak, 1.15 * peak)
    axes.set_yticks([-tick, 0, tick], [f"−{tick:g}", "0", f"{tick:g}"])
    axes.set_ylabel("amplitude\n(full scale)", linespacing=1.1)


def _round_below(value: float) -> float:
    """The greatest of 1, 2 and 5, times a power of ten, that is at most the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return float(f"{next(step for step in (5, 2, 1) if step * power <= value * (1 + 1e-9)) * power:g}")


def _draw_spectrogram(axes: Axes, spectrogram: Spectrogram, loudest: float) -> None:
    bins, frames = spectrogram.db.shape
    half_bin, half_hop = spectrogram.nyquist / (bins - 1) / 2000, spectrogram.hop / 2
    axes.grid(False)
    axes.imshow(
        spectrogram.db,
        origin="lower",
        aspect="auto",
        extent=(
            -half_hop,
            (frames - 1) * spectrogram.hop + half_hop,
            -half_bin,
            spectrogram.nyquist / 1000 + half_bin,
        ),
        cmap=COLOUR_MAP,
        vmin=loudest - RANGE_DB,
        vmax=loudest,
    )
    axes.set_ylim(0, spectrogram.nyquist / 1000)
    axes.locator_params(axis="y", nbins=4)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (kHz)")


def _palette() -> Image:
    """The colours of a picture and of its axes: a third of the bytes of full colour."""
    import matplotlib
    from matplotlib.colors import to_rgb
    from PIL import Image

    colours = matplotlib.colormaps[COLOUR_MAP](np.linspace(0, 1, PNG_COLOURS))[:, :3]
    shades = [
        1 - np.linspace(0, 1, number)[:, None] * (1 - np.array(to_rgb(ink)))
        for ink, number in ((GREY, PNG_GREYS), (BLUE, PNG_BLUES))
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(255 * np.concatenate([*shades, colours])).astype(np.uint8).tobytes())
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
        image = page_svg(figure)
    return Chart(
        "Level",
        image,
        f"Colours of the spectrograms: light is {RANGE_DB:.0f} dB below the loudest point, dark is loudest.",
    )
