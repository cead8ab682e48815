"""Decoding of untrusted audio: by header, in bounded memory, with a reason where it fails.

Whatever libsndfile reads is read (WAV, FLAC, MP3, Ogg Vorbis and Opus, AIFF, AU, CAF, W64, NIST Sphere, ...).
libsndfile makes do in silence with files that were cut short, so the promises of the containers that carry
speech are checked here. A cut is not seen in streamed files (without a size in the header) and in the formats of
samplers and laboratories (AVR, IRCAM, MAT, MPC, PAF, PVF, VOC, WVE, XI).
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import stat
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from speechmill.errors import ClipError, ClipRejection

BLOCK_SAMPLES = 1 << 16  # samples (frames x channels) decoded at a time
ABSURD = 1e4  # full scales; a float file beyond is not audio
MPEG_WALK_BYTES = 1 << 26  # of an MP3 that does not say its length, read to find it
MAX_CHUNKS = 10_000
# Sizes that writers to a pipe leave, because they cannot go back: ffmpeg, GStreamer, arecord, sox.
STREAMED = {0, 0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF, 0x7FFFFFFF - 36, 0x80000000, 0x7FFFF000, 2**64 - 1}

# magic: (offset of the first chunk, layout of a chunk's name and size, chunk that holds the samples, alignment).
CHUNKED = {
    b"RIFF": (12, "<4sI", b"data", 2),
    b"RIFX": (12, ">4sI", b"data", 2),
    b"RF64": (12, "<4sI", b"data", 2),
    b"FORM": (12, ">4sI", b"SSND", 2),
    b"caff": (8, ">4sq", b"", 1),  # compressed samples need the table behind them, too: all chunks are checked
    b"riff": (40, "<16sQ", bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), 8),  # Sony Wave64
}
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


@dataclass(frozen=True)
class _Mpeg:
    """MPEG frames found by walking from header to header."""

    first: int  # offset of the first frame
    found: int  # whole frames, without one that only holds the count
    promised: int | None  # frames by a Xing, Info or VBRI header
    counted: bool  # whether libmpg123 knows the promised count (it does not read VBRI)
    samples: int  # of one frame, per channel
    layer: int
    cut: bool  # the last frame is not all there


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
        mpeg = _walk_mpeg(encoded)
        if mpeg is not None and not mpeg.counted:
            seconds = mpeg.found * mpeg.samples / header.sampling_rate if whole else None
            return Header(seconds, header.sampling_rate, header.channels, header.codec)
    return header


def decode(data: bytes | Path, limits: DecodeLimits) -> Decoded:
    """Decode a clip. Memory is bounded by the limits, whatever the header claims; may be called from many threads.

    Raises:
        ClipError: empty_file, too_large, unreadable, bad_sampling_rate, too_many_channels, truncated, empty_audio,
            non_finite or out_of_range.
        ClipRejection: duration_s, where the header or the stream itself is longer than allowed.
    """
    encoded = _read_bytes(data, limits.max_bytes)
    try:
        stream = _open_stream(_Bytes(_with_open_end(encoded)), encoded)
    except ClipError:
        _check_container(encoded)  # a cut in the header is a cut, too
        raise
    mpeg = _walk_mpeg(encoded) if stream.format == "MP3" else None
    if mpeg is not None:
        _check_mpeg(mpeg)
        if not mpeg.counted and mpeg.layer == 3:
            # libmpg123 would guess the length from the first frame, and stop there.
            stream.close()
            stream = _open_stream(_Bytes(_count_frame(encoded, mpeg) + encoded[mpeg.first :]), encoded)
    with stream:
        header = _header(stream)
        _check_header(header, limits)
        _check_container(encoded)
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
        raise ClipError("unreadable", f"the file cannot be read: {error.strerror}") from None


def _read_bytes(data: bytes | Path, max_bytes: int) -> bytes:
    if isinstance(data, Path):
        with _open_file(data) as handle:
            size = handle.seek(0, io.SEEK_END)
            handle.seek(0)
            try:
                encoded = handle.readall() if size <= max_bytes else b""
            except OSError as error:
                raise ClipError("unreadable", f"the file cannot be read: {error.strerror}") from None
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


def _check_container(encoded: bytes) -> None:
    """Say so where the container promises more than is there."""
    if encoded[:4] == b"OggS":
        _check_ogg(encoded)
    elif (found := _promised_bytes(encoded)) is not None:
        promised, there = found
        if promised not in STREAMED and promised > there:
            raise ClipError("truncated", f"{there} of {promised} bytes of samples are there")


def _promised_bytes(encoded: bytes) -> tuple[int, int] | None:
    """Bytes of samples that the container promises, and bytes that are there; None where it does not say."""
    magic = encoded[:4]
    if magic in (b".snd", b"dns.") and len(encoded) >= 12:
        start, size = struct.unpack_from(">II" if magic == b".snd" else "<II", encoded, 4)
        return size, len(encoded) - start
    if magic not in CHUNKED:
        return None
    at, layout, samples, align = CHUNKED[magic]
    head = struct.calcsize(layout)
    wide = 0
    for _ in range(MAX_CHUNKS):
        if at + head > len(encoded):
            return None
        name, size = struct.unpack_from(layout, encoded, at)
        size -= head if magic == b"riff" else 0  # Wave64 counts the chunk's own header
        body = at + head
        if size < 0:
            return None
        if name == b"ds64" and body + 16 <= len(encoded):
            wide = struct.unpack_from("<Q", encoded, body + 8)[0]
        if name == samples and size == 0xFFFFFFFF and magic == b"RF64":
            size = wide
        if name == samples or body + size > len(encoded):
            return size, len(encoded) - body
        at = body + size + -size % align
    return None


def _with_open_end(encoded: bytes) -> bytes:
    """A WAV that was written to a pipe may say that it holds 0 bytes of samples; libsndfile would believe it."""
    if encoded[:4] != b"RIFF" or (found := _promised_bytes(encoded)) is None or found[0] != 0 or found[1] < 8:
        return encoded
    body = len(encoded) - found[1]
    name, size = struct.unpack_from("<4sI", encoded, body)
    if name.strip().isalnum() and body + 8 + size <= len(encoded):
        return encoded  # it is empty: another chunk follows
    return encoded[: body - 4] + b"\xff\xff\xff\xff" + encoded[body:]


def _check_ogg(encoded: bytes) -> None:
    """An Ogg stream is whole if its pages follow each other to one that is marked as the last (RFC 3533)."""
    at, flags = 0, 0
    while encoded[at : at + 4] == b"OggS" and at + 27 <= len(encoded):
        if flags & 4 and encoded[at + 5] & 2:
            raise ClipError("unreadable", "several Ogg streams in a row, of which libsndfile reads only the first")
        flags = encoded[at + 5]
        segments = encoded[at + 26]
        at += 27 + segments + sum(encoded[at + 27 : at + 27 + segments])
    if at > len(encoded) or not flags & 4:
        raise ClipError("truncated", f"the Ogg stream breaks off at byte {min(at, len(encoded))}, before its last page")


# Bit rates in kbit/s by (MPEG 1?, layer), and sampling rates of MPEG 1 in Hz (ISO 11172-3, 13818-3).
_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MPEG_KBITS = {
    (True, 1): tuple(range(32, 449, 32)),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): _LOW,
    (False, 3): _LOW,
}
MPEG_RATES = (44_100, 48_000, 32_000)
MPEG_COUNT_KBITS = 9  # index of a bit rate whose frames have room for a count, at every sampling rate


@cache
def _mpeg_frame(second: int, third: int) -> tuple[int, int, int] | None:
    """Bytes, samples and layer of the frame whose header has these bytes; None where they are no header."""
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    kbits, rate = third >> 4, third >> 2 & 3
    if second & 0xE0 != 0xE0 or version == 1 or layer == 4 or kbits in (0, 15) or rate == 3:
        return None
    first = version == 3
    hertz = MPEG_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = {1: 384, 2: 1152, 3: 1152 if first else 576}[layer]
    slot = 4 if layer == 1 else 1
    units = samples // 8 // slot * MPEG_KBITS[first, layer][kbits - 1] * 1000 // hertz
    return (units + (third >> 1 & 1)) * slot, samples, layer


def _walk_mpeg(encoded: bytes) -> _Mpeg | None:
    """Count the frames. None where no two frames follow each other (free format, or no MPEG at all)."""
    at = 0
    while encoded[at : at + 3] == b"ID3" and at + 10 <= len(encoded):  # tag: 7 bits of its size per byte
        a, b, c, d = encoded[at + 6 : at + 10]
        at += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if encoded[at + 5] & 0x10 else 0)
    first = _next_frame(encoded, at, None)
    if first is None:
        return None
    kind = _kind(encoded, first)
    _, samples, layer = _frame_at(encoded, first) or (0, 0, 0)
    found, at, synced, cut = 0, first, True, False
    while at + 4 <= len(encoded):
        frame = _frame_at(encoded, at) if _kind(encoded, at) == kind else None
        if frame is None:
            following = _next_frame(encoded, at + 1, kind)
            if following is None:
                break
            at, synced = following, False
            continue
        if at + frame[0] > len(encoded):
            cut = synced
            break
        found, at, synced = found + 1, at + frame[0], True
    promised, counted = None, False
    start = encoded[first : first + 64]
    for tag in (b"Xing", b"Info"):
        if (place := start.find(tag, 4)) > 0 and first + place + 12 <= len(encoded):
            flags, count = struct.unpack_from(">II", encoded, first + place + 4)
            if flags & 1:
                promised, counted, found = count, True, max(found - 1, 0)
    if start[36:40] == b"VBRI" and first + 54 <= len(encoded):
        promised = struct.unpack_from(">I", encoded, first + 50)[0]
    return _Mpeg(first, found, promised, counted, samples, layer, cut)


def _kind(encoded: bytes, at: int) -> tuple[int, int, int]:
    """What all frames of a stream share: sync, version and layer, sampling rate."""
    return encoded[at], encoded[at + 1] & 0xFE, encoded[at + 2] & 0x0C


def _frame_at(encoded: bytes, at: int) -> tuple[int, int, int] | None:
    return _mpeg_frame(encoded[at + 1], encoded[at + 2]) if encoded[at] == 0xFF else None


def _next_frame(encoded: bytes, at: int, kind: tuple[int, int, int] | None) -> int | None:
    """The next frame (of a kind) that another one of its kind follows."""
    while (at := encoded.find(b"\xff", at)) >= 0 and at + 4 <= len(encoded):
        frame = _frame_at(encoded, at)
        if frame is not None and (kind is None or _kind(encoded, at) == kind):
            then = at + frame[0]
            if then + 4 <= len(encoded) and _kind(encoded, then) == _kind(encoded, at):
                return at
        at += 1
    return None


def _check_mpeg(mpeg: _Mpeg) -> None:
    # Some encoders count the frame that holds the count.
    if mpeg.promised is not None and mpeg.found + 1 < mpeg.promised:
        raise ClipError("truncated", f"{mpeg.found} of {mpeg.promised} MPEG frames are there")
    if mpeg.cut:
        raise ClipError("truncated", f"the stream breaks off inside its MPEG frame {mpeg.found + 1}")


def _count_frame(encoded: bytes, mpeg: _Mpeg) -> bytes:
    """A silent frame with a Xing header that tells libmpg123 how many frames follow."""
    second, third, fourth = encoded[mpeg.first + 1 : mpeg.first + 4]
    second, third = second | 1, MPEG_COUNT_KBITS << 4 | third & 0x0C  # without checksum and padding
    size = (_mpeg_frame(second, third) or (0,))[0]
    mono = fourth >> 6 == 3
    side = (17 if mono else 32) if mpeg.samples == 1152 else (9 if mono else 17)
    return (bytes([0xFF, second, third, fourth]) + bytes(side) + struct.pack(">4sII", b"Xing", 1, mpeg.found)).ljust(
        size, b"\0"
    )
