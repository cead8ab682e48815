"""What the containers that carry speech promise about their length, and whether it is there.

libsndfile makes do in silence with files that were cut short.
"""

from __future__ import annotations

import struct
import zlib

from speechmill.errors import ClipError

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

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_container(encoded: bytes) -> None:
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


def with_open_end(encoded: bytes) -> bytes:
    """A WAV that was written to a pipe may say that it holds 0 bytes of samples; libsndfile would believe it."""
    if encoded[:4] != b"RIFF" or (found := _promised_bytes(encoded)) is None or found[0] != 0 or found[1] < 8:
        return encoded
    body = len(encoded) - found[1]
    name, size = struct.unpack_from("<4sI", encoded, body)
    if name.strip().isalnum() and body + 8 + size <= len(encoded):
        return encoded  # it is empty: another chunk follows
    return encoded[: body - 4] + b"\xff\xff\xff\xff" + encoded[body:]


def _check_ogg(encoded: bytes) -> None:
    """An Ogg stream is whole if its sound pages follow each other, numbered, to one marked as the last (RFC 3533).

    libsndfile skips a page whose checksum is wrong, and does not miss a first one.
    """
    at, flags = 0, 0
    following: dict[int, int] = {}  # number of the next page of each stream, by its serial number
    while encoded[at : at + 4] == b"OggS" and at + 27 <= len(encoded):
        if flags & 4 and encoded[at + 5] & 2:
            raise ClipError("unreadable", "several Ogg streams in a row, of which libsndfile reads only the first")
        flags = encoded[at + 5]
        serial, number, checksum = struct.unpack_from("<III", encoded, at + 14)
        segments = encoded[at + 26]
        end = at + 27 + segments + sum(encoded[at + 27 : at + 27 + segments])
        if end <= len(encoded):
            if _ogg_checksum(encoded[at:end]) != checksum:
                raise ClipError("unreadable", f"the Ogg page at byte {at} is damaged: its checksum is wrong")
            if number != following.get(serial, number):
                raise ClipError("truncated", f"Ogg pages are missing before byte {at}")
            following[serial] = number + 1 & 0xFFFFFFFF
        at = end
    if at > len(encoded) or not flags & 4:
        raise ClipError("truncated", f"the Ogg stream breaks off at byte {min(at, len(encoded))}, before its last page")


def _ogg_checksum(page: bytes) -> int:
    """CRC of RFC 3533 with its own field zero: that of zlib with all bits mirrored, from 0 and not inverted."""
    blank = page[:22] + bytes(4) + page[26:]
    mirrored = zlib.crc32(blank.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
