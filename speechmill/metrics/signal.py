"""Signal metrics: formulas over whole batches of padded clips at 16 kHz, masked, on the batch's device.

All functions take samples (B, S) float32 with full scale ±1 and lengths (B,) int64, and return (B,) float64 with
NaN where a clip is too short, silent or without speech. They use only frames entirely within a clip, so padding and
other clips of the batch have no influence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from speechmill import versions
from speechmill.audio.vad import CHUNK, RATE
from speechmill.engine.tensors import exact_convolutions
from speechmill.metrics.base import ClipBatch, Metric
from speechmill.metrics.catalogue import CLIP_RATIO, GROUP_METRICS, INPUT_PREFIX, SNR
from speechmill.metrics.mel import mel_filters

SNR_SPEECH_PROBABILITY = 0.6  # higher than for trimming: uncertain frames must not count in the level of speech
NOISE_QUANTILE = 0.05
SNR_BANDS = 40
DIGITAL_SILENCE = 1e-11  # mean square; -110 dBFS, below any 16-bit noise
MIN_FRAMES = 32  # products with fewer rows are summed in another order: a short clip would depend on its batch
PEAK_TOLERANCE = 1e-3
BANDWIDTH_DROP_DB = 50.0
DECAY_BANDS = 24
DECAY_HOP = 80  # 5 ms
DECAY_SPAN = 24  # hops: 120 ms, shorter than the decay of most vowels, longer than a pitch period
DECAY_HEADROOM_DB = 15.0  # minimum level of the start of a decay over the floor of its band
DECAY_QUANTILE = 0.05
DECAY_MIN_SLOPES = 20
SPECTRUM_BLOCK = 1 << 22  # values of a spectrogram in memory at a time


def masked_quantile(values: Tensor, valid: Tensor, quantile: float) -> Tensor:
    """Linearly interpolated quantile along the last axis over the valid values; NaN where no value is valid.

    values (..., N), valid (..., N) bool -> (...). Equals `numpy.quantile`, without the limit of `torch.quantile` on N.
    """
    ordered = values.masked_fill(~valid, torch.inf).sort(dim=-1).values
    count = valid.sum(-1, keepdim=True)
    position = (count - 1).clamp_min(0).double() * quantile
    below = position.floor().long()
    above = torch.minimum(below + 1, (count - 1).clamp_min(0))
    low, high = ordered.gather(-1, below), ordered.gather(-1, above)
    mixed = low + (position - below).to(low.dtype) * (high - low)
    return torch.where(count > 0, mixed, torch.nan).squeeze(-1)


def sum_in_order(values: Tensor) -> Tensor:
    """(B, T) float64 -> (B,): the same to the last bit for any number of zeros after a clip's own values.

    The order in which `sum` adds depends on T.
    """
    return values.cumsum(1)[:, -1]


def whole_frames(samples: Tensor, lengths: Tensor, size: int, hop: int) -> tuple[Tensor, Tensor]:
    """Frames (B, T, size), a view, and a mask (B, T) of those within their clip; T is MIN_FRAMES or more."""
    shortest = size + (MIN_FRAMES - 1) * hop
    if samples.shape[1] < shortest:
        samples = torch.nn.functional.pad(samples, (0, shortest - samples.shape[1]))
    frames = samples.unfold(1, size, hop)
    inside = (lengths - size).div(hop, rounding_mode="floor") + 1
    return frames, torch.arange(frames.shape[1], device=samples.device) < inside[:, None]


def power_spectra(frames: Tensor, window: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Power spectra (B, t, size/2+1) of windowed frames (B, T, size), in slices of T to limit memory."""
    batch, count, size = frames.shape
    step = max(1, SPECTRUM_BLOCK // (batch * size))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        yield part, torch.view_as_real(torch.fft.rfft(frames[:, part] * window)).square().sum(-1)


def within(samples: Tensor, lengths: Tensor) -> Tensor:
    """(B, S) bool: the mask of samples that belong to their clip."""
    return torch.arange(samples.shape[1], device=samples.device) < lengths[:, None]


def vad_snr_db(samples: Tensor, lengths: Tensor, probabilities: Tensor) -> Tensor:
    """Speech-to-noise ratio in dB: mean power of speech frames over a noise floor estimated per band.

    32 ms Hann frames every 16 ms, 40 mel bands from 60 Hz to 8 kHz. A band's noise is the 5 % quantile of its
    power over all frames that are not digital silence, times the ratio of mean to quantile of Gaussian noise
    (after Martin 2001, "Noise power spectral density estimation based on optimal smoothing and minimum
    statistics"). Even in fluent speech without pauses each band is silent for moments; a quantile of the
    whole frame's power would miss them. Speech is where Silero's probability exceeds 0.6; the noise is subtracted
    from its power. Above 30 dB the estimate is too low, because speech fills the gaps (docs/metrics.md: error).
    """
    window = torch.hann_window(CHUNK, device=samples.device)
    mel, excess = _snr_bands()
    mel = mel.to(samples.device) * (2 / (CHUNK * window.square().sum()))  # power spectrum -> mean square
    frames, inside = whole_frames(samples, lengths, CHUNK, CHUNK // 2)
    bands = torch.cat([spectra @ mel for _, spectra in power_spectra(frames, window)], 1).transpose(1, 2)
    power = bands.sum(1, dtype=torch.float64)
    audible = inside & (power > DIGITAL_SILENCE)
    quantiles = masked_quantile(bands, audible[:, None].expand_as(bands), NOISE_QUANTILE)
    noise = (quantiles.double() * excess.to(samples.device)).sum(1).clamp_min(DIGITAL_SILENCE / 10)
    chunk = (torch.arange(frames.shape[1], device=samples.device) + 1) // 2  # the one at the frame's middle
    spoken = torch.nn.functional.pad(probabilities, (0, max(0, int(chunk[-1]) + 1 - probabilities.shape[1])))[:, chunk]
    speech = audible & (spoken > SNR_SPEECH_PROBABILITY)
    level = sum_in_order(power * speech) / speech.sum(1)  # 0 / 0 is the NaN of a clip without speech
    return (10 * ((level - noise).clamp_min(1e-3 * noise) / noise).log10()).clamp(SNR.low, SNR.high)


@cache
def _snr_bands() -> tuple[Tensor, Tensor]:
    """Mel filters (257, 40), and per band (40,) the ratio of the mean of Gaussian noise to its NOISE_QUANTILE.

    Measured on 100 s of seeded noise: neighbouring bins are correlated, so there is no simple formula.
    """
    mel = mel_filters(CHUNK // 2 + 1, 60.0, RATE / 2, SNR_BANDS, RATE)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 100 * RATE), dtype=np.float32))
    frames = noise.unfold(1, CHUNK, CHUNK // 2)
    spectra = torch.cat([part for _, part in power_spectra(frames, torch.hann_window(CHUNK))], 1)
    bands = (spectra @ mel)[0].double()
    return mel, bands.mean(0) / bands.quantile(NOISE_QUANTILE, 0)


def clip_ratios(samples: Tensor, lengths: Tensor) -> Tensor:
    """Share of samples, 0..1, in runs of at least 3 within 0.1 % of the clip's own absolute peak.

    Relative to the clip's own peak instead of full scale, so audio that was attenuated after clipping is found too.
    Clipping before a lossy codec or a resampler leaves no flat run and is not found.
    """
    magnitude = samples.abs() * within(samples, lengths)
    peak = magnitude.amax(1, keepdim=True)
    near = torch.nn.functional.pad((magnitude >= (1 - PEAK_TOLERANCE) * peak) & (magnitude > 0), (2, 2))
    triple = near[:, 2:] & near[:, 1:-1] & near[:, :-2]  # triple[i]: a run covers samples i-2, i-1 and i
    in_run = triple[:, 2:] | triple[:, 1:-1] | triple[:, :-2]
    return in_run.sum(1).double() / lengths


def bandwidth_hz(samples: Tensor, lengths: Tensor) -> Tensor:
    """Highest frequency in Hz whose mean power lies within 50 dB of the strongest one above 100 Hz.

    The -50 dB rule of NeMo Curator's filter, in steps of 31.25 Hz. The clip's mean is removed and the peak is
    searched above 100 Hz, so that neither offset nor hum shifts the reference. Noise counts as bandwidth.
    """
    size, hop = 512, 160
    inside = within(samples, lengths)
    # float64: rounding, which depends on the batch, must not move a bin across the threshold.
    mean = (sum_in_order(samples.double() * inside) / lengths)[:, None]
    frames, valid = whole_frames((samples - mean) * inside, lengths, size, hop)
    window = torch.blackman_window(size, dtype=torch.float64, device=samples.device)
    power = torch.zeros(len(samples), size // 2 + 1, dtype=torch.float64, device=samples.device)
    for part, spectra in power_spectra(frames, window):
        power += (valid[:, None, part].double() @ spectra)[:, 0]
    peak = power[:, -(-100 * size // RATE) :].amax(1, keepdim=True)
    bins = torch.arange(power.shape[1], device=samples.device)
    highest = torch.where(power > peak * 10 ** (-BANDWIDTH_DROP_DB / 10), bins, 0).amax(1)
    heard = peak[:, 0] > DIGITAL_SILENCE * valid.sum(1)
    return torch.where(heard, highest.double() * (RATE / size), torch.nan)


def speech_ratio(lengths: Tensor, probabilities: Tensor) -> Tensor:
    """Share, 0..1, of a clip's 32 ms chunks whose speech probability exceeds 0.5."""
    chunks = (lengths + CHUNK - 1).div(CHUNK, rounding_mode="floor")
    inside = torch.arange(probabilities.shape[1], device=lengths.device) < chunks[:, None]
    return ((probabilities > 0.5) & inside).sum(1).double() / chunks


def reverb_decay_db_s(samples: Tensor, lengths: Tensor) -> Tensor:
    """Rate at which sound decays, in dB/s: large in dry rooms, small in reverberant ones.

    Levels of 24 mel bands (125 Hz to 7.5 kHz) every 5 ms; regression slopes over 120 ms; of the falling slopes that
    start at least 15 dB above their band's floor (its 10 % quantile), the 5 % quantile. The tail of a room, 60 dB in
    RT60, limits how fast speech in it can decay (Wen, Habets, Naylor 2008, "Blind estimation of reverberation time
    based on the distribution of signal decay rates"). Needs about 15 dB of SNR.
    """
    size = 256
    window = torch.hann_window(size, device=samples.device)
    mel = mel_filters(size // 2 + 1, 125.0, 7500.0, DECAY_BANDS, RATE, equal_area=True).to(samples.device)
    frames, valid = whole_frames(samples, lengths, size, DECAY_HOP)
    power = torch.cat([spectra @ mel for _, spectra in power_spectra(frames, window)], 1).transpose(1, 2)
    # Limited to 90 dB below the clip's loudest band: far below any relevant floor, and independent of the gain.
    loudest = (power * valid[:, None]).amax((1, 2), keepdim=True)
    level = 10 * torch.maximum(power, loudest * 1e-9).clamp_min(1e-30).log10()
    if level.shape[2] < DECAY_SPAN:
        return torch.full((len(samples),), torch.nan, dtype=torch.float64, device=samples.device)
    floor = masked_quantile(level, valid[:, None].expand_as(level), 0.1)
    time = (torch.arange(DECAY_SPAN, device=samples.device) - (DECAY_SPAN - 1) / 2) * (DECAY_HOP / RATE)
    with exact_convolutions():
        slopes = torch.nn.functional.conv1d(level.flatten(0, 1)[:, None], (time / (time @ time))[None, None])
    slopes = slopes.view(*level.shape[:2], -1)
    starts = level[..., : slopes.shape[2]]
    falling = (starts > floor[..., None] + DECAY_HEADROOM_DB) & (slopes < 0) & valid[:, None, DECAY_SPAN - 1 :]
    slopes, falling = slopes.flatten(1), falling.flatten(1)
    steep = -masked_quantile(slopes, falling, DECAY_QUANTILE).double()
    return torch.where(falling.sum(1) >= DECAY_MIN_SLOPES, steep, torch.nan)


def loudness_lufs(samples: Tensor, lengths: Tensor) -> Tensor:
    """Integrated loudness in LUFS (ITU-R BS.1770-4); NaN if all blocks are gated."""
    from speechmill.audio.loudness import integrated_loudness

    loudness = torch.as_tensor(integrated_loudness(samples, lengths, RATE), dtype=torch.float64)
    return torch.where(torch.isfinite(loudness), loudness, torch.nan)


_MEASURES: dict[str, Callable[[ClipBatch], Tensor]] = {
    "snr_db": lambda c: vad_snr_db(c.samples, c.lengths, c.speech_probabilities),
    "bandwidth_hz": lambda c: bandwidth_hz(c.samples, c.lengths),
    "reverb_decay_db_s": lambda c: reverb_decay_db_s(c.samples, c.lengths),
    "speech_ratio": lambda c: speech_ratio(c.lengths, c.speech_probabilities),
    "loudness_lufs": lambda c: loudness_lufs(c.samples, c.lengths),
    "clip_ratio": lambda c: clip_ratios(c.samples, c.lengths),
}


@dataclass(frozen=True)
class SignalGroup:
    """The signal metrics as a group."""

    name: str = "signal"
    metrics: tuple[Metric, ...] = GROUP_METRICS["signal"]

    @property
    def versions(self) -> Mapping[str, str]:
        return {"signal": str(versions.SCORE)}

    @torch.inference_mode()
    def measure(self, clips: ClipBatch) -> dict[str, np.ndarray]:
        return {metric.name: _MEASURES[metric.name](clips).cpu().numpy() for metric in self.metrics}


@torch.inference_mode()
def measure_input_signal(clips: ClipBatch) -> dict[str, np.ndarray]:
    """The signal metrics of decoded, untrimmed input, named `input_*`; (B,) float64 each.

    Without clipping, which resampling to 16 kHz hides: `clip_ratio` measures it at the input's own rate.
    """
    return {
        INPUT_PREFIX + name: measure(clips).cpu().numpy()
        for name, measure in _MEASURES.items()
        if name != CLIP_RATIO.name
    }


def clip_ratio(samples: np.ndarray) -> float:
    """`clip_ratios` of one clip (S,) at any sampling rate; NaN if it is empty."""
    if not samples.size:
        return float("nan")
    with torch.inference_mode():
        clip = torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None]
        return float(clip_ratios(clip, torch.tensor([samples.size])))


def peak_dbfs(samples: np.ndarray) -> float:
    """Highest absolute sample of one clip in dB relative to full scale; NaN if all are zero."""
    peak = float(np.max(np.abs(samples), initial=0.0))
    return float(20 * np.log10(peak)) if peak > 0 else float("nan")


def dc_offset(samples: np.ndarray) -> float:
    """Absolute mean of one clip's samples, full scale 1; NaN if it is empty."""
    return abs(float(np.mean(samples, dtype=np.float64))) if samples.size else float("nan")
