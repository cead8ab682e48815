"""FLAC, as every stage writes and reads it."""

from __future__ import annotations

import io

import numpy as np
import soundfile

FLAC_LEVEL = 3  # of 8: within 2 % of the smallest file at 1.75 times the speed (measured)


def encode_flac(samples: np.ndarray, sampling_rate: int) -> bytes:
    """float32 (n,) in [-1, 1] -> FLAC bytes, mono, 16 bit. Rounds half to even, clips at full scale, no dither."""
    pcm = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    data = io.BytesIO()
    soundfile.write(data, pcm, sampling_rate, format="FLAC", subtype="PCM_16", compression_level=FLAC_LEVEL / 8)
    return data.getvalue()


def decode_flac(data: bytes) -> tuple[np.ndarray, int]:
    """FLAC bytes of our own -> float32 (n,) in [-1, 1], sampling rate in Hz."""
    return soundfile.read(io.BytesIO(data), dtype="float32")
