"""Decoding with FFmpeg (PyAV) what libsndfile does not read: AAC, AMR, WMA, ALAC, Opus in WebM, the sound of videos.

The data is untrusted, so little of FFmpeg is reachable: the demuxer is chosen here by the first bytes of the file, and
only the decoders of `DECODERS` are opened. No file or address that the data names is opened, and no picture is decoded.
"""

from __future__ import annotations

import io
import math
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, BinaryIO

import numpy as np

from speechmill.errors import ClipError
from speechmill.utils.text import plain

# How files begin: offset, bytes, FFmpeg's demuxer.
DEMUXERS = (
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"#!AMR", "amr"),
    (0, b"FLV\x01", "flv"),
    (8, b"AVI ", "avi"),
    (8, b"WAVE", "wav"),
    (0, b"caff", "caf"),
    (0, b"riff\x2e\x91\xcf\x11", "w64"),
    (0, b"OggS", "ogg"),
    (0, b"MAC ", "ape"),
    (0, b"TTA1", "tta"),
    (0, b"wvpk", "wv"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x0b\x77", "ac3"),
)
PACKETS_BYTES = 188  # of MPEG-TS, each beginning with b"G"
NAMES = {"mov": "MP4", "matroska": "MATROSKA", "amr": "AMR", "asf": "ASF"}  # of the container in `codec`
DECODERS = frozenset(
    (
        "aac alac amrnb amrwb libopencore_amrnb libopencore_amrwb wmav1 wmav2 wmapro wmalossless wmavoice opus libopus vorbis "
        "libvorbis mp1float mp2float mp3float mp1 mp2 mp3 flac ac3 eac3 ape tta wavpack speex libspeex nellymoser "
        "pcm_s8 pcm_u8 pcm_s16le pcm_s16be pcm_s24le pcm_s24be pcm_s32le pcm_s32be pcm_f32le pcm_f32be pcm_f64le pcm_f64be "
        "pcm_alaw pcm_mulaw adpcm_ms adpcm_ima_wav adpcm_ima_qt adpcm_swf adpcm_yamaha adpcm_g722 g722 gsm gsm_ms libgsm libgsm_ms"
    ).split()
)
RAW = frozenset({"amr", "aac", "ac3"})  # streams of frames without a length; FFmpeg guesses it from their first ones
PROBE_BYTES = 1 << 20  # read to find the streams
SLACK_S = 0.1  # which encoders pad, or leave out, at the start and the end
CPU_SECONDS = 60.0  # of one clip, besides a tenth of its allowed length
MOST_BOXES = 10_000


@dataclass(frozen=True)
class Stream:
    """What a file claims about its sound: Hz, channels, container/decoder, and seconds (None if it does not say)."""

    sampling_rate: int
    channels: int
    codec: str
    duration: float | None


def demuxer_of(encoded: bytes) -> str | None:
    """The demuxer for a file that begins so; None if it is of no kind that is decoded here."""
    found = next((name for at, magic, name in DEMUXERS if encoded[at : at + len(magic)] == magic), None)
    if found is None and encoded[:1] == encoded[PACKETS_BYTES : PACKETS_BYTES + 1] == b"G":
        return "mpegts"
    if found is None and _adts(encoded):
        return "aac"
    return found


def _adts(encoded: bytes) -> bool:
    """Whether AAC frames (ISO 13818-7, ADTS) follow each other, behind an ID3 tag if there is one."""
    at = 0
    if encoded[:3] == b"ID3" and len(encoded) >= 10:
        a, b, c, d = encoded[6:10]
        at = 10 + (a << 21 | b << 14 | c << 7 | d)
    for _ in range(2):
        head = encoded[at : at + 7]
        if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
            return False
        size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if size < 7:
            return False
        at += size
    return True


@cache
def _av() -> Any:
    import av  # not needed for most corpora

    av.logging.set_level(av.logging.PANIC)
    return av


class Reader:
    """The sound of a file: `stream` says what its header claims, and later what is decoded; `blocks` decodes it.

    Args:
        source: the encoded file.
        demuxer: from `demuxer_of`.

    Raises:
        ClipError: `unreadable`: it cannot be opened, has no sound, or a codec that is not decoded.
    """

    def __init__(self, source: BinaryIO, demuxer: str):
        av = _av()
        options = {
            "codec_whitelist": ",".join(sorted(DECODERS)),
            "format_whitelist": demuxer,
            "protocol_whitelist": "",
            "probesize": str(PROBE_BYTES),
            "analyzeduration": "1000000",
            "max_streams": "64",
        }
        self.demuxer = demuxer
        try:
            self.container = av.open(source, format=demuxer, container_options=options, metadata_errors="ignore")
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise ClipError(
                "unreadable", f"{_detail(error)}; the file begins like {NAMES.get(demuxer, demuxer)}"
            ) from None
        try:
            self.stream = self._find_stream()
        except BaseException:
            self.container.close()
            raise

    def _find_stream(self) -> Stream:
        sounds = self.container.streams.audio
        name = NAMES.get(self.demuxer, self.demuxer.upper())
        if not sounds:
            raise ClipError("unreadable", f"the {name} file has no sound")
        self.sound = sounds[0]
        context = self.sound.codec_context
        if context is None:
            raise ClipError("unreadable", f"the {name} file has sound of an unknown codec; convert it to FLAC")
        decoder = context.codec.name
        if decoder not in DECODERS:
            raise ClipError("unreadable", f"{decoder} in {name} is not decoded here: convert it to FLAC with ffmpeg")
        context.thread_count = 1
        claimed = None
        if self.demuxer not in RAW:
            if self.sound.duration is not None and self.sound.time_base is not None:
                claimed = float(self.sound.duration * self.sound.time_base)
            elif self.container.duration is not None:
                claimed = self.container.duration / 1e6
        claimed = claimed if claimed is not None and 0 < claimed < 1e9 else None
        return Stream(context.sample_rate or 0, context.channels or 0, f"{name}/{decoder.upper()}", claimed)

    def close(self) -> None:
        """Free what FFmpeg holds."""
        self.container.close()

    def _opus_delay(self) -> int:
        """Samples at the start that FFmpeg should leave out and does not.

        The start of an Opus stream is in samples of 48 kHz (RFC 7845, 4.2). In Matroska, FFmpeg 8 converts it to the
        rate of the recording, but decodes at 48 kHz.
        """
        context = self.sound.codec_context
        head = context.extradata or b""
        if self.demuxer != "matroska" or context.codec.name not in ("opus", "libopus") or head[:8] != b"OpusHead":
            return 0
        return max(0, struct.unpack_from("<H", head.ljust(19, b"\0"), 10)[0] - context.delay)

    def blocks(self, most_seconds: float) -> Iterator[np.ndarray]:
        """Float32 (n, channels) at the stream's rate, full scale 1.

        Raises:
            ClipError: `truncated` or `unreadable`: the stream is damaged, changes its rate or channels, or takes
                more computing time than any real one.
        """
        av = _av()
        begin = time.thread_time()
        most_cpu = CPU_SECONDS + most_seconds / 10
        total = 0
        late = self._opus_delay()
        packets = self.container.demux(self.sound)
        while True:
            if time.thread_time() - begin > most_cpu:
                raise ClipError("unreadable", f"decoding takes more than {most_cpu:.0f} s of computing time")
            try:
                packet = next(packets)
                frames = packet.decode() if packet.size or packet.dts is None else []
            except StopIteration:
                return
            except (av.FFmpegError, ValueError) as error:
                seconds = total / max(1, self.stream.sampling_rate)
                message = f"the stream ends or is damaged after {seconds:.2f} s: {_detail(error)}"
                raise ClipError("truncated", message) from None
            if packet.is_corrupt:
                raise ClipError(
                    "truncated", f"the stream breaks off after {total / max(1, self.stream.sampling_rate):.2f} s"
                )
            for frame in frames:
                channels = frame.layout.nb_channels
                if not total:  # AAC with a higher rate than its header says (HE-AAC) is known only now
                    self.stream = replace(self.stream, sampling_rate=frame.sample_rate, channels=channels)
                if (frame.sample_rate, channels) != (self.stream.sampling_rate, self.stream.channels):
                    raise ClipError(
                        "unreadable",
                        f"the stream changes from {self.stream.sampling_rate} Hz, {self.stream.channels} channels to "
                        f"{frame.sample_rate} Hz, {channels} channels",
                    )
                block = _samples(frame.to_ndarray(), frame.format.is_planar, channels)
                block, late = block[late:], max(0, late - len(block))
                total += len(block)
                yield block


def _samples(values: np.ndarray, planar: bool, channels: int) -> np.ndarray:
    """Float32 (n, channels), full scale 1."""
    values = values.T if planar else values.reshape(-1, channels)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
    if values.dtype.kind == "i":
        return (values / 2.0 ** (8 * values.dtype.itemsize - 1)).astype(np.float32)
    return values.astype(np.float32)


def open_bytes(encoded: bytes, demuxer: str) -> Reader:
    """A reader of a file in memory.

    Raises:
        ClipError: `truncated`: the container claims more bytes than there are; or as `Reader`.
    """
    if demuxer == "matroska" and (end := _segment_end(encoded)) > len(encoded):
        raise ClipError("truncated", f"{len(encoded)} of {end} bytes are there")
    try:
        return Reader(io.BytesIO(encoded), demuxer)
    except ClipError as error:
        if demuxer == "mov" and (end := _boxes_end(encoded)) > len(encoded):
            raise ClipError(
                "truncated", f"{len(encoded)} of {end} bytes are there, and its index is missing"
            ) from error
        raise


def _boxes_end(encoded: bytes) -> int:
    """Where the last box (ISO 14496-12) of an MP4 file ends by its own size; at most `MOST_BOXES` are looked at."""
    at = 0
    for _ in range(MOST_BOXES):
        if at + 8 > len(encoded):
            break
        size = struct.unpack_from(">I", encoded, at)[0]
        if size == 1 and at + 16 <= len(encoded):
            size = struct.unpack_from(">Q", encoded, at + 8)[0]
        if size < 8:  # 0: to the end of the file
            break
        at += size
    return at


def _segment_end(encoded: bytes) -> int:
    """Where the Segment of a Matroska file (RFC 9559) ends by its own size; 0 if it does not say."""
    at = 0
    for identifier in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        at += len(identifier)
        if encoded[at - len(identifier) : at] != identifier or at >= len(encoded) or not encoded[at]:
            return 0
        length = 9 - encoded[at].bit_length()
        size = int.from_bytes(encoded[at : at + length], "big") & (1 << 7 * length) - 1
        if size == (1 << 7 * length) - 1:  # not known when it was written
            return 0
        at += length + size
    return at


def check_length(stream: Stream, samples: int) -> None:
    """Check that the decoded samples are as many as the container claims, but for `SLACK_S`.

    Raises:
        ClipError: `truncated`.
    """
    if stream.duration is None:
        return
    found = samples / stream.sampling_rate
    if found + max(SLACK_S, math.ulp(found)) < stream.duration:
        raise ClipError("truncated", f"{found:.2f} of {stream.duration:.2f} s are there")


def _detail(error: BaseException) -> str:
    return plain(getattr(error, "strerror", None) or str(error) or type(error).__name__, 160).rstrip(".")
