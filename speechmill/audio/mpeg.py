"""MPEG audio frames (MP3 and its elders), counted without decoding.

libmpg123 guesses the length of a stream that has no frame count from its first frame, and stops there.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cache

from speechmill.errors import ClipError

MOST_FRAMES = 1_000_000  # seven hours
FALSE_HEADERS = 20_000
STREAM_FRAMES = 6  # so many in a row are no accident


@dataclass(frozen=True)
class Mpeg:
    """MPEG frames found by walking from header to header."""

    first: int  # offset of the first frame
    found: int  # whole frames, without one that only holds the count
    promised: int | None  # frames by a Xing, Info or VBRI header
    count_at: int | None  # offset of the count that libmpg123 reads (Xing or Info, not VBRI)
    samples: int  # of one frame, per channel
    layer: int
    cut: bool  # the last frame is not all there

    @property
    def counted(self) -> bool:
        """Whether libmpg123 knows how many frames there are."""
        return self.count_at is not None and not self.miscounted

    @property
    def miscounted(self) -> bool:
        """Whether there are more frames than the count says: it is that of the first of joined files, or was never set."""
        return self.count_at is not None and self.promised is not None and self.found > self.promised + 1


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


def walk_mpeg(encoded: bytes, most: int = MOST_FRAMES) -> Mpeg | None:
    """Count the frames. None where no two frames follow each other (free format, or no MPEG at all).

    Args:
        encoded: the file.
        most: frames after which counting ends.

    Raises:
        ClipError: `unreadable`: another MPEG stream follows, which libmpg123 would leave out; or there are so many false
            headers that searching on would take too long.
    """
    at = 0
    while encoded[at : at + 3] == b"ID3" and at + 10 <= len(encoded):  # tag: 7 bits of its size per byte
        a, b, c, d = encoded[at + 6 : at + 10]
        at += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if encoded[at + 5] & 0x10 else 0)
    search = _Search(encoded)
    first = search.next_frame(at, None)
    if first is None:
        return None
    kind = _kind(encoded, first)
    _, samples, layer = _frame_at(encoded, first) or (0, 0, 0)
    found, at, synced, cut = 0, first, True, False
    while at + 4 <= len(encoded) and found <= most:
        frame = _frame_at(encoded, at) if _kind(encoded, at) == kind else None
        if frame is None:
            following = search.next_frame(at + 1, kind)
            if synced and search.other_stream(at, len(encoded) if following is None else following):
                raise ClipError(
                    "unreadable", "MPEG streams of different kinds in a row; libmpg123 reads only the first"
                )
            if following is None:
                break
            at, synced = following, False
            continue
        if at + frame[0] > len(encoded):
            cut = synced
            break
        found, at, synced = found + 1, at + frame[0], True
    promised, count_at = None, None
    start = encoded[first : first + 64]
    for tag in (b"Xing", b"Info"):
        if (place := start.find(tag, 4)) > 0 and first + place + 12 <= len(encoded):
            flags, count = struct.unpack_from(">II", encoded, first + place + 4)
            if flags & 1:
                promised, count_at, found = count, first + place + 8, max(found - 1, 0)
    if start[36:40] == b"VBRI" and first + 54 <= len(encoded):
        promised = struct.unpack_from(">I", encoded, first + 50)[0]
    return Mpeg(first, found, promised, count_at, samples, layer, cut)


class _Search:
    """Searches for frame headers, and gives up after `FALSE_HEADERS` that no other one follows."""

    def __init__(self, encoded: bytes):
        self.encoded = encoded
        self.false = 0

    def next_frame(self, at: int, kind: tuple[int, int, int] | None, end: int | None = None) -> int | None:
        """The next frame (of a kind) that another one of its kind follows."""
        encoded = self.encoded
        for match in _headers(kind).finditer(encoded, at, len(encoded) if end is None else end):
            place = match.start()
            frame = _frame_at(encoded, place) if place + 4 <= len(encoded) else None
            if frame is not None:
                then = place + frame[0]
                if then + 4 <= len(encoded) and _kind(encoded, then) == _kind(encoded, place):
                    return place
            self.false += 1
            if self.false > FALSE_HEADERS:
                raise ClipError("unreadable", f"{FALSE_HEADERS} MPEG headers without a frame: padding, or no MPEG")
        return None

    def other_stream(self, at: int, end: int) -> bool:
        """Whether at least `STREAM_FRAMES` frames of one kind follow each other before `end`."""
        while (place := self.next_frame(at, None, end)) is not None:
            kind, then = _kind(self.encoded, place), place
            for _ in range(STREAM_FRAMES):
                frame = _frame_at(self.encoded, then) if then + 4 <= end else None
                if frame is None or _kind(self.encoded, then) != kind:
                    break
                then += frame[0]
            else:
                return True
            at = place + 1
        return False


@cache
def _headers(kind: tuple[int, int, int] | None) -> re.Pattern[bytes]:
    """Matches the first three bytes of a header, of any kind or of one."""
    pairs = [(second, third) for second in range(256) for third in range(256) if _mpeg_frame(second, third)]
    if kind is not None:
        pairs = [(second, third) for second, third in pairs if second & 0xFE == kind[1] and third & 0x0C == kind[2]]
    second, third = (
        b"".join(re.escape(bytes([byte])) for byte in sorted(set(part))) for part in zip(*pairs, strict=True)
    )
    # Overlapping headers are found, too: the match is one byte long.
    return re.compile(b"\xff(?=[" + second + b"][" + third + b"])", re.DOTALL)


def _kind(encoded: bytes, at: int) -> tuple[int, int, int]:
    """What all frames of a stream share: sync, version and layer, sampling rate."""
    return encoded[at], encoded[at + 1] & 0xFE, encoded[at + 2] & 0x0C


def _frame_at(encoded: bytes, at: int) -> tuple[int, int, int] | None:
    return _mpeg_frame(encoded[at + 1], encoded[at + 2]) if encoded[at] == 0xFF else None


def check_mpeg(mpeg: Mpeg) -> None:
    # Some encoders count the frame that holds the count.
    if mpeg.promised is not None and mpeg.found + 1 < mpeg.promised:
        raise ClipError("truncated", f"{mpeg.found} of {mpeg.promised} MPEG frames are there")
    if mpeg.cut:
        raise ClipError("truncated", f"the stream breaks off inside its MPEG frame {mpeg.found + 1}")


def with_count(encoded: bytes, mpeg: Mpeg) -> bytes:
    """The file with the count of its frames corrected. What else the header says, such as the encoder's delay, stays."""
    assert mpeg.count_at is not None
    counted = bytearray(encoded)
    struct.pack_into(">I", counted, mpeg.count_at, mpeg.found)
    if counted[mpeg.count_at - 1] & 2:  # so does the number of bytes
        struct.pack_into(">I", counted, mpeg.count_at + 4, len(encoded) - mpeg.first)
    return bytes(counted)


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
