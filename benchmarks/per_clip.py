"""What one would write without speechmill: clip after clip, each step by its library's own function.

Every step of every clip is timed, so that one run gives all the compositions that are compared.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from speech_corpus import RATE, Cost, peak_mb

Result = TypeVar("Result")

FRONT, BACK = ("read, resample", "vad"), ("loudness", "write")
LIGHT: dict[str, tuple[str, ...]] = {
    "noisereduce, the package dnsmos": (*FRONT, "noisereduce", *BACK, "dnsmos"),
    "noisereduce, P.808 alone": (*FRONT, "noisereduce", *BACK, "p808"),
    "pyrnnoise, the package dnsmos": (*FRONT, "pyrnnoise", *BACK, "dnsmos"),
    "pyrnnoise, P.808 alone": (*FRONT, "pyrnnoise", *BACK, "p808"),
}
FULL: dict[str, tuple[str, ...]] = {
    "noisereduce, the package dnsmos, distillmos": (*FRONT, "noisereduce", *BACK, "dnsmos", "distillmos"),
    "pyrnnoise, the package dnsmos, distillmos": (*FRONT, "pyrnnoise", *BACK, "dnsmos", "distillmos"),
}
LUFS = -23.0


class Stopwatch:
    """Wall-clock and CPU seconds by step."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.cpu: Counter[str] = Counter()

    def __call__(self, step: str, call: Callable[..., Result], *arguments: Any) -> Result:
        begin, cpu = time.perf_counter(), time.process_time()
        result = call(*arguments)
        self.seconds[step] += time.perf_counter() - begin
        self.cpu[step] += time.process_time() - cpu
        return result


class Composition:
    """The libraries with their models loaded, one clip at a time; each in its own default number of threads."""

    def __init__(self) -> None:
        import torch

        self.threads = torch.get_num_threads()
        import distillmos
        import pyloudnorm
        import silero_vad  # which sets torch to one thread
        from speechmos import dnsmos

        self.vad = silero_vad.load_silero_vad()
        self.meter = pyloudnorm.Meter(RATE)
        with contextlib.redirect_stdout(io.StringIO()):
            self.distill = distillmos.ConvTransformerSQAModel().eval()
        dnsmos.run(np.full(RATE, 1e-3, np.float32), RATE)  # it keeps the models that its first call loads
        self.dnsmos = dnsmos.dnsmos

    def clip(self, path: Path, measured: Stopwatch) -> None:
        """All steps of a clip. What is scored is what noisereduce left; the denoisers are alternatives."""
        from speechmos import dnsmos

        samples = measured("read, resample", read, path)
        start, stop = measured("vad", self.span, samples)
        denoised = measured("noisereduce", noisereduce, samples)
        measured("pyrnnoise", pyrnnoise, samples)
        final = measured("loudness", self.normalized, denoised[start:stop])
        measured("write", flac, final)
        measured("dnsmos", dnsmos.run, final, RATE)
        measured("p808", self.p808, final)
        measured("distillmos", self.distillmos, final)

    def span(self, samples: np.ndarray) -> tuple[int, int]:
        """First to last sample of speech; all where there is none. In one thread, as the package sets it."""
        import silero_vad
        import torch

        torch.set_num_threads(1)
        found = silero_vad.get_speech_timestamps(torch.from_numpy(samples), self.vad)
        return (found[0]["start"], found[-1]["end"]) if found else (0, len(samples))

    def normalized(self, samples: np.ndarray) -> np.ndarray:
        """At LUFS, as pyloudnorm does it, within full scale."""
        import pyloudnorm

        padded = np.pad(samples, (0, max(0, RATE // 2 - len(samples))))  # of less than 0.4 s it measures nothing
        loudness = self.meter.integrated_loudness(padded)
        return np.clip(pyloudnorm.normalize.loudness(padded, loudness, LUFS), -1, 1).astype(np.float32)

    def p808(self, samples: np.ndarray) -> float:
        """What the package does in dnsmos.run for P.808, without P.835."""
        size = int(9.01 * RATE)
        while len(samples) < size:
            samples = np.append(samples, samples)
        windows = [samples[i * RATE : i * RATE + size] for i in range(int(np.floor(len(samples) / RATE) - 9.01) + 1)]
        features = [self.dnsmos.audio_melspec(w[:-160])[None].astype(np.float32) for w in windows if len(w) == size]
        run = self.dnsmos.p808_onnx_sess.run
        return float(np.mean([run(None, {"input_1": one})[0][0][0] for one in features]))

    def distillmos(self, samples: np.ndarray) -> float:
        import torch

        torch.set_num_threads(self.threads)
        with torch.no_grad():
            return float(self.distill(torch.from_numpy(samples)[None]))


def read(path: Path) -> np.ndarray:
    """float32 (n,) at RATE."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(path, dtype="float32")
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    return mono if rate == RATE else soxr.resample(mono, rate, RATE)


def noisereduce(samples: np.ndarray) -> np.ndarray:
    import noisereduce as library

    return library.reduce_noise(y=samples, sr=RATE)


def pyrnnoise(samples: np.ndarray) -> np.ndarray:
    """By the package's class, as its README shows it; it resamples to 48 kHz and back itself."""
    from pyrnnoise import RNNoise

    pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
    parts = [frame for _, frame in RNNoise(RATE).denoise_chunk(pcm, True)]
    return (np.concatenate(parts, axis=1)[0] / 32768).astype(np.float32)


def flac(samples: np.ndarray) -> bytes:
    import soundfile

    data = io.BytesIO()
    soundfile.write(data, samples, RATE, format="FLAC")
    return data.getvalue()


def per_clip(paths: list[Path]) -> dict[str, Cost]:
    """What each step took for all clips together, models loaded and a first clip done before."""
    composition, measured = Composition(), Stopwatch()
    composition.clip(paths[0], Stopwatch())
    for path in paths:
        composition.clip(path, measured)
    return {step: Cost(measured.seconds[step], measured.cpu[step], peak_mb()) for step in measured.seconds}


def summed(steps: dict[str, Cost], names: tuple[str, ...]) -> Cost:
    """A composition's cost."""
    parts = [steps[name] for name in names]
    return Cost(sum(p.seconds for p in parts), sum(p.cpu_seconds for p in parts), max(p.peak_mb for p in parts))
