"""Real speech for the tests of the metrics, whole and spoiled in known ways."""

from functools import cache
from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from speechmill.audio.vad import SileroVad
from speechmill.engine.tensors import pad
from speechmill.metrics import ClipBatch

RATE = 16_000
SPEECH = Path(__file__).parents[2] / "demo" / "speech"


@cache
def _vad() -> SileroVad:
    return SileroVad("cpu")


@cache
def speech_clips(count: int, shortest: float = 2.5, longest: float = 6.0) -> tuple[np.ndarray, ...]:
    """The first clean clips of that many seconds, float32 at 16 kHz."""
    found = []
    for path in sorted(SPEECH.rglob("*.flac")):
        if shortest <= sf.info(path).duration <= longest:
            found.append(sf.read(path, dtype="float32")[0])
        if len(found) == count:
            return tuple(found)
    raise AssertionError(f"{SPEECH} holds {len(found)} clips of {shortest} to {longest} s, {count} are needed")


def clip_batch(clips) -> ClipBatch:
    """Clips padded to the longest, with their speech probabilities."""
    batch, lengths = pad([np.asarray(clip, np.float32) for clip in clips], "cpu", multiple=512)
    return ClipBatch(batch, lengths, _vad().probabilities(batch, lengths))


def speech_power(clip: np.ndarray) -> float:
    """Mean square of the chunks that Silero takes for speech."""
    spoken = clip_batch([clip]).speech_probabilities[0].numpy() > 0.5
    return float(np.mean(clip[np.repeat(spoken, 512)[: len(clip)]] ** 2))


def with_noise(clip: np.ndarray, snr_db: float, seed: int, pink: bool = False) -> np.ndarray:
    """The clip with Gaussian noise at a true SNR over its speech."""
    noise = np.random.default_rng(seed).standard_normal(len(clip))
    if pink:
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(clip))
    noise *= np.sqrt(speech_power(clip) / 10 ** (snr_db / 10) / np.mean(noise**2))
    return (clip + noise).astype(np.float32)


def mixed_lengths() -> list[np.ndarray]:
    """Speech of very different lengths, clean and noisy, and what is hardly a clip."""
    clips = speech_clips(3)
    return [
        clips[0],
        np.concatenate([clips[1], clips[2]]),
        clips[0][8000:12_800],
        with_noise(clips[2], 5, seed=1)[: 2 * RATE],
        np.zeros(RATE, np.float32),
        np.full(RATE // 2, 0.25, np.float32),
    ]


def same(a: np.ndarray, b: np.ndarray, relative: float = 1e-4) -> bool:
    """Equal within a relative tolerance, NaN where NaN."""
    return bool(np.allclose(a, b, rtol=relative, atol=1e-9, equal_nan=True))


def compositions(count: int, draws: int, seed: int = 0) -> list[list[int]]:
    """Which clips share a batch, in which order: each alone, all, and `draws` random choices."""
    random = np.random.default_rng(seed)
    drawn = [random.permutation(count)[: random.integers(1, count + 1)].tolist() for _ in range(draws)]
    return [*([i] for i in range(count)), list(range(count)), *drawn]


def assert_alone_equals_in_a_batch(group, clips, draws: int = 4) -> None:
    """To the last bit, whatever the batch-mates, their lengths and their order."""
    alone: dict[tuple[int, str], float] = {}
    for members in compositions(len(clips), draws):
        for name, values in group.measure(clip_batch([clips[i] for i in members])).items():
            assert values.dtype == np.float64
            assert values.shape == (len(members),)
            assert not np.isinf(values).any()
            for i, value in zip(members, values, strict=True):
                expected = alone.setdefault((i, name), value)
                assert value == expected or (np.isnan(value) and np.isnan(expected)), (name, i, members)


def with_rubbish_behind(clips: ClipBatch) -> ClipBatch:
    """The same clips with noise where the padding was."""
    noise = torch.randn(clips.samples.shape, generator=torch.Generator().manual_seed(0))
    inside = torch.arange(clips.samples.shape[1]) < clips.lengths[:, None]
    return ClipBatch(torch.where(inside, clips.samples, noise), clips.lengths, clips.speech_probabilities)
