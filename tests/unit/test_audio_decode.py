"""Decoding of what corpora hold, and of what they should not."""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechmill.audio.decode import DecodeLimits, decode, read_header
from speechmill.errors import ClipError, ClipRejection

LIMITS = DecodeLimits(max_seconds=60, max_bytes=1 << 26, max_channels=8)
RATE = 16_000
LOSSLESS = {
    *(("WAV", s) for s in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    *(("FLAC", s) for s in ("PCM_16", "PCM_24")),
    *((f, s) for f in ("AIFF", "CAF", "AU", "W64", "RF64") for s in ("PCM_16", "PCM_24")),
    ("WAVEX", "PCM_16"),
    ("NIST", "PCM_16"),
    ("CAF", "ALAC_16"),
}
LOSSY = {
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    *(("WAV", s) for s in ("ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32")),
    ("AU", "G721_32"),
    ("AIFF", "DWVW_16"),
}


def tone(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """(n,) or (n, channels) float32 whose values are whole 16-bit steps: a decaying chord in a little noise."""
    t = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(round(seconds * 1000) + rate + channels)
    voices = [
        0.3 * np.sin(2 * np.pi * (220 + 90 * c) * t) * (1 + np.sin(7 * t)) / 2 + 0.01 * rng.standard_normal(len(t))
        for c in range(channels)
    ]
    quantised = (np.rint(np.stack(voices, 1) * 32768) / 32768).astype(np.float32)
    return quantised[:, 0] if channels == 1 else quantised


def encoded(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str = "PCM_16", **options) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format=kind, subtype=subtype, **options)
    return data.getvalue()


def error_class(data: bytes | Path, limits: DecodeLimits = LIMITS) -> str:
    with pytest.raises(ClipError) as caught:
        decode(data, limits)
    assert caught.value.message
    return caught.value.error_class


def uncounted_mp3(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    """An MP3 as written to a pipe: without the first frame, which holds the count."""
    data = encoded(samples, rate, "MP3", "MPEG_LAYER_III", **options)
    assert b"Xing" in data[:64] or b"Info" in data[:64]
    return data[data.index(data[:2], 4) :]


def flac_with_length(data: bytes, frames: int) -> bytes:
    """The FLAC with another number of frames (36 bits) in its STREAMINFO."""
    high = data[21] & 0xF0 | frames >> 32
    return data[:21] + bytes([high]) + struct.pack(">I", frames & 0xFFFFFFFF) + data[26:]


# What is read.


@pytest.mark.parametrize(("kind", "subtype"), sorted(LOSSLESS))
def test_lossless_formats_give_the_samples(kind: str, subtype: str) -> None:
    samples = tone(0.3)
    clip = decode(encoded(samples, RATE, kind, subtype), LIMITS)
    np.testing.assert_array_equal(clip.samples, samples)
    assert clip.samples.dtype == np.float32
    assert (clip.sampling_rate, clip.channels, clip.duration) == (RATE, 1, 0.3)
    assert clip.codec.endswith(subtype)


@pytest.mark.parametrize(("kind", "subtype"), sorted(LOSSY))
def test_lossy_formats_give_about_the_samples(kind: str, subtype: str) -> None:
    rate = 8000 if subtype == "GSM610" else RATE
    samples = tone(1.0, rate)
    clip = decode(encoded(samples, rate, kind, subtype), LIMITS)
    assert 0 <= len(clip.samples) - len(samples) < 1024  # block codecs pad the end
    assert np.corrcoef(clip.samples[: len(samples)], samples)[0, 1] > 0.95


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_rates_and_channels(kind: str, rate: int, channels: int) -> None:
    subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(kind, "PCM_16")
    samples = tone(0.5, rate, channels)
    data = encoded(samples, rate, kind, subtype)
    clip, header = decode(data, LIMITS), read_header(data)
    assert (clip.sampling_rate, clip.channels, len(clip.samples)) == (rate, channels, rate // 2)
    assert (header.sampling_rate, header.channels, header.duration) == (rate, channels, 0.5)
    if subtype == "PCM_16":
        np.testing.assert_array_equal(clip.samples, samples.reshape(len(samples), -1).mean(1, dtype=np.float32))


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_every_subtype_that_can_be_written(kind: str) -> None:
    tried = 0
    for subtype in soundfile.available_subtypes(kind):
        for rate, channels in ((8_000, 1), (16_000, 2), (44_100, 1), (48_000, 2)):
            samples = tone(0.5, rate, channels)
            try:
                data = encoded(samples, rate, kind, subtype)
            except (soundfile.SoundFileError, ValueError):  # not with this rate or so many channels
                continue
            clip = decode(data, LIMITS)
            mono = samples.reshape(len(samples), -1).mean(1)
            assert (clip.sampling_rate, clip.channels, clip.codec) == (rate, channels, f"{kind}/{subtype}")
            assert 0 <= len(clip.samples) - len(mono) < 4096  # block codecs pad the end
            assert np.corrcoef(clip.samples[: len(mono)], mono)[0, 1] > 0.95
            tried += 1
    assert tried >= 4


@pytest.mark.parametrize(("kind", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_blocks_join_without_a_seam(kind: str, subtype: str) -> None:
    data = encoded(tone(10, 48_000), 48_000, kind, subtype)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_array_equal(decode(data, LIMITS).samples, whole)


@pytest.mark.parametrize("name", ["clip.raw", "clip.txt", "เสียง หนึ่ง.mp3", "-"])
def test_the_name_does_not_matter(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(tone(0.2), kind="FLAC"))
    assert read_header(path).codec == "FLAC/PCM_16"
    assert decode(path, LIMITS).pcm_sha256 == decode(path.read_bytes(), LIMITS).pcm_sha256


def test_many_threads_agree() -> None:
    clips = [
        encoded(tone(1 + i / 10), kind=k, subtype=s) for i in range(4) for k, s in sorted(LOSSY)[:5] if s != "GSM610"
    ]
    alone = [decode(clip, LIMITS).pcm_sha256 for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda clip: decode(clip, LIMITS).pcm_sha256, clips)) == alone


# Hashes.


def test_hashes_are_of_bytes_and_of_rate_and_samples() -> None:
    samples = tone(0.2)
    data = encoded(samples)
    clip = decode(data, LIMITS)
    assert clip.input_sha256 == hashlib.sha256(data).hexdigest()
    assert clip.pcm_sha256 == hashlib.sha256(struct.pack("<I", RATE) + samples.astype("<f4").tobytes()).hexdigest()


def test_the_same_samples_hash_alike_in_every_container() -> None:
    samples = tone(0.2)
    hashes = {decode(encoded(samples, RATE, *kind), LIMITS).pcm_sha256 for kind in LOSSLESS}
    hashes |= {decode(encoded(np.stack([samples] * n, 1)), LIMITS).pcm_sha256 for n in range(2, 9)}
    assert len(hashes) == 1
    assert decode(encoded(samples, 8_000), LIMITS).pcm_sha256 not in hashes
    samples[100] += 1 / 32768
    assert decode(encoded(samples), LIMITS).pcm_sha256 not in hashes


def test_negative_zero_hashes_as_zero() -> None:
    zeros = np.zeros((100, 3), np.float32)
    hashes = {
        decode(encoded(sign * zeros[:, :n], subtype="FLOAT"), LIMITS).pcm_sha256 for n in (1, 2, 3) for sign in (1, -1)
    }
    assert hashes == {decode(encoded(zeros[:, 0]), LIMITS).pcm_sha256}


# Files that were cut short.

CUTTABLE = {
    f"{kind}-{subtype}": encoded(tone(1.5), RATE, kind, subtype)
    for kind, subtype in sorted(LOSSLESS | LOSSY)
    if subtype not in ("GSM610", "DOUBLE", "PCM_32")
}


@pytest.mark.parametrize("name", CUTTABLE)
@settings(max_examples=12)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_is_an_error_or_cost_nothing(name: str, share: float) -> None:
    data = CUTTABLE[name]
    whole = len(decode(data, LIMITS).samples)
    allowed = whole - 576 if name.startswith("MP3") else whole  # an MP3 may have counted its count as a frame
    try:
        found = len(decode(data[: int(share * len(data))], LIMITS).samples)
    except ClipError as error:
        found, kind = whole, error.error_class
    else:
        kind = "truncated"
    assert found >= allowed
    assert kind in ("truncated", "unreadable", "empty_file", "empty_audio")


@pytest.mark.parametrize("name", ["WAV-PCM_16", "FLAC-PCM_16", "MP3-MPEG_LAYER_III", "OGG-VORBIS", "AIFF-PCM_16"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_the_middle_of_a_file_is_truncated(name: str, share: float) -> None:
    data = CUTTABLE[name]
    assert error_class(data[: int(share * len(data))]) == "truncated"


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_lost_or_damaged_ogg_page_is_an_error(subtype: str) -> None:
    data = encoded(tone(10), RATE, "OGG", subtype)
    pages = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    assert len(pages) > 5
    for page, after in pairwise(pages[2:]):  # from the first page that holds sound
        assert error_class(data[:page] + data[after:]) == "truncated"
        damaged = bytearray(data)
        damaged[(page + after) // 2] ^= 1  # libsndfile would leave the page out
        assert error_class(bytes(damaged)) == "unreadable"


def test_chained_ogg_is_not_read_by_half() -> None:
    assert error_class(encoded(tone(0.5), RATE, "OGG", "VORBIS") * 2) == "unreadable"


def test_an_mp3_that_claims_more_frames_is_truncated() -> None:
    data = bytearray(encoded(tone(1), RATE, "MP3", "MPEG_LAYER_III"))
    at = next(data.index(tag) for tag in (b"Xing", b"Info") if tag in data[:64]) + 8
    (count,) = struct.unpack_from(">I", data, at)
    struct.pack_into(">I", data, at, count * 3)
    assert error_class(bytes(data)) == "truncated"


# Headers that do not know the length, or lie.


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_a_streamed_wav_is_whole(size: int) -> None:
    data = bytearray(encoded(tone(0.5)))
    struct.pack_into("<I", data, 40, size)
    assert decode(bytes(data), LIMITS).duration == 0.5


def test_an_empty_wav_with_other_chunks_is_empty() -> None:
    data = encoded(np.empty(0))
    assert error_class(data + b"LIST" + struct.pack("<I", 10) + b"INFOabcdef") == "empty_audio"


def test_a_streamed_au_and_flac_are_whole() -> None:
    au = bytearray(encoded(tone(0.5), kind="AU"))
    struct.pack_into(">I", au, 8, 0xFFFFFFFF)
    assert decode(bytes(au), LIMITS).duration == 0.5
    flac = flac_with_length(encoded(tone(0.5), kind="FLAC"), 0)
    assert read_header(flac).duration is None
    assert decode(flac, LIMITS).duration == 0.5


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_without_a_count_is_read_whole(tmp_path: Path, rate: int, order: int, mode: str) -> None:
    """libmpg123 guesses its length from the first frame: a fraction of it, or a multiple."""
    rng = np.random.default_rng(0)
    noise, silence = 0.3 * rng.standard_normal(6 * rate), np.zeros(6 * rate)
    samples = np.concatenate([noise, silence][::order]).astype(np.float32)
    data = uncounted_mp3(samples, rate, bitrate_mode=mode)
    clip = decode(data, DecodeLimits(max_seconds=12.3, max_bytes=1 << 24, max_channels=2))
    assert clip.duration == pytest.approx(12, abs=0.15)
    power = [np.mean(part**2) for part in np.array_split(clip.samples, 2)[::order]]
    assert power[0] > 100 * power[1]
    path = tmp_path / "clip"
    path.write_bytes(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + data + b"TAG" + bytes(125))
    assert read_header(path).duration == pytest.approx(12, abs=0.15)
    assert decode(path, LIMITS).pcm_sha256 == clip.pcm_sha256
    assert error_class(data[: len(data) * 2 // 3 - 5]) == "truncated"


@pytest.mark.parametrize("size", [0x70000000, 0xFFFFFFF0])
def test_a_wav_that_claims_gigabytes_is_truncated(size: int) -> None:
    data = bytearray(encoded(tone(0.5)))
    struct.pack_into("<I", data, 40, size)
    assert error_class(bytes(data)) == "truncated"


def test_a_flac_that_claims_more_is_truncated_or_too_long() -> None:
    data = encoded(tone(0.5), kind="FLAC")
    assert error_class(flac_with_length(data, RATE * 50)) == "truncated"
    with pytest.raises(ClipRejection) as caught:
        decode(flac_with_length(data, RATE * 7200), LIMITS)
    assert (caught.value.criterion, caught.value.value, caught.value.threshold) == ("duration_s", 7200, 60)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_the_longest_allowed_clip_passes(kind: str) -> None:
    limits = DecodeLimits(max_seconds=2, max_bytes=1 << 24, max_channels=1)
    assert decode(encoded(np.zeros(2 * RATE), kind=kind), limits).duration == 2
    with pytest.raises(ClipRejection):
        decode(encoded(np.zeros(2 * RATE + 1), kind=kind), limits)
    with pytest.raises(ClipRejection):
        decode(flac_with_length(encoded(np.zeros(2 * RATE + 1), kind="FLAC"), 0), limits)


def test_memory_is_bounded_by_the_limits(tmp_path: Path) -> None:
    """Two hours of silence in some kB, with and without a length in the header, and a WAV that claims 4 GB."""
    bomb = encoded(np.zeros(2 * 3600 * RATE, np.int16), kind="FLAC")
    assert len(bomb) < 1_000_000
    (tmp_path / "0").write_bytes(bomb)
    (tmp_path / "1").write_bytes(flac_with_length(bomb, 0))
    (tmp_path / "2").write_bytes(flac_with_length(bomb, 2**36 - 1))
    wav = bytearray(encoded(tone(0.5)))
    struct.pack_into("<I", wav, 40, 0xFFFFFFF0)
    (tmp_path / "3").write_bytes(wav)
    code = f"""
import resource
from pathlib import Path
from speechmill.audio.decode import DecodeLimits, decode
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(4):
    try:
        decode(Path({str(tmp_path)!r}) / str(i), DecodeLimits(60, 1 << 26, 8))
    except Exception as error:
        print(type(error).__name__)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *outcomes, megabytes = done.stdout.split()
    assert outcomes == ["ClipRejection", "ClipRejection", "ClipRejection", "ClipError"]
    assert int(megabytes) < 40  # 60 s of float32 at 16 kHz are 4 MB


# What is not a clip.


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("ไม่ใช่เสียง no audio\n".encode() * 40, "begins like b'"),
        (b"<!DOCTYPE html><html>404</html>" * 9, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
        (b"\0\0\0\x20ftypM4A " + bytes(200), "MP4"),
    ],
)
def test_what_is_no_audio_is_named(data: bytes, says: str) -> None:
    with pytest.raises(ClipError, match=says) as caught:
        decode(data, LIMITS)
    assert caught.value.error_class == "unreadable"
    assert caught.value.message.isascii()
    with pytest.raises(ClipError):
        read_header(data)


def test_refusals() -> None:
    assert error_class(b"") == "empty_file"
    assert error_class(encoded(tone(1)), DecodeLimits(60, 1000, 8)) == "too_large"
    assert error_class(encoded(np.zeros((10, 1000)))) == "too_many_channels"
    assert error_class(encoded(np.zeros(1000), 3_999)) == "bad_sampling_rate"
    assert error_class(encoded(np.zeros(1000), 384_000)) == "bad_sampling_rate"
    for at, layout, value, expected in (
        (24, "<I", 1, "bad_sampling_rate"),
        (24, "<I", 10_000_000, "bad_sampling_rate"),
        (22, "<H", 1000, "too_many_channels"),
    ):
        lie = bytearray(encoded(tone(0.1)))
        struct.pack_into(layout, lie, at, value)
        assert error_class(bytes(lie)) == expected
    assert error_class(encoded(np.empty(0))) == "empty_audio"
    for value in (np.nan, np.inf, -np.inf):
        samples = np.zeros((RATE, 2), np.float32)
        samples[8000, 1] = value
        with pytest.raises(ClipError, match=r"0\.500 s") as caught:
            decode(encoded(samples, subtype="FLOAT"), LIMITS)
        assert caught.value.error_class == "non_finite"
    for value in (-2e4, 1e9):
        assert error_class(encoded(np.array([0, value, 0], np.float32), subtype="FLOAT")) == "out_of_range"
    assert np.abs(decode(encoded(np.full(9, 3.5, np.float32), subtype="FLOAT"), LIMITS).samples).max() == 3.5


@pytest.mark.parametrize(("bits", "level"), [(16, 1), (16, 1e-3), (24, 1), (32, 1)])
def test_samples_on_the_scale_of_integers_are_errored_whatever_their_level(bits: int, level: float) -> None:
    samples = np.rint(tone(1) * level * 2 ** (bits - 1)).astype(np.float32)
    scale = 16 if level < 1 else bits  # a quiet clip could be of any
    for kind in ("WAV", "CAF"):
        with pytest.raises(ClipError, match=rf"scale of {scale}-bit integers.* volume=1/{2 ** (scale - 1)} ") as caught:
            decode(encoded(samples, kind=kind, subtype="FLOAT"), LIMITS)
        assert caught.value.error_class == "out_of_range"
    resampled = samples * np.float32(0.99)  # no longer whole numbers
    if np.abs(resampled).max() > 8:
        assert error_class(encoded(resampled, subtype="FLOAT")) == "out_of_range"


def test_channels_of_opposite_phase_are_not_averaged() -> None:
    left = tone(1)
    stereo = encoded(np.stack([left, -0.5 * left], 1), subtype="FLOAT")
    for mode, channel in (("mean", "1"), ("first", "1"), ("loudest", "1")):
        clip = decode(stereo, LIMITS, mode)
        np.testing.assert_array_equal(clip.samples, left)
        assert (clip.channel, clip.channels) == (channel, 2)
        assert clip.correlation == pytest.approx(-1)
    assert clip.pcm_sha256 == decode(encoded(left, subtype="FLOAT"), LIMITS).pcm_sha256
    swapped = encoded(np.stack([-0.5 * left, left], 1), subtype="FLOAT")
    assert decode(swapped, LIMITS).channel == decode(swapped, LIMITS, "loudest").channel == "2"
    np.testing.assert_array_equal(decode(swapped, LIMITS).samples, left)
    np.testing.assert_array_equal(decode(swapped, LIMITS, "first").samples, np.float32(-0.5) * left)


def test_correlation_and_choice_of_channels() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0, 0.1, (2, RATE)).astype(np.float32)
    for channels, mode, channel, correlation in (
        ([a], "mean", "1", None),
        ([a, a], "mean", "mean", 1.0),
        ([a, b], "mean", "mean", 0.0),
        ([a, 2 * b], "loudest", "2", 0.0),
        ([a + 0.5, 2 * a - 0.5], "mean", "mean", 1.0),  # an offset is no sound
        ([a, 0 * a], "mean", "mean", None),
        ([a, 0 * a + 0.25], "loudest", "1", None),
        ([2 * a, b, -a, a], "mean", "1", -1.0),
        ([a, a, b], "first", "1", 0.0),
    ):
        clip = decode(encoded(np.stack(channels, 1), subtype="FLOAT"), LIMITS, mode)
        assert clip.channel == channel, (mode, correlation)
        assert clip.correlation == pytest.approx(
            math.nan if correlation is None else correlation, abs=0.02, nan_ok=True
        )


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name in ("pipe", "missing", "."):
        assert error_class(tmp_path / name) == "unreadable"
        with pytest.raises(ClipError):
            read_header(tmp_path / name)
    assert error_class(tmp_path / "empty") == "empty_file"


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as handle:
        handle.truncate(1 << 40)
    assert error_class(path) == "too_large"


@settings(max_examples=150)
@given(st.binary(max_size=600))
def test_random_bytes_end_as_a_clip_error(data: bytes) -> None:
    for magic in (b"", b"RIFF\x10\0\0\0WAVE", b"fLaC\0\0\0\x22", b"OggS\0\x02", b"\xff\xfb\x90\x64", b"FORM", b"caff"):
        try:
            decode(magic + data, LIMITS)
            read_header(magic + data)
        except (ClipError, ClipRejection):
            pass


@settings(max_examples=250)
@given(st.sampled_from(sorted(CUTTABLE)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_damaged_headers_end_as_a_clip_or_its_error(name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(CUTTABLE[name])
    for at, value in changes:
        data[at] = value
    try:
        clip = decode(bytes(data), LIMITS)
    except (ClipError, ClipRejection):
        return
    assert np.isfinite(clip.samples).all()
    assert 0 < clip.duration <= LIMITS.max_seconds


@settings(max_examples=200)
@given(st.sampled_from(sorted(CUTTABLE)), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_anywhere_ends_as_a_clip_or_its_error(name: str, share: float, bit: int) -> None:
    whole = CUTTABLE[name]
    data = bytearray(whole)
    at = int(share * len(data))
    data[at] ^= 1 << bit
    try:
        clip = decode(bytes(data), LIMITS)
    except (ClipError, ClipRejection):
        return
    assert np.isfinite(clip.samples).all()
    if name.startswith(("FLAC", "OGG")) and at > 100:  # with checksums: what passes is whole
        np.testing.assert_array_equal(clip.samples, decode(whole, LIMITS).samples)
