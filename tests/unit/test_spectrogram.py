"""The picture of a recording shows what was recorded where it was."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image

from speechmill.report import spectrogram
from speechmill.report.plots import BLUE
from speechmill.report.spectrogram import HEIGHT, LEFT, RIGHT, WIDTH, envelope, recording_png, spectrogram_db

RATE = 16_000


def picture(samples, loudest=0.0, peak=1.0):
    """Pixels (H, W, 3) of the picture."""
    png = recording_png(samples, spectrogram_db(samples, RATE), loudest, peak)
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "P", (WIDTH, HEIGHT))
        return np.asarray(image.convert("RGB")).astype(int)


def waveform(pixels):
    """Rows (H, W) that the waveform covers, in its axes' columns alone."""
    covered = np.all(np.abs(pixels - np.rint(255 * np.array(to_rgb(BLUE)))) <= 1, axis=-1)
    covered[:, :LEFT] = False
    covered[HEIGHT - spectrogram.SPECTROGRAM[1] :] = False
    return covered


def column_of(second, seconds):
    return LEFT + second / seconds * (RIGHT - LEFT)


@pytest.mark.parametrize("second", [0.1, 0.77, 1.9])
@pytest.mark.parametrize("seconds", [2.0, 12.5])
def test_a_click_is_at_its_time_in_waveform_and_spectrogram(second, seconds):
    samples = np.zeros(int(seconds * RATE))
    samples[int(second * RATE)] = -0.8
    pixels = picture(samples, loudest=-50.0)
    heights = waveform(pixels).sum(0)
    assert np.argmax(heights) == pytest.approx(column_of(second, seconds), abs=2)
    assert np.median(heights[LEFT:RIGHT]) <= 2  # silence is a thin line
    shades = pixels[
        HEIGHT - spectrogram.SPECTROGRAM[1] + 5 : HEIGHT - spectrogram.SPECTROGRAM[0] - 5, LEFT + 3 : RIGHT - 3
    ]
    darkness = 765 - shades.sum(-1).mean(0)
    dark = np.flatnonzero(darkness > darkness.max() * 0.8) + LEFT + 3
    window = spectrogram.WINDOW_S / seconds * (RIGHT - LEFT)
    assert dark.mean() == pytest.approx(column_of(second, seconds), abs=max(3, window / 4))


def test_before_and_after_share_one_scale():
    tone = 0.5 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)
    loud, quiet = (np.flatnonzero(waveform(picture(samples, peak=0.5)).any(1)) for samples in (tone, tone / 4))
    assert np.ptp(loud) == pytest.approx(4 * np.ptp(quiet), abs=8)
    axes = spectrogram.WAVEFORM[1] - spectrogram.WAVEFORM[0]
    assert np.ptp(loud) == pytest.approx(axes / 1.15, abs=4)
    middle = HEIGHT - sum(spectrogram.WAVEFORM) / 2
    assert loud.mean() == pytest.approx(middle, abs=2)


def test_a_tone_is_where_it_is():
    seconds = 2.0
    tone = np.sin(2 * np.pi * 3000 * np.arange(int(seconds * RATE)) / RATE)
    found = spectrogram_db(tone, RATE)
    frequencies = np.linspace(0, found.nyquist, len(found.db))
    middle = found.db[:, found.db.shape[1] // 2]
    assert frequencies[np.argmax(middle)] == pytest.approx(3000, abs=40)
    assert np.max(middle) == pytest.approx(0, abs=0.1)  # dB re a full-scale sine
    assert (found.nyquist, found.seconds) == (8000, seconds)
    # In the picture, too: full level is the last colour.
    low, high = spectrogram.SPECTROGRAM
    pixels = picture(tone)[:, (LEFT + RIGHT) // 2]
    darkest = np.flatnonzero(
        np.all(np.abs(pixels - np.rint(255 * np.array(colormaps["magma_r"](1.0)[:3]))) < 40, axis=-1)
    )
    assert darkest.mean() == pytest.approx(HEIGHT - low - 3000 / 8000 * (high - low), abs=3)


@pytest.mark.parametrize("seconds", [0.01, 1.0, 5.7, 60.0])
def test_frames_are_bounded_and_span_the_recording(seconds):
    found = spectrogram_db(np.ones(int(seconds * RATE)), RATE)
    frames = found.db.shape[1]
    assert frames <= spectrogram.MAX_FRAMES + 1
    assert (frames - 1) * found.hop <= seconds < frames * found.hop


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=300), st.integers(1, 40))
def test_the_envelope_holds_every_sample_and_has_no_gaps(values, columns):
    samples = np.array(values)
    low, high = envelope(samples, columns)
    assert len(low) == len(high) == min(columns, len(samples))
    starts = [int(np.floor(k * len(samples) / len(low) + 1e-9)) for k in range(len(low) + 1)]
    for k in range(len(low)):
        part = samples[starts[k] : starts[k + 1]]
        assert low[k] <= part.min()
        assert high[k] >= part.max()
    assert low.min() == samples.min()
    assert high.max() == samples.max()
    assert np.all(low[1:] <= high[:-1])
    assert np.all(high[1:] >= low[:-1])


@pytest.mark.parametrize("length", [1, 5, 100])
def test_next_to_nothing_has_a_picture(length):
    pixels = picture(np.zeros(length), loudest=-140.0, peak=0.0)
    assert waveform(pixels)[:, LEFT + 5 : RIGHT - 5].any(0).all()
    picture(np.zeros(0))


def test_pictures_are_small_and_the_same_every_time():
    noise = np.random.default_rng(1).normal(0, 0.1, 15 * RATE)  # the worst to compress
    first, second = (recording_png(noise, spectrogram_db(noise, RATE), -20.0, 0.5) for _ in range(2))
    assert first == second
    assert len(first) < 70_000


def test_nothing_in_a_picture_is_cut_off_or_overlaps(monkeypatch):
    from matplotlib.text import Text

    drawn, real = {}, Text.draw

    def draw(self, renderer):
        if self.get_visible() and self.get_text():
            drawn[self] = (self.get_text(), self.get_window_extent(renderer))
        return real(self, renderer)

    monkeypatch.setattr(Text, "draw", draw)
    for seconds, rate, peak in ((0.3, RATE, 0.0), (3.0, 48_000, 0.05), (15.0, 8_000, 1.0), (2.0, 22_050, 0.2)):
        drawn.clear()
        samples = np.zeros(int(seconds * rate))
        recording_png(samples, spectrogram_db(samples, rate), 0.0, peak)
        texts = list(drawn.values())
        shown = {text for text, _ in texts}
        assert {"time (s)", "frequency (kHz)", "amplitude\n(full scale)"} <= shown
        for k, (text, box) in enumerate(texts):
            assert 0 <= box.x0 <= box.x1 <= WIDTH, text
            assert 0 <= box.y0 <= box.y1 <= HEIGHT, text
            assert [other for other, another in texts[k + 1 :] if box.overlaps(another)] == [], text
