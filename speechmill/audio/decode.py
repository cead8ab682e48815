"""Decoding of untrusted audio: by header, in bounded memory, with a reason where it fails.

Whatever libsndfile reads is read (WAV, FLAC, MP3, Ogg Vorbis and Opus, AIFF, AU, CAF, W64, NIST Sphere, ...), and with
FFmpeg what it does not (`ffmpeg.py`).
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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from speechmill.audio.channels import Mixer
from speechmill.audio.containers import check_container, with_open_end
from speechmill.audio.ffmpeg import Reader, check_length, demuxer_of, open_bytes
from speechmill.audio.mpeg import check_mpeg, count_frame, walk_mpeg, with_count
from speechmill.errors import ClipError, ClipRejection

BLOCK_SAMPLES = 1 << 16  # samples (frames x channels) decoded at a time
FILES_OWN = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
LOUDEST = 8.0  # full scales (+18 dB); float samples beyond are on the scale of integers
LEAST_MPEG_SAMPLES = 384  # of a frame
MPEG_PADDING_S = 0.2  # of encoders, at start and end
MPEG_WALK_BYTES = 1 << 26  # of an MP3 that does not say its length, read to find it
HEAD_BYTES = 1 << 16  # of a file, to see what it is
LOOKS_LIKE = (  # offset, bytes, what a person calls it
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
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

    samples: float32 (n,) at the native rate, full scale 1. channel: `mean` if they are the mean of the channels, or the
    number of a channel from 1. correlation: the lowest of two channels, NaN for one. input_sha256: of the encoded
    bytes. pcm_sha256: of the rate (4 bytes, little-endian) and the samples (float32, little-endian), so that lossless
    copies in other containers agree, and equal channels agree with mono.
    """

    samples: np.ndarray
    sampling_rate: int
    channels: int
    codec: str
    duration: float
    input_sha256: str
    pcm_sha256: str
    channel: str = "1"
    correlation: float = math.nan


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
            try:
                with _open_stream(handle.fileno(), start) as stream:
                    header = _header(stream)
            except ClipError:
                handle.seek(0)
                if (demuxer := demuxer_of(handle.read(HEAD_BYTES))) is None:
                    raise
                handle.seek(0)
                return _ffmpeg_header(Reader(io.BufferedReader(handle), demuxer))
            if not header.codec.startswith("MP3/"):
                return header
            handle.seek(0)
            encoded = handle.read(MPEG_WALK_BYTES)
            whole = not handle.read(1)
    else:
        encoded, whole = data, True
        try:
            with _open_stream(_Bytes(data), data) as stream:
                header = _header(stream)
        except ClipError:
            if (demuxer := demuxer_of(data)) is None:
                raise
            return _ffmpeg_header(open_bytes(data, demuxer))
    if header.codec.startswith("MP3/"):
        mpeg = walk_mpeg(encoded)
        if mpeg is not None and not mpeg.counted:
            seconds = mpeg.found * mpeg.samples / header.sampling_rate if whole else None
            return Header(seconds, header.sampling_rate, header.channels, header.codec)
    return header


def _ffmpeg_header(reader: Reader) -> Header:
    stream = reader.stream
    reader.close()
    return Header(stream.duration, stream.sampling_rate, stream.channels, stream.codec)


def header_seconds(data: bytes | Path, longest: float) -> float:
    """Seconds that the header claims; 0 where it cannot be read, does not say, or claims more than `longest`."""
    try:
        seconds = read_header(data).duration
    except ClipError:
        return 0.0
    return seconds if seconds is not None and 0 <= seconds <= longest else 0.0


def decode(data: bytes | Path, limits: DecodeLimits, channels: str = "mean") -> Decoded:
    """Decode a clip. Memory is bounded by the limits, whatever the header claims; may be called from many threads.

    channels: how several are mixed to one, `mean`, `first` or `loudest`. Channels of opposite phase are not averaged:
    the loudest one is used (`Decoded.channel`).

    Raises:
        ClipError: empty_file, too_large, unreadable, bad_sampling_rate, too_many_channels, truncated, empty_audio,
            non_finite or out_of_range.
        ClipRejection: duration_s, where the header or the stream itself is longer than allowed.
    """
    encoded = _read_bytes(data, limits.max_bytes)
    mixer = first = Mixer(channels)
    decoded = _decode(encoded, limits, mixer)
    if first.second_pass is not None:
        mixer = Mixer(first.second_pass)
        decoded = _decode(encoded, limits, mixer)
    return replace(decoded, channel=mixer.channel, correlation=first.correlation)


def _decode(encoded: bytes, limits: DecodeLimits, mixer: Mixer) -> Decoded:
    try:
        stream = _open_encoded(encoded)
    except ClipError:
        check_container(encoded)  # a cut in the header is a cut, too
        if (demuxer := demuxer_of(encoded)) is None:
            raise
        return _decoded(encoded, *_decode_with_ffmpeg(encoded, demuxer, limits, mixer))
    mpeg = None
    if stream.format == "MP3":
        _check_header(_header(stream), limits, length=False)
        mpeg = walk_mpeg(encoded, math.ceil((limits.max_seconds + 1) * stream.samplerate / LEAST_MPEG_SAMPLES))
    if mpeg is not None:
        seconds = mpeg.found * mpeg.samples / stream.samplerate
        if seconds > limits.max_seconds + MPEG_PADDING_S:
            raise _too_long(seconds, limits.max_seconds, "at least ")
        check_mpeg(mpeg)
        if not mpeg.counted and mpeg.layer == 3:
            # libmpg123 would guess the length from the first frame, or believe the count, and stop there.
            stream.close()
            whole = count_frame(encoded, mpeg) + encoded[mpeg.first :]
            stream = _open_stream(_Bytes(with_count(encoded, mpeg) if mpeg.miscounted else whole), encoded)
    with stream:
        header = _header(stream)
        _check_header(header, limits)
        check_container(encoded)
        promised = stream.frames if stream.format == "FLAC" else None
        samples = _read_mono(stream, limits.max_seconds, mixer, promised)
        guessed = header.duration is None or ("MPEG_LAYER" in stream.subtype and (mpeg is None or mpeg.layer != 3))
        expected = 0 if guessed else stream.frames
    slack = 2 * mpeg.samples if mpeg is not None else 0  # lost where a stream was cut out of another one
    if encoded[:7] == b"NIST_1A" and (count := re.search(rb"sample_count -i (\d{1,15})", encoded[:1024])):
        expected = max(expected, int(count[1]))
    if len(samples) + slack < expected:
        raise ClipError("truncated", _missing(len(samples), expected, header.sampling_rate))
    if len(samples) == 0:
        raise ClipError("empty_audio", "the header is valid but no samples follow")
    return _decoded(encoded, header, samples)


def _decode_with_ffmpeg(encoded: bytes, demuxer: str, limits: DecodeLimits, mixer: Mixer) -> tuple[Header, np.ndarray]:
    reader = open_bytes(encoded, demuxer)
    try:
        stream = reader.stream
        header = Header(stream.duration, stream.sampling_rate, stream.channels, stream.codec)
        _check_header(header, limits)
        most = math.floor(limits.max_seconds * header.sampling_rate)
        blocks: list[np.ndarray] = []
        total = 0
        for block in reader.blocks(limits.max_seconds):
            if reader.stream is not stream:
                stream = reader.stream
                header = Header(stream.duration, stream.sampling_rate, stream.channels, stream.codec)
                _check_header(header, limits)
                most = math.floor(limits.max_seconds * header.sampling_rate)
            if not len(block):
                continue
            _check_values(block, total, header.sampling_rate)
            blocks.append(mixer(block))
            total += len(block)
            if total > most:
                raise _too_long(total / header.sampling_rate, limits.max_seconds, "at least ")
        check_length(stream, total)
    finally:
        reader.close()
    if not total:
        raise ClipError("empty_audio", "the header is valid but no samples follow")
    return header, np.concatenate(blocks)


def _decoded(encoded: bytes, header: Header, samples: np.ndarray) -> Decoded:
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


def _open_encoded(encoded: bytes) -> _Stream:
    try:
        return _open_stream(_Bytes(with_open_end(encoded)), encoded)
    except ClipError:  # libmpg123 finds nothing to open if too few frames are counted
        mpeg = walk_mpeg(encoded, 1000) if encoded[:1] in (b"\xff", b"I") else None
        if mpeg is None or not mpeg.miscounted:
            raise
    return _open_stream(_Bytes(with_count(encoded, mpeg)), encoded)


def _detail(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".") or type(error).__name__


def _header(stream: soundfile.SoundFile) -> Header:
    known = 0 < stream.frames < 2**62 and stream.samplerate > 0
    duration = stream.frames / stream.samplerate if known else None
    return Header(duration, stream.samplerate, stream.channels, f"{stream.format}/{stream.subtype}")


def _check_header(header: Header, limits: DecodeLimits, length: bool = True) -> None:
    if header.channels > limits.max_channels:
        message = f"{header.channels} channels; enhance.max_channels allows {limits.max_channels}"
        raise ClipError("too_many_channels", message)
    if not limits.min_rate <= header.sampling_rate <= limits.max_rate:
        message = f"{header.sampling_rate} Hz is outside {limits.min_rate} to {limits.max_rate} Hz"
        raise ClipError("bad_sampling_rate", message)
    if length and header.duration is not None and header.duration > limits.max_seconds:
        raise _too_long(header.duration, limits.max_seconds, "")


def _too_long(seconds: float, most: float, prefix: str) -> ClipRejection:
    return ClipRejection("duration_s", seconds, most, f"{prefix}{seconds:.1f} s long; {most:g} s are allowed")


def _missing(there: int, promised: int, rate: int) -> str:
    return f"{there} of {promised} frames are there ({there / rate:.2f} of {promised / rate:.2f} s)"


def _read_mono(
    stream: soundfile.SoundFile, max_seconds: float, mixer: Mixer, promised: int | None = None
) -> np.ndarray:
    """One channel (n,), block by block and never past the limit: the header may lie.

    `promised`: frames after which the stream may be followed by something else, such as a tag that libsndfile takes for
    a damaged frame. If more sound follows, it is read.
    """
    rate = stream.samplerate
    most = math.floor(max_seconds * rate)
    size = max(1, BLOCK_SAMPLES // stream.channels)
    blocks: list[np.ndarray] = []
    total = 0
    while total <= most:
        wanted = min(size, promised - total) if promised and total < promised else size
        try:
            block = stream.read(wanted, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            if total == promised:
                break
            message = f"the stream ends or is damaged after {total / rate:.2f} s: {_detail(error)}"
            raise ClipError("truncated", message) from None
        if len(block) == 0:
            break
        _check_values(block, total, rate)
        blocks.append(mixer(block))
        total += len(block)
    else:
        raise _too_long(total / rate, max_seconds, "at least ")
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def _check_values(block: np.ndarray, offset: int, rate: int) -> None:
    peak = max(-float(block.min()), float(block.max()))  # NaN survives min and max
    if not math.isfinite(peak):
        at = offset + int(np.argmin(np.isfinite(block).all(axis=1)))
        raise ClipError("non_finite", f"the sample at {at / rate:.3f} s is NaN or infinite")
    if peak > LOUDEST or (peak > 1 and np.array_equal(block, np.rint(block))):
        bits = next((bits for bits in (16, 24, 32) if peak <= 1 << (bits - 1)), None)
        if bits is None:
            raise ClipError("out_of_range", f"a sample is {peak:.3g} times full scale")
        raise ClipError(
            "out_of_range",
            f"float samples up to {peak:.6g}, where full scale is 1: they are on the scale of {bits}-bit integers. "
            f"Divide them by {1 << (bits - 1)} (ffmpeg -i IN -af volume=1/{1 << (bits - 1)} OUT)",
        )
