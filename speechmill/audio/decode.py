"""Decoding of untrusted audio: by header, in bounded memory, with a reason where it fails.

Whatever libsndfile reads is read (WAV, FLAC, MP3, Ogg Vorbis and Opus, AIFF, AU, CAF, W64, NIST Sphere, ...).
libsndfile makes do in silence with files that were cut short, so the promises of the containers that carry
speech are checked here. A cut is not seen in streamed files (without a size in the header) and in the formats of
samplers and laboratories (AVR, IRCAM, MAT, MPC, PAF, PVF, VOC, WVE, XI).
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from speechmill.audio.containers import check_container, with_open_end
from speechmill.audio.mpeg import check_mpeg, count_frame, walk_mpeg
from speechmill.errors import ClipError, ClipRejection

BLOCK_SAMPLES = 1 << 16  # samples (frames x channels) decoded at a time
FILES_OWN = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
ABSURD = 1e4  # full scales; a float file beyond is not audio
MPEG_WALK_BYTES = 1 << 26  # of an MP3 that does not say its length, read to find it
LOOKS_LIKE = (  # offset, bytes, what a person calls it
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (4, b"ftyp", "MP4/M4A, which libsndfile does not read: convert it to FLAC"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska/WebM, which libsndfile does not read: convert it to FLAC"),
    (0, b"\xff\xf1", "raw AAC, which libsndfile does not read: convert it to FLAC"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"<", "HTML or XML"),
)


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
    encoded bytes. pcm_sha256: of the rate (4 bytes, little-endian) and the samples (float32, little-endian), so
    that lossless copies in other containers agree, and equal channels agree with mono.
    """

    samples: np.ndarray
    sampling_rate: int
    channels: int
    codec: str
    duration: float
    input_sha256: str
    pcm_sha256: str


class _Stream(soundfile.SoundFile):
    """A sound file that is only read forwards.

    After every block soundfile seeks to where it is, which changes the samples of MP3 (its decoder starts anew)
    and fails for codecs that cannot seek. It leaves that out where a file is not seekable.
    """

    def seekable(self) -> bool:
        return False


class _Bytes(io.BytesIO):
    """Bytes that stay where they are when a damaged file sends libsndfile to before their start.

    It notices; an exception in its callback would only be printed.
    """

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def read_header(data: bytes | Path) -> Header:
    """Read the header alone; the stream is not decoded.

    The duration is what the header claims, except for MP3 without a frame count, whose frames are counted.

    Raises:
        ClipError: empty_file or unreadable.
    """
    if isinstance(data, Path):
        with _open_file(data) as handle:
            start = handle.read(64)
            handle.seek(0)
            with _open_stream(handle.fileno(), start) as stream:
                header = _header(stream)
            if not header.codec.startswith("MP3/"):
                return header
            handle.seek(0)
            encoded = handle.read(MPEG_WALK_BYTES)
            whole = not handle.read(1)
    else:
        encoded, whole = data, True
        with _open_stream(_Bytes(data), data) as stream:
            header = _header(stream)
    if header.codec.startswith("MP3/"):
        mpeg = walk_mpeg(encoded)
        if mpeg is not None and not mpeg.counted:
            seconds = mpeg.found * mpeg.samples / header.sampling_rate if whole else None
            return Header(seconds, header.sampling_rate, header.channels, header.codec)
    return header


def header_seconds(data: bytes | Path, longest: float) -> float:
    """Seconds that the header claims; 0 where it cannot be read, does not say, or claims more than `longest`."""
    try:
        seconds = read_header(data).duration
    except ClipError:
        return 0.0
    return seconds if seconds is not None and 0 <= seconds <= longest else 0.0


def decode(data: bytes | Path, limits: DecodeLimits) -> Decoded:
    """Decode a clip. Memory is bounded by the limits, whatever the header claims; may be called from many threads.

    Raises:
        ClipError: empty_file, too_large, unreadable, bad_sampling_rate, too_many_channels, truncated, empty_audio,
            non_finite or out_of_range.
        ClipRejection: duration_s, where the header or the stream itself is longer than allowed.
    """
    encoded = _read_bytes(data, limits.max_bytes)
    try:
        stream = _open_stream(_Bytes(with_open_end(encoded)), encoded)
    except ClipError:
        check_container(encoded)  # a cut in the header is a cut, too
        raise
    mpeg = walk_mpeg(encoded) if stream.format == "MP3" else None
    if mpeg is not None:
        check_mpeg(mpeg)
        if not mpeg.counted and mpeg.layer == 3:
            # libmpg123 would guess the length from the first frame, and stop there.
            stream.close()
            stream = _open_stream(_Bytes(count_frame(encoded, mpeg) + encoded[mpeg.first :]), encoded)
    with stream:
        header = _header(stream)
        _check_header(header, limits)
        check_container(encoded)
        samples = _read_mono(stream, limits.max_seconds)
        guessed = header.duration is None or ("MPEG_LAYER" in stream.subtype and (mpeg is None or mpeg.layer != 3))
        expected = 0 if guessed else stream.frames
    slack = 2 * mpeg.samples if mpeg is not None else 0  # lost where a stream was cut out of another one
    if encoded[:7] == b"NIST_1A" and (count := re.search(rb"sample_count -i (\d{1,15})", encoded[:1024])):
        expected = max(expected, int(count[1]))
    if len(samples) + slack < expected:
        raise ClipError("truncated", _missing(len(samples), expected, header.sampling_rate))
    if len(samples) == 0:
        raise ClipError("empty_audio", "the header is valid but no samples follow")
    pcm = hashlib.sha256(struct.pack("<I", header.sampling_rate))
    pcm.update(samples.astype("<f4", copy=False).data)
    return Decoded(
        samples=samples,
        sampling_rate=header.sampling_rate,
        channels=header.channels,
        codec=header.codec,
        duration=len(samples) / header.sampling_rate,
        input_sha256=hashlib.sha256(encoded).hexdigest(),
        pcm_sha256=pcm.hexdigest(),
    )


def _open_file(path: Path) -> io.FileIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ClipError("unreadable", "not a regular file")
        return open(path, "rb", buffering=0)
    except OSError as error:
        if error.errno not in FILES_OWN:
            raise  # a failing disk or mount is no clip's fault
        raise ClipError("unreadable", f"the file cannot be read: {error.strerror}") from None


def _read_bytes(data: bytes | Path, max_bytes: int) -> bytes:
    if isinstance(data, Path):
        with _open_file(data) as handle:
            size = handle.seek(0, io.SEEK_END)
            handle.seek(0)
            encoded = handle.readall() if size <= max_bytes else b""
    else:
        encoded, size = data, len(data)
    if size > max_bytes:
        raise ClipError("too_large", f"{size} bytes; enhance.max_bytes allows {max_bytes}")
    return encoded


def _open_stream(source: int | io.BytesIO, start: bytes) -> _Stream:
    """libsndfile gets bytes or a descriptor, never a name: it would take a .raw file for samples without a header."""
    if not start:
        raise ClipError("empty_file", "the file has no bytes")
    try:
        return _Stream(source, closefd=False)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        looks = next((name for at, magic, name in LOOKS_LIKE if start[at:].startswith(magic)), repr(start[:16]))
        raise ClipError("unreadable", f"{_detail(error)}; the file begins like {looks}") from None


def _detail(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__


def _header(stream: soundfile.SoundFile) -> Header:
    known = 0 < stream.frames < 2**62 and stream.samplerate > 0
    duration = stream.frames / stream.samplerate if known else None
    return Header(duration, stream.samplerate, stream.channels, f"{stream.format}/{stream.subtype}")


def _check_header(header: Header, limits: DecodeLimits) -> None:
    if header.channels > limits.max_channels:
        message = f"{header.channels} channels; enhance.max_channels allows {limits.max_channels}"
        raise ClipError("too_many_channels", message)
    if not limits.min_rate <= header.sampling_rate <= limits.max_rate:
        message = f"{header.sampling_rate} Hz is outside {limits.min_rate} to {limits.max_rate} Hz"
        raise ClipError("bad_sampling_rate", message)
    if header.duration is not None and header.duration > limits.max_seconds:
        raise _too_long(header.duration, limits.max_seconds, "")


def _too_long(seconds: float, most: float, prefix: str) -> ClipRejection:
    return ClipRejection("duration_s", seconds, most, f"{prefix}{seconds:.1f} s long; {most:g} s are allowed")


def _missing(there: int, promised: int, rate: int) -> str:
    return f"{there} of {promised} frames are there ({there / rate:.2f} of {promised / rate:.2f} s)"


def _read_mono(stream: soundfile.SoundFile, max_seconds: float) -> np.ndarray:
    """The mean of the channels (n,), block by block and never past the limit: the header may lie."""
    rate = stream.samplerate
    most = math.floor(max_seconds * rate)
    size = max(1, BLOCK_SAMPLES // stream.channels)
    blocks: list[np.ndarray] = []
    total = 0
    while total <= most:
        try:
            block = stream.read(size, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            message = f"the stream ends or is damaged after {total / rate:.2f} s: {_detail(error)}"
            raise ClipError("truncated", message) from None
        if len(block) == 0:
            return np.concatenate(blocks) if blocks else np.empty(0, np.float32)
        _check_values(block, total, rate)
        blocks.append(_mono(block))
        total += len(block)
    raise _too_long(total / rate, max_seconds, "at least ")


def _mono(block: np.ndarray) -> np.ndarray:
    """Mean of the channels. Adding zero turns -0 into 0, which some containers cannot hold (the hash would differ)."""
    zero = np.float32(0)
    if block.shape[1] == 1:
        return block[:, 0] + zero
    if block.shape[1] == 2:
        return np.float32(0.5) * (block[:, 0] + block[:, 1]) + zero
    return block.mean(axis=1, dtype=np.float64).astype(np.float32) + zero  # float64: exact where all are equal


def _check_values(block: np.ndarray, offset: int, rate: int) -> None:
    peak = max(-float(block.min()), float(block.max()))  # NaN survives min and max
    if not math.isfinite(peak):
        at = offset + int(np.argmin(np.isfinite(block).all(axis=1)))
        raise ClipError("non_finite", f"the sample at {at / rate:.3f} s is NaN or infinite")
    if peak > ABSURD:
        raise ClipError("out_of_range", f"a sample is {peak:.3g} times full scale")
