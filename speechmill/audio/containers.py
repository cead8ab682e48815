"""What the containers that carry speech promise about their length, and whether it is there.

libsndfile makes do in silence with files that were cut short.
"""

from __future__ import annotations

import struct
import zlib

from speechmill.audio.ffmpeg import demuxer_of
from speechmill.errors import ClipError

MAX_CHUNKS = 10_000
# Sizes that writers to a pipe leave, because they cannot go back: ffmpeg, GStreamer, arecord, sox.
STREAMED = {0, 0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF, 0x7FFFFFFF - 36, 0x80000000, 0x7FFFF000, 0x7F000000, 0x7F000008}
STREAMED |= {
    size - head for size in (2**64 - 1, 2**63 - 1, 2**64 - 40, 0) for head in (0, 24)
}  # also with Wave64's own head

# magic: (offset of the first chunk, layout of a chunk's name and size, chunk that holds the samples, alignment).
CHUNKED = {
    b"RIFF": (12, "<4sI", b"data", 2),
    b"RIFX": (12, ">4sI", b"data", 2),
    b"RF64": (12, "<4sI", b"data", 2),
    b"FORM": (12, ">4sI", b"SSND", 2),
    b"caff": (8, ">4sq", b"", 1),  # compressed samples need the table behind them, too: all chunks are checked
    b"riff": (40, "<16sQ", bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), 8),  # Sony Wave64
}

# How files begin that libsndfile reads: offset, bytes.
AUDIO_MAGIC = (
    (8, b"WAVE"),
    (0, b"RF64"),
    (0, b"riff\x2e\x91\xcf\x11"),
    (0, b"fLaC"),
    (0, b"OggS"),
    (0, b"ID3"),
    (8, b"AIFF"),
    (8, b"AIFC"),
    (0, b"caff"),
    (0, b".snd"),
    (0, b"NIST_1A"),
    (0, b"\xff\xfb"),  # MP3
    (0, b"\xff\xf3"),
)
PICTURES = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"crx ")  # brands of MP4 without sound


def looks_like_audio(start: bytes) -> bool:
    """Whether a file that begins so may have audio."""
    if start[4:8] == b"ftyp":
        return start[8:12] not in PICTURES
    return any(start[at : at + len(magic)] == magic for at, magic in AUDIO_MAGIC) or demuxer_of(start) is not None


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_container(encoded: bytes) -> None:
    """Say so where the container promises more than is there."""
    if encoded[:4] == b"OggS":
        _check_ogg(encoded)
    elif (found := _promised_bytes(encoded)) is not None:
        promised, there = found
        itself = {len(encoded), len(encoded) - 8}  # a header that counts itself, as some recorders write it
        if promised not in STREAMED | itself and promised > there:
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
    """The file with the size of its samples set, if its writer could not go back to do so. libsndfile needs it."""
    magic = encoded[:4]
    if magic == b"RIFF":
        return _with_open_riff(encoded)
    if magic == b"OggS":
        return _with_last_page(encoded)
    if magic not in (b"caff", b"riff"):
        return encoded
    at, layout, samples, align = CHUNKED[magic]
    samples = samples or b"data"
    head = struct.calcsize(layout)
    for _ in range(MAX_CHUNKS):
        if at + head > len(encoded):
            break
        name, size = struct.unpack_from(layout, encoded, at)
        if name == samples:
            own = 0 if magic == b"caff" else head  # Wave64 counts the chunk's own header
            if size in ((-1, 0) if magic == b"caff" else STREAMED):
                size = len(encoded) - at - head + own
                return encoded[:at] + struct.pack(layout, name, size) + encoded[at + head :]
            break
        if size < (0 if magic == b"caff" else head):
            break
        at += (head if magic == b"caff" else 0) + size
        at += -at % align
    return encoded


def _with_last_page(encoded: bytes) -> bytes:
    """An Ogg stream with its last page marked as such; libsndfile needs it for Opus."""
    at = encoded.rfind(b"OggS")
    if at + 27 > len(encoded) or encoded[at + 5] & 4:
        return encoded
    end = at + 27 + encoded[at + 26] + sum(encoded[at + 27 : at + 27 + encoded[at + 26]])
    page = bytearray(encoded[at:end])
    if end > len(encoded) or _ogg_checksum(bytes(page)) != struct.unpack_from("<I", page, 22)[0]:
        return encoded
    page[5] |= 4
    struct.pack_into("<I", page, 22, _ogg_checksum(bytes(page)))
    return encoded[:at] + bytes(page) + encoded[end:]


def _with_open_riff(encoded: bytes) -> bytes:
    """A WAV that was written to a pipe may say that it holds 0 bytes of samples; libsndfile would believe it."""
    if (found := _promised_bytes(encoded)) is None or found[0] != 0 or found[1] < 8:
        return encoded
    body = len(encoded) - found[1]
    name, size = struct.unpack_from("<4sI", encoded, body)
    if name.strip().isalnum() and body + 8 + size <= len(encoded):
        return encoded  # it is empty: another chunk follows
    return encoded[: body - 4] + b"\xff\xff\xff\xff" + encoded[body:]


def _check_ogg(encoded: bytes) -> None:
    """An Ogg stream is whole if its sound pages follow each other, numbered, to the end of the file (RFC 3533).

    The last page should be marked, but recorders of phones do not do so. libsndfile skips a page whose checksum is
    wrong, and does not miss a first one.
    """
    at, flags, goes_on = 0, 0, False
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
            goes_on = segments > 0 and encoded[at + 26 + segments] == 255  # the last packet, on the next page
        at = end
    ended = flags & 4 or (not goes_on and (at == len(encoded) or encoded[at : at + 3] == b"TAG"))
    if at > len(encoded) or not ended:
        raise ClipError("truncated", f"the Ogg stream breaks off at byte {min(at, len(encoded))}, before its last page")


def _ogg_checksum(page: bytes) -> int:
    """CRC of RFC 3533 with its own field zero: that of zlib with all bits mirrored, from 0 and not inverted."""
    blank = page[:22] + bytes(4) + page[26:]
    mirrored = zlib.crc32(blank.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
