"""MPEG audio frames (MP3 and its elders), counted without decoding.

libmpg123 guesses the length of a stream that has no frame count from its first frame, and stops there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache

from speechmill.errors import ClipError


@dataclass(frozen=True)
class Mpeg:
    """MPEG frames found by walking from header to header."""

    first: int  # offset of the first frame
    found: int  # whole frames, without one that only holds the count
    promised: int | None  # frames by a Xing, Info or VBRI header
    counted: bool  # whether libmpg123 knows the promised count (it does not read VBRI)
    samples: int  # of one frame, per channel
    layer: int
    cut: bool  # the last frame is not all there


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


def walk_mpeg(encoded: bytes) -> Mpeg | None:
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
    return Mpeg(first, found, promised, counted, samples, layer, cut)


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


def check_mpeg(mpeg: Mpeg) -> None:
    # Some encoders count the frame that holds the count.
    if mpeg.promised is not None and mpeg.found + 1 < mpeg.promised:
        raise ClipError("truncated", f"{mpeg.found} of {mpeg.promised} MPEG frames are there")
    if mpeg.cut:
        raise ClipError("truncated", f"the stream breaks off inside its MPEG frame {mpeg.found + 1}")


def count_frame(encoded: bytes, mpeg: Mpeg) -> bytes:
    """A silent frame with a Xing header that tells libmpg123 how many frames follow."""
    second, third, fourth = encoded[mpeg.first + 1 : mpeg.first + 4]
    second, third = second | 1, MPEG_COUNT_KBITS << 4 | third & 0x0C  # without checksum and padding
    size = (_mpeg_frame(second, third) or (0,))[0]
    mono = fourth >> 6 == 3
    side = (17 if mono else 32) if mpeg.samples == 1152 else (9 if mono else 17)
    return (bytes([0xFF, second, third, fourth]) + bytes(side) + struct.pack(">4sII", b"Xing", 1, mpeg.found)).ljust(
        size, b"\0"
    )
