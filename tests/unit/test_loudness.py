"""Loudness and true peak against the recommendation, EBU Tech 3341 and pyloudnorm."""

from __future__ import annotations

import math

import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import torch

from speechmill.audio.loudness import (
    OVERSAMPLING,
    integrated_loudness,
    k_weighting,
    normalization_gain_db,
    true_peak_dbtp,
)

MONO = 20 * math.log10(1 / math.sqrt(2))  # one channel instead of two equal ones


def sine(level_dbfs: float, seconds: float, rate: int, hertz: float = 1000) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (10 ** (level_dbfs / 20) * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def bursts(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Syllables of low-passed noise at many levels, with pauses."""
    rng = np.random.default_rng(seed)
    noise = scipy.signal.lfilter([1], [1, -0.9], rng.standard_normal(round(seconds * rate)))
    steps = np.repeat(rng.choice([0.0, 0.001, 0.05, 0.1, 0.2], len(noise) // (rate // 5) + 1), rate // 5)
    return (0.2 * noise * steps[: len(noise)]).astype(np.float32)


def padded(clips: list[np.ndarray], padding: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    batch = np.full((len(clips), max(map(len, clips)) + 7), padding, np.float32)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    return torch.from_numpy(batch), torch.tensor([len(clip) for clip in clips])


def lufs(clip: np.ndarray, rate: int) -> float:
    return float(integrated_loudness(*padded([clip]), rate)[0])


def dbtp(clip: np.ndarray, rate: int = 48_000) -> float:
    return float(true_peak_dbtp(*padded([clip]), rate)[0])


def test_the_filter_at_48_khz_is_the_printed_one() -> None:
    """ITU-R BS.1770-5, Annex 1, tables 1 and 2."""
    printed = [
        [1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585],
        [1, -2, 1, 1, -1.99004745483398, 0.99007225036621],
    ]
    np.testing.assert_allclose(k_weighting(48_000), printed, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [10, 12.3, 17.9])
def test_as_pyloudnorm(rate: int, seconds: float) -> None:
    """On whole hops of 100 ms: pyloudnorm rounds the number of blocks, so that its last one may be incomplete.

    It divides that block's energy by a whole block all the same. The recommendation leaves an incomplete block out.
    """
    clip = bursts(seconds, rate, round(seconds))
    meter = pyloudnorm.Meter(rate, filter_class="DeMan")
    assert lufs(clip, rate) == pytest.approx(meter.integrated_loudness(clip.astype(np.float64)), abs=0.1)


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
def test_full_scale_sine_at_997_hz(rate: int) -> None:
    """BS.1770-5, Annex 1: 0 dBFS in one channel is -3.01 LKFS."""
    assert lufs(sine(0, 10, rate, 997), rate) == pytest.approx(-3.01, abs=0.05)


def test_an_incomplete_block_does_not_count() -> None:
    clip = sine(-20, 10, 16_000)
    longer = np.concatenate([clip, sine(0, 0.09, 16_000)])  # less than a hop
    assert lufs(longer, 16_000) == lufs(clip, 16_000)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize(
    "parts",  # (dBFS, seconds): EBU Tech 3341, cases 1 to 5, of which the last three need the gates
    [
        [(-23, 20)],
        [(-33, 20)],
        [(-36, 10), (-23, 60), (-36, 10)],
        [(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)],
        [(-26, 20), (-20, 20.1), (-26, 20)],
    ],
)
def test_ebu_tech_3341(rate: int, parts: list[tuple[float, float]]) -> None:
    clip = np.concatenate([sine(level, seconds, rate) for level, seconds in parts])
    expected = -33 if parts[0][0] == -33 else -23
    assert lufs(clip, rate) == pytest.approx(expected + MONO, abs=0.1)


def test_short_clips_are_one_block() -> None:
    assert lufs(sine(-20, 0.2, 16_000), 16_000) == pytest.approx(-20 + MONO, abs=0.5)
    assert math.isfinite(lufs(sine(-20, 0.4, 16_000), 16_000))
    assert math.isfinite(lufs(np.array([0.5], np.float32), 16_000))


def test_silence_and_nothing() -> None:
    clips = [np.zeros(16_000, np.float32), np.empty(0, np.float32), sine(-90, 1, 16_000)]
    batch, lengths = padded(clips)
    assert torch.isneginf(integrated_loudness(batch, lengths, 16_000)).all()
    assert torch.isneginf(true_peak_dbtp(batch, lengths, 16_000)[:2]).all()


def test_alone_and_in_a_batch_are_the_same_to_the_last_bit() -> None:
    clips = [bursts(seconds, 16_000, i) for i, seconds in enumerate((0.1, 0.39, 0.41, 1, 3.7, 9, 2))]
    batch, lengths = padded(clips, padding=0.9)  # nothing may listen to the padding
    for measure in (integrated_loudness, true_peak_dbtp):
        together = measure(batch, lengths, 16_000)
        assert together.shape == (len(clips),)
        for value, clip in zip(together, clips, strict=True):
            assert value == measure(*padded([clip]), 16_000)[0]
        assert torch.equal(measure(batch.flip(0), lengths.flip(0), 16_000).flip(0), together)


def test_gain_changes_both_by_itself() -> None:
    clip = bursts(5, 16_000, 1)
    assert lufs(clip / 2, 16_000) == pytest.approx(lufs(clip, 16_000) + 20 * math.log10(0.5), abs=0.01)
    assert dbtp(clip / 2) == pytest.approx(dbtp(clip) + 20 * math.log10(0.5), abs=1e-4)


@pytest.mark.parametrize(("divisor", "phase"), [(4, 0), (4, 45), (6, 60), (8, 67.5)])
def test_true_peak_of_ebu_tech_3341(divisor: int, phase: float) -> None:
    """Cases 15 to 18: sines whose samples miss the peak of -6 dBTP, by 3 dB at a quarter of the rate."""
    n = np.arange(48_000)
    fade = np.minimum(1, np.minimum(n, n[::-1]) / 2400)
    clip = (0.5 * fade * np.sin(2 * np.pi * n / divisor + math.radians(phase))).astype(np.float32)
    if phase == 45:
        assert 20 * math.log10(np.abs(clip).max()) == pytest.approx(-6.02 - 3.01, abs=0.01)
    assert -0.4 <= dbtp(clip) - 20 * math.log10(0.5) <= 0.2


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_true_peak_of_full_scale_between_the_samples(rate: int) -> None:
    n = np.arange(rate)
    fade = np.minimum(1, np.minimum(n, n[::-1]) / 1600)
    clip = (fade * np.sin(np.pi * n / 2 + np.pi / 4)).astype(np.float32)
    assert 20 * math.log10(np.abs(clip).max()) == pytest.approx(-3.01, abs=0.01)
    assert dbtp(clip, rate) == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize("size", [1, 11, 31, 32, 33, 1000, 48_000])
def test_true_peak_is_that_of_the_whole_filter(size: int) -> None:
    rng = np.random.default_rng(size)
    clip = (rng.standard_normal(size) * np.cos(np.arange(size) / 50) ** 8).astype(np.float32)
    prototype = OVERSAMPLING.T.reshape(-1)
    peaks = [np.abs(np.convolve(clip.astype(np.float64), prototype[p::4])).max() for p in range(4)]
    assert dbtp(clip) == pytest.approx(20 * math.log10(max(*peaks, np.abs(clip).max())), abs=1e-5)


def test_true_peak_is_near_the_interpolated_peak() -> None:
    for seed in range(5):
        low = scipy.signal.sosfilt(
            scipy.signal.butter(8, 0.4, output="sos"), np.random.default_rng(seed).standard_normal(9600)
        )
        clip = (0.1 * low * np.hanning(len(low))).astype(np.float32)
        truth = 20 * math.log10(np.abs(scipy.signal.resample(clip, 64 * len(clip))).max())
        assert dbtp(clip) == pytest.approx(truth, abs=0.3)


def test_gain_reaches_the_target_below_the_ceiling() -> None:
    inf = math.inf
    levels = torch.tensor([-30.0, -30.0, -10.0, -inf, -69.0], dtype=torch.float64)
    peaks = torch.tensor([-20.0, -3.0, -1.0, -inf, -80.0], dtype=torch.float64)
    gain = normalization_gain_db(levels, peaks, -23, -1)
    assert gain.tolist() == pytest.approx([7, 2, -13, 0, 46])
    assert normalization_gain_db(levels[-1:], peaks[-1:], -5, 0).tolist() == [60]


def test_a_normalised_clip_measures_as_wanted() -> None:
    clips = [bursts(4, 16_000, seed) for seed in range(3)]
    batch, lengths = padded(clips)
    gain = normalization_gain_db(
        integrated_loudness(batch, lengths, 16_000), true_peak_dbtp(batch, lengths, 16_000), -23, -1
    )
    louder = batch * 10 ** (gain[:, None] / 20)
    after, peak = integrated_loudness(louder, lengths, 16_000), true_peak_dbtp(louder, lengths, 16_000)
    assert (peak <= -1 + 1e-4).all()
    assert ((after + 23).abs() < 0.05).logical_or((peak + 1).abs() < 1e-4).all()


def test_absurdly_loud_float_input_still_keeps_the_ceiling():
    """A float file that holds 16-bit values is 90 dB over full scale: the gain must not stop at -60 dB."""
    gain = normalization_gain_db(torch.tensor([70.0]), torch.tensor([79.0]), -23, -1)
    assert gain.item() == -93
