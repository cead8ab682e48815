"""A fingerprint of what is heard in a clip: it outlives lossy codecs, resampling, gain and silence around the clip.

Bits are those of Haitsma and Kalker ("A Highly Robust Audio Fingerprinting System", ISMIR 2002): the sign of the
difference of neighbouring bands' energies, and of that difference over time. Where theirs stand at a fixed hop, these
stand where equal shares of the clip's loudness have passed. So every clip has the same number of words, none of them
falls into a pause, and silence or an encoder's delay at either end moves nothing.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

RATE = 16_000  # Hz
WORDS = 64  # of 32 bits each
BYTES = 4 * WORDS
MIN_SECONDS = 0.5
SILENCE = 1e-4  # root mean square within the bands, full scale 1: -80 dBFS

FRAME = 512  # samples
HOP = 160
BANDS = (300.0, 3300.0, 33)  # Hz, Hz, number: what a copy at 8 kHz has as well
SMOOTH = 20  # frames whose energies are added: 200 ms
LAG = 20  # frames between the two energies that are compared
COMPRESSION = 0.25  # exponent of energies: loud bands do not decide alone
BLOCK = 512  # frames transformed at once: they stay in the processor's cache


def fingerprint(samples: NDArray[np.float32]) -> bytes | None:
    """float32 (n,) mono at 16 kHz, full scale 1 -> `BYTES` bytes, little-endian uint32 (WORDS,).

    None where the clip is shorter than `MIN_SECONDS` or silent between 300 and 3300 Hz. It depends on the samples alone.
    """
    if len(samples) < MIN_SECONDS * RATE:
        return None
    margin = HOP * (SMOOTH + LAG) // 2 + FRAME // 2  # every frame of the clip has its window and its two energies
    samples = np.asarray(samples, np.float32)
    samples = samples - samples.mean(dtype=np.float64).astype(np.float32)  # or an offset would be a click at either end
    power = _band_power(np.pad(samples, margin))  # (frames, bands)
    loudness = np.sqrt(power.sum(axis=1))
    if not (loudness**2).sum() * HOP > SILENCE**2 * len(samples):
        return None
    total = np.cumsum(np.pad(power, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    energy = np.maximum(total[SMOOTH:] - total[:-SMOOTH], 0) ** COMPRESSION
    slope = np.diff(energy, axis=1)
    change = slope[LAG:] - slope[:-LAG]  # (moments, 32)
    first = (SMOOTH + LAG) // 2  # the frame in the middle of the first moment's window
    at = _moments(loudness[first : first + len(change)])
    before = np.minimum(at.astype(np.intp), len(change) - 2)
    share = (at - before)[:, None]
    bits = change[before] * (1 - share) + change[before + 1] * share > 0
    return np.packbits(bits, axis=1, bitorder="little").tobytes()


def words_of(fingerprints: list[bytes]) -> NDArray[np.uint32]:
    """Fingerprints as words (N, WORDS)."""
    return np.frombuffer(b"".join(fingerprints), "<u4").reshape(-1, WORDS)


def _moments(loudness: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where (WORDS,), in frames, equal shares of all loudness (frames,) have passed."""
    passed = np.concatenate([[0.0], np.cumsum(loudness, dtype=np.float64)])
    shares = (np.arange(WORDS) + 0.5) / WORDS * passed[-1]
    return np.clip(np.interp(shares, passed, np.arange(len(passed))) - 0.5, 0, len(loudness) - 1)


def _band_power(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (n,) -> mean square of each frame in each band, float32 (frames, bands)."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    power = np.empty((len(frames), BANDS[2]), np.float32)
    for start in range(0, len(frames), BLOCK):
        spectrum = scipy.fft.rfft(frames[start : start + BLOCK] * _WINDOW, axis=1)[:, _BINS]
        power[start : start + BLOCK] = (spectrum.real**2 + spectrum.imag**2) @ _BANK
    return power


def _bank() -> tuple[NDArray[np.float32], slice]:
    """Weights of the bins (bins, bands), which make a mean square of squared magnitudes; and those bins.

    Bands are equally wide in octaves; a bin counts for the part of it that lies within a band.
    """
    low, high, number = BANDS
    edges = low * (high / low) ** (np.arange(number + 1) / number)
    width = RATE / FRAME
    bins = np.arange(FRAME // 2 + 1)[:, None] * width
    overlap = np.minimum(bins + width / 2, edges[1:]) - np.maximum(bins - width / 2, edges[:-1])
    weights = np.maximum(overlap, 0) / width * 2 / (FRAME * np.square(_WINDOW, dtype=np.float64).sum())
    used = np.flatnonzero(weights.any(axis=1))
    where = slice(int(used[0]), int(used[-1]) + 1)
    return np.ascontiguousarray(weights[where], dtype=np.float32), where


_WINDOW = np.hanning(FRAME + 1)[:-1].astype(np.float32)
_BANK, _BINS = _bank()
