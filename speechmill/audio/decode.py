"""Decoding of untrusted audio: by header, in bounded memory, with a reason where it fails.

What libsndfile reads is read (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, AU, CAF, W64, ...). It fills in for
some damaged files in silence, so the ends of WAV and Ogg files are checked here.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from speechmill.errors import ClipError, ClipRejection

BLOCK_FRAMES = 1 << 16
MP3_SLACK = 1152  # samples of one MPEG frame, which a stream may count or not
ABSURD = 1e4  # full scales; a float file beyond is not audio
UNKNOWN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF - 36)  # what streaming writers put where they know no size


@dataclass(frozen=True)
class DecodeLimits:
    """What is accepted: seconds, bytes of the encoded clip, channels, and sampling rates in Hz."""

    max_seconds: float
    max_bytes: int
    max_channels: int
    min_rate: int = 4_000
    max_rate: int = 192_000


@dataclass(frozen=True)
class Header:
    """What a clip's header claims: seconds (None where it does not say), Hz, channels, container/subtype."""

    duration: float | None
    sampling_rate: int
    channels: int
    codec: str


@dataclass(frozen=True)
class Decoded:
    """A decoded clip.

    samples: float32 (n,), the mean of the channels at the native rate, full scale 1. input_sha256: of the
    encoded bytes. pcm_sha256: of rate and samples, so that lossless copies in other containers agree, and
    equal channels agree with mono.
    """

    samples: np.ndarray
    sampling_rate: int
    channels: int
    codec: str
    duration: float
    input_sha256: str
    pcm_sha256: str


def read_header(data: bytes | Path) -> Header:
    """Read the header alone.

    Raises:
        ClipError: empty_file or unreadable.
    """
    if isinstance(data, Path):
        if _size(data) == 0:
            raise ClipError("empty_file", "the file has no bytes")
        with _opened(str(data), data) as file:
            return _header(file)
    if not data:
        raise ClipError("empty_file", "the file has no bytes")
    with _opened(io.BytesIO(data), data) as file:
        return _header(file)


def decode(data: bytes | Path, limits: DecodeLimits) -> Decoded:
    """Decode a clip. Memory is bounded by the limits, whatever the header claims.

    Raises:
        ClipError: empty_file, too_large, unreadable, bad_sampling_rate, too_many_channels, truncated, empty_audio,
            non_finite or out_of_range.
        ClipRejection: duration_s, where the header or the stream itself is longer than allowed.
    """
    size = _size(data) if isinstance(data, Path) else len(data)
    if size > limits.max_bytes:
        raise ClipError("too_large", f"{size} bytes; enhance.max_bytes allows {limits.max_bytes}")
    try:
        encoded = data.read_bytes() if isinstance(data, Path) else bytes(data)
    except OSError as error:
        raise ClipError("unreadable", f"the file cannot be read: {error.strerror}") from None
    if not encoded:
        raise ClipError("empty_file", "the file has no bytes")
    with _opened(io.BytesIO(encoded), encoded) as file:
        header = _header(file)
        _check_header(header, limits)
        _check_end(encoded)
        if header.duration is not None and header.duration > limits.max_seconds:
            raise _too_long(header.duration, limits)
        samples = _read_mono(file, header, limits)
        expected = file.frames
    slack = MP3_SLACK if "MPEG" in header.codec else 0
    if header.duration is not None and len(samples) + slack < expected:
        raise ClipError("truncated", f"{len(samples)} of {expected} frames are there")
    if len(samples) == 0:
        raise ClipError("empty_audio", "the header is valid but no samples follow")
    _check_samples(samples)
    digest = hashlib.sha256(struct.pack("<I", header.sampling_rate) + samples.astype("<f4").tobytes())
    return Decoded(
        samples=samples,
        sampling_rate=header.sampling_rate,
        channels=header.channels,
        codec=header.codec,
        duration=len(samples) / header.sampling_rate,
        input_sha256=hashlib.sha256(encoded).hexdigest(),
        pcm_sha256=digest.hexdigest(),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ClipError("unreadable", f"the file cannot be read: {error.strerror}") from None


@contextmanager
def _opened(source: str | io.BytesIO, data: bytes | Path) -> Iterator[soundfile.SoundFile]:
    """An open sound file; whatever libsndfile raises, then or later, becomes a ClipError."""
    try:
        with soundfile.SoundFile(source) as file:
            yield file
    except (ClipError, ClipRejection):
        raise
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
        detail = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise ClipError("unreadable", f"{detail}; it begins with {_beginning(data)}") from None


def _beginning(data: bytes | Path) -> str:
    """The first bytes, for a person who wonders what the file is."""
    if isinstance(data, Path):
        try:
            with open(data, "rb") as handle:
                data = handle.read(16)
        except OSError:
            data = b""
    return repr(bytes(data[:16]))


def _header(file: soundfile.SoundFile) -> Header:
    known = 0 < file.frames < 2**62
    rate = file.samplerate
    return Header(file.frames / rate if known and rate > 0 else None, rate, file.channels, f"{file.format}/{file.subtype}")


def _check_header(header: Header, limits: DecodeLimits) -> None:
    if header.channels > limits.max_channels:
        raise ClipError(
            "too_many_channels", f"{header.channels} channels; enhance.max_channels allows {limits.max_channels}"
        )
    if not limits.min_rate <= header.sampling_rate <= limits.max_rate:
        raise ClipError(
            "bad_sampling_rate", f"{header.sampling_rate} Hz is outside {limits.min_rate} to {limits.max_rate} Hz"
        )


def _too_long(seconds: float, limits: DecodeLimits) -> ClipRejection:
    return ClipRejection(
        "duration_s", seconds, limits.max_seconds, f"{seconds:.1f} s long, {limits.max_seconds:g} s are allowed"
    )


def _read_mono(file: soundfile.SoundFile, header: Header, limits: DecodeLimits) -> np.ndarray:
    """The mean of the channels, block by block; never more than the limit, so a header may lie."""
    most = math.floor(limits.max_seconds * header.sampling_rate)
    blocks: list[np.ndarray] = []
    total = 0
    while True:
        try:
            block = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise ClipError("truncated", f"decoding broke off after {total} frames: {error}") from None
        if len(block) == 0:
            break
        total += len(block)
        if total > most:
            raise _too_long(total / header.sampling_rate, limits)
        blocks.append(_mono(block))
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def _mono(block: np.ndarray) -> np.ndarray:
    if block.shape[1] == 1:
        return block[:, 0].copy()
    if block.shape[1] == 2:
        return np.float32(0.5) * (block[:, 0] + block[:, 1])
    return block.mean(axis=1, dtype=np.float32)


def _check_samples(samples: np.ndarray) -> None:
    finite = np.isfinite(samples)
    if not finite.all():
        raise ClipError("non_finite", f"{np.count_nonzero(~finite)} samples are NaN or infinite")
    peak = float(np.abs(samples).max())
    if peak > ABSURD:
        raise ClipError("out_of_range", f"a sample is {peak:.3g} times full scale")


def _check_end(encoded: bytes) -> None:
    """libsndfile makes do with a WAV, AIFF or Ogg file that was cut short: say so instead."""
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WAVE":
        _check_wav(encoded)
    elif encoded[:4] == b"FORM":
        there, size = len(encoded) - 8, struct.unpack_from(">I", encoded, 4)[0]
        if size not in UNKNOWN_SIZES and size > there + 1:  # the last pad byte is often left out
            raise ClipError("truncated", f"{there} of {size} bytes of the file are there")
    elif encoded[:4] == b"OggS":
        last = encoded.rfind(b"OggS")
        if len(encoded) < last + 27:
            raise ClipError("truncated", "the last Ogg page is cut off")
        segments = encoded[last + 26]
        table = encoded[last + 27 : last + 27 + segments]
        whole = len(table) == segments and len(encoded) >= last + 27 + segments + sum(table)
        if not whole or not encoded[last + 5] & 0x04:
            raise ClipError("truncated", "the Ogg stream ends without its last page")


def _check_wav(encoded: bytes) -> None:
    at = 12
    while at + 8 <= len(encoded):
        name, size = encoded[at : at + 4], struct.unpack_from("<I", encoded, at + 4)[0]
        if name == b"data":
            there = len(encoded) - at - 8
            if size not in UNKNOWN_SIZES and size > there:
                raise ClipError("truncated", f"{there} of {size} bytes of samples are there")
            return
        at += 8 + size + size % 2
