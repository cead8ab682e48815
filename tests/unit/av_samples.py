"""Speech in the containers and codecs that libsndfile does not read, made with the encoders of PyAV."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import cache

import av
import numpy as np

from ..corpora import speech

# name -> container, encoder, Hz, options of the container
FORMATS: dict[str, tuple[str, str, int, dict[str, str]]] = {
    "aac.m4a": ("ipod", "aac", 16000, {}),
    "aac.mp4": ("mp4", "aac", 44100, {}),
    "aac-fragments.mp4": ("mp4", "aac", 16000, {"movflags": "frag_keyframe+empty_moov"}),
    "alac.m4a": ("ipod", "alac", 16000, {}),
    "aac.aac": ("adts", "aac", 16000, {}),
    "amr-nb.3gp": ("3gp", "libopencore_amrnb", 8000, {}),
    "amr-nb.amr": ("amr", "libopencore_amrnb", 8000, {}),
    "opus.webm": ("webm", "libopus", 48000, {}),
    "opus.mka": ("matroska", "libopus", 16000, {}),
    "flac.mkv": ("matroska", "flac", 16000, {}),
    "wmav2.wma": ("asf", "wmav2", 16000, {}),
    "mp3.avi": ("avi", "libmp3lame", 16000, {}),
    "aac.flv": ("flv", "aac", 44100, {}),
    "aac.ts": ("mpegts", "aac", 16000, {}),
    "ac3.ac3": ("ac3", "ac3", 32000, {}),
    "tta.tta": ("tta", "tta", 16000, {}),
    "wavpack.wv": ("wv", "wavpack", 16000, {}),
    "pcm.mov": ("mov", "pcm_s16be", 16000, {}),
    "adpcm.wav": ("wav", "adpcm_yamaha", 16000, {}),
}
LOSSLESS = ("alac.m4a", "flac.mkv", "tta.tta", "wavpack.wv", "pcm.mov")
WITHOUT_LENGTH = ("aac.aac", "amr-nb.amr", "ac3.ac3", "aac.ts", "aac-fragments.mp4", "aac.flv")


class Pipe:
    """What is written to it cannot be gone back to."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += bytes(data)
        return len(data)


def sound(seconds: float = 3.0, channels: int = 1) -> np.ndarray:
    """Speech, int16 (n, channels) at 16 kHz; the second channel is quieter."""
    mono = np.resize(np.concatenate([speech(number) for number in range(3)]), int(seconds * 16000))
    return np.stack([np.round(mono * 32767 / (1 + channel)) for channel in range(channels)], 1).astype(np.int16)


@cache
def encode(name: str, seconds: float = 3.0, channels: int = 1, video: bool = False, pipe: bool = False) -> bytes:
    """A file of `FORMATS`, or NAME = 'container:encoder' at 16 kHz."""
    container, codec, rate, options = FORMATS.get(name) or (*name.split(":"), 16000, {})
    target = Pipe() if pipe else io.BytesIO()
    with av.open(target, "w", format=container, options=options) as file:
        layout = {1: "mono", 2: "stereo"}[channels]
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        if codec in ("tta", "wavpack"):
            stream.codec_context.format = {"tta": "s16", "wavpack": "s16p"}[codec]
        if codec in ("libopencore_amrnb", "wmav2"):
            stream.bit_rate = 12200 if codec != "wmav2" else 64000
        picture = file.add_stream("mpeg4", rate=5) if video else None
        if picture is not None:
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
        samples = sound(seconds, channels)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = 16000
        frame.pts, frame.time_base = 0, Fraction(1, 16000)
        size = stream.codec_context.frame_size
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, frame_size=size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
        if picture is not None:
            for number in range(int(seconds * 5)):
                image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 10 % 256, np.uint8), format="rgb24")
                file.mux(picture.encode(image))
            file.mux(picture.encode(None))
    return bytes(target.data) if isinstance(target, Pipe) else target.getvalue()
