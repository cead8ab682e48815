"""Containers and codecs that libsndfile does not read: decoded to the samples that FFmpeg gives, within the same limits."""

from __future__ import annotations

import io
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import soundfile

from speechmill.audio.decode import DecodeLimits, decode, read_header
from speechmill.errors import ClipError, ClipRejection

from ..corpora import configured, list_and_read
from .av_samples import FORMATS, LOSSLESS, WITHOUT_LENGTH, encode, sound

LIMITS = DecodeLimits(max_seconds=60, max_bytes=1 << 28, max_channels=8)


def error_of(data, limits=LIMITS):
    with pytest.raises((ClipError, ClipRejection)) as caught:
        decode(data, limits)
    error = caught.value
    return (error.error_class if isinstance(error, ClipError) else error.criterion), error.message


@pytest.mark.parametrize("name", FORMATS)
def test_speech_is_decoded(name):
    decoded = decode(encode(name), LIMITS)
    rate = FORMATS[name][2]
    assert decoded.sampling_rate == (48000 if FORMATS[name][1] == "libopus" else rate)
    assert decoded.duration == pytest.approx(3.0, abs=0.11)
    assert "/" in decoded.codec
    if name in LOSSLESS:
        assert np.array_equal(decoded.samples, sound()[:, 0] / np.float32(32768))
    power = np.sqrt(np.mean(decoded.samples**2)), np.sqrt(np.mean((sound()[:, 0] / 32768) ** 2))
    assert power[0] == pytest.approx(power[1], rel=0.15)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_of_ffmpeg(tmp_path, name, channels):
    if channels == 2 and "amr" in name:
        pytest.skip("AMR has one channel")
    (tmp_path / name).write_bytes(encode(name, channels=channels))
    command = ["ffmpeg", "-loglevel", "error", "-i", tmp_path / name, "-f", "f32le", "-"]
    expected = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<f4").reshape(
        -1, channels
    )
    decoded = decode(encode(name, channels=channels), LIMITS)
    assert decoded.channels == channels
    assert len(decoded.samples) == len(expected)
    assert np.abs(decoded.samples - expected.mean(1)).max() < 2e-6


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 0.9, 0.98, 0.999])
def test_a_cut_is_an_error_or_cost_nothing(name, share):
    """But for streams of frames between which it is not seen."""
    data = encode(name)
    try:
        found = decode(data[: int(len(data) * share)], LIMITS).duration
    except ClipError as error:
        found = error.error_class
    nothing = isinstance(found, float) and found >= decode(data, LIMITS).duration - 0.1
    assert found == "truncated" or nothing or name in WITHOUT_LENGTH


@pytest.mark.parametrize("name", FORMATS)
def test_the_header_has_the_duration(tmp_path, name):
    (tmp_path / "a").write_bytes(encode(name))
    for source in (encode(name), tmp_path / "a"):
        header = read_header(source)
        assert (header.duration is None) == (name in ("aac.aac", "amr-nb.amr", "ac3.ac3"))
        assert header.duration is None or header.duration == pytest.approx(3.0, abs=0.15)
        assert header.codec == decode(encode(name), LIMITS).codec


@pytest.mark.parametrize("name", ["aac.mp4", "opus.mka", "mp3.avi", "pcm.mov", "aac.ts"])
def test_the_sound_of_a_video(name):
    decoded = decode(encode(name, video=True), LIMITS)
    assert decoded.duration == pytest.approx(3.0, abs=0.1)


def test_a_video_without_sound_says_so():
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as file:
        picture = file.add_stream("mpeg4", rate=5)
        picture.width = picture.height = 64
        picture.pix_fmt = "yuv420p"
        file.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        file.mux(picture.encode(None))
    assert error_of(target.getvalue()) == ("unreadable", "the MP4 file has no sound")


@pytest.mark.parametrize("name", ["aac.m4a", "opus.webm", "amr-nb.amr", "wmav2.wma", "aac.aac"])
def test_limits(tmp_path, name):
    data = encode(name)
    assert error_of(data, DecodeLimits(2, 1 << 28, 8))[0] == "duration_s"
    assert error_of(data, DecodeLimits(60, len(data) - 1, 8))[0] == "too_large"
    assert error_of(data, DecodeLimits(60, 1 << 28, 0))[0] == "too_many_channels"
    assert error_of(data, DecodeLimits(60, 1 << 28, 8, min_rate=50_000))[0] == "bad_sampling_rate"
    (tmp_path / "a.wav").write_bytes(data)  # the name does not matter
    assert decode(tmp_path / "a.wav", LIMITS).pcm_sha256 == decode(data, LIMITS).pcm_sha256


def test_many_threads_agree():
    names = [*FORMATS] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: decode(encode(name), LIMITS).pcm_sha256, names))
    assert len(set(found[: len(FORMATS)])) > len(FORMATS) // 2
    assert found[: len(FORMATS)] * 4 == found


def test_lossless_copies_hash_like_the_original():
    wav = io.BytesIO()
    soundfile.write(wav, sound(), 16000, format="WAV", subtype="PCM_16")
    assert {decode(encode(name), LIMITS).pcm_sha256 for name in LOSSLESS} == {decode(wav.getvalue(), LIMITS).pcm_sha256}


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
        b"[playlist]\nFile1=/etc/passwd\n",
        b"YUV4MPEG2 W64 H64 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(6144),
        b"GIF89a" + bytes(100),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
)
def test_other_demuxers_are_out_of_reach(data):
    assert error_of(data)[0] == "unreadable"


@pytest.mark.parametrize("codec", ["pcm_s16le_planar", "adpcm_argo", "roq_dpcm", "ra_144"])
def test_other_decoders_are_out_of_reach(codec):
    try:
        data = encode(f"matroska:{codec}")
    except (av.FFmpegError, ValueError, LookupError):
        pytest.skip("this FFmpeg does not encode it")
    assert error_of(data)[0] == "unreadable"


def test_a_folder_of_all_formats(tmp_path):
    (tmp_path / "f").mkdir()
    for name in FORMATS:
        (tmp_path / "f" / name).write_bytes(encode(name))
    (tmp_path / "f" / "voice note").write_bytes(encode("amr-nb.amr"))
    clips, *_ = list_and_read(configured(tmp_path, "folder", path=str(tmp_path / "f"), batch_size=100))
    [clips] = clips.values()
    assert [row["source_file"] for row, _ in clips] == sorted([*FORMATS, "voice note"])
    for row, path in clips:
        assert decode(path, LIMITS).duration == pytest.approx(3.0, abs=0.11), row


@pytest.mark.parametrize("name", ["aiff:pcm_s16be", "caf:pcm_s16be", "w64:pcm_s16le", "wav:pcm_s16le", "au:pcm_s16be"])
def test_written_to_a_pipe(name):
    """The sizes in the header were never set."""
    decoded = decode(encode(name, pipe=True), LIMITS)
    assert np.array_equal(decoded.samples, sound()[:, 0] / np.float32(32768))
