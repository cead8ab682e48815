"""Files as recorders, taggers and joiners leave them: read whole, or errored; never cut in silence."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
import soundfile

from speechmill.audio.decode import DecodeLimits, decode, read_header
from speechmill.errors import ClipError, ClipRejection

from ..corpora import encoded, speech
from .test_audio_decode import error_class

LIMITS = DecodeLimits(max_seconds=60, max_bytes=1 << 28, max_channels=8)


def encode(samples, rate=16000, **options) -> bytes:
    memory = io.BytesIO()
    soundfile.write(memory, samples, rate, **options)
    return memory.getvalue()


def mp3(number: int, rate: int = 16000, channels: int = 1, mode: str = "CONSTANT") -> bytes:
    samples = np.tile(speech(number)[:, None], (1, channels))
    return encode(samples, rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode, compression_level=0.5)


def count_of(data: bytes) -> int:
    """Offset of the number of frames."""
    return next(data.index(tag) for tag in (b"Xing", b"Info") if tag in data[:256]) + 8


def seconds(*numbers: int) -> float:
    return sum(len(speech(number)) for number in numbers) / 16000


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("numbers", [(0, 3), (0, 1, 2), (3, 0, 3, 0)])
@pytest.mark.parametrize("between", [b"", b"TAG" + bytes(125), b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)])
def test_mp3_files_that_were_joined(tmp_path, mode, numbers, between):
    """Each has a count of its own frames, and at most the encoder's padding between them is added."""
    data = between.join(mp3(number, mode=mode) for number in numbers)
    decoded = decode(data, LIMITS)
    assert seconds(*numbers) - 0.06 <= decoded.duration <= seconds(*numbers) + 0.16 * len(numbers)
    (tmp_path / "a.mp3").write_bytes(data)
    assert read_header(tmp_path / "a.mp3").duration == pytest.approx(decoded.duration, abs=0.2)


@pytest.mark.parametrize("count", [0, 1, 7, 30])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_that_counts_too_few_frames_is_read_whole(count, mode):
    data = bytearray(mp3(0, mode=mode))
    whole = decode(bytes(data), LIMITS)
    struct.pack_into(">I", data, count_of(data), count)
    decoded = decode(bytes(data), LIMITS)
    assert decoded.duration == pytest.approx(whole.duration, abs=1e-3)
    assert np.abs(decoded.samples - whole.samples).max() < 1e-4


@pytest.mark.parametrize(
    "parts",
    [
        [(0, 16000, 1), (1, 44100, 1)],
        [(0, 44100, 1), (1, 48000, 1)],
        [(0, 48000, 2), (1, 16000, 1)],
    ],
)
def test_mp3_streams_of_different_rates_are_an_error(parts):
    """libmpg123 reads the first, and ends in silence."""
    assert error_class(b"".join(mp3(*part) for part in parts)) == "unreadable"


@pytest.mark.parametrize("padding", [b"\xff", b"\xff\xfb", b"\xff\xfb\x90", b"\xff\xf3\x40\xc0", b"\0"])
@pytest.mark.parametrize("place", ["before", "behind", "alone"])
def test_padding_costs_no_time(padding, place):
    padding = padding * ((4 << 20) // len(padding))
    data = {"before": padding + mp3(0), "behind": mp3(0) + padding, "alone": padding}[place]
    begin = time.process_time()
    for read in (lambda: decode(data, LIMITS), lambda: read_header(data)):
        try:
            read()
        except (ClipError, ClipRejection):
            assert place != "behind" or padding[1] != 0xFF
    assert time.process_time() - begin < 2


def test_an_hour_in_small_frames_is_refused_early():
    """256 MB of MP3 would be five million frames."""
    frame = mp3(0)
    data = frame + frame[1000:] * 2000
    begin = time.process_time()
    with pytest.raises((ClipError, ClipRejection)):
        decode(data, DecodeLimits(10, 1 << 28, 8))
    assert time.process_time() - begin < 2


def ogg_without_end(data: bytes) -> bytes:
    """As Android's MediaMuxer writes it: the last page is not marked."""
    changed = bytearray(data)
    at = changed.rindex(b"OggS")
    changed[at + 5] &= ~4
    changed[at + 22 : at + 26] = bytes(4)
    crc = 0
    for byte in changed[at:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7) & 0xFFFFFFFF if crc & 0x80000000 else crc << 1 & 0xFFFFFFFF
    struct.pack_into("<I", changed, at + 22, crc)
    return bytes(changed)


@pytest.mark.parametrize(("kind", "rate"), [("VORBIS", 16000), ("VORBIS", 44100), ("OPUS", 48000), ("OPUS", 16000)])
def test_an_ogg_without_its_end_mark_is_whole(kind, rate):
    whole = encode(np.resize(speech(0), rate * 3), rate, format="OGG", subtype=kind)
    data = ogg_without_end(whole)
    assert decode(data, LIMITS).duration == pytest.approx(3.0, abs=0.05)
    assert decode(data + b"TAG" + bytes(125), LIMITS).duration == pytest.approx(3.0, abs=0.05)
    for share in (0.3, 0.5, 0.9, 0.99):
        assert error_class(data[: int(len(data) * share)]) == "truncated"
    assert error_class(data + b"OggS\0") == "truncated"


APE = b"APETAGEX" + bytes(24)


@pytest.mark.parametrize("behind", [b"TAG" + bytes(125), APE, APE + b"TAG" + bytes(125), b"\0" * 1000, b"\r\n"])
@pytest.mark.parametrize("before", [b"", b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)])
@pytest.mark.parametrize("channels", [1, 2])
def test_tags_around_a_flac(behind, before, channels):
    plain = encode(np.tile(speech(0)[:, None], (1, channels)), format="FLAC", subtype="PCM_16")
    decoded = decode(before + plain + behind, LIMITS)
    assert decoded.pcm_sha256 == decode(plain, LIMITS).pcm_sha256
    for share in (0.3, 0.7, 0.95):
        assert error_class(before + plain[: int(len(plain) * share)] + behind) == "truncated"


@pytest.mark.parametrize("size", ["file", "file - 8"])
@pytest.mark.parametrize("chunks", [b"", b"JUNK" + struct.pack("<I", 10) + bytes(10)])
@pytest.mark.parametrize("number", [0, 1])
def test_a_wav_whose_header_counts_itself(size, chunks, number):
    """Voice recorders write the size of the file where that of the samples belongs."""
    data = bytearray(encoded(number))
    data[36:36] = chunks
    at = data.index(b"data") + 4
    struct.pack_into("<I", data, at, len(data) - (8 if size == "file - 8" else 0))
    assert decode(bytes(data), LIMITS).pcm_sha256 == decode(encoded(number), LIMITS).pcm_sha256
    struct.pack_into("<I", data, at, len(data) + 2)
    assert error_class(bytes(data)) == "truncated"
