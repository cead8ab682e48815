"""DNSMOS: Microsoft's no-reference predictors of P.808 and P.835 ratings, from the files in the speechmos wheel.

P.808: Reddy, Gopal, Cutler, "DNSMOS: A non-intrusive perceptual objective speech quality metric to evaluate noise
suppressors", ICASSP 2021. P.835: the same authors, "DNSMOS P.835", ICASSP 2022. Model files: MIT.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from speechmill.files import sha256_file
from speechmill.metrics.base import ClipBatch, GroupUnavailable, Metric
from speechmill.metrics.catalogue import GROUP_METRICS
from speechmill.metrics.windows import mean_over_windows
from speechmill.vad import RATE

WINDOW = 144_160  # samples: 9.01 s
HOP = RATE
MAX_WINDOWS = 2  # per clip; see docs/metrics.md for the error that this makes
FFT = 321  # odd, as the P.808 model was trained
MELS = 120
# Model output -> MOS by c2 x² + c1 x + c0, fitted by the authors: rows SIG, BAK, OVRL (not personalised).
P835_POLYNOMIALS = torch.tensor(
    [
        [-0.08397278, 1.22083953, 0.0052439],
        [-0.13166888, 1.60915514, -0.39604546],
        [-0.06766283, 1.11546468, 0.04602535],
    ],
    dtype=torch.float64,
)


def window_starts(length: int, max_windows: int | None = MAX_WINDOWS) -> Sequence[int]:
    """First samples of the windows of a clip of `length` samples, as speechmos sets them, at most `max_windows`.

    A clip below 9.01 s is doubled until it is long enough; windows then follow each other by 1 s, and of more than
    `max_windows` that many evenly spaced ones are taken. (speechmos itself drops the windows that start from 7 to
    23 s: rounding makes them one sample short.)
    """
    while length < WINDOW:
        length *= 2
    hops = max(1, length // RATE - 9)  # = int(floor(length / RATE) - 9.01) + 1, as the package writes it
    if max_windows is None or hops <= max_windows:
        return range(0, hops * HOP, HOP)
    return [round(i) * HOP for i in np.linspace(0, hops - 1, max_windows)]


def cut_window(clip: Tensor, start: int) -> Tensor:
    """Samples `start` to `start` + WINDOW of the clip (n,) repeated without end -> (WINDOW,)."""
    if start + WINDOW <= len(clip):
        return clip[start : start + WINDOW]
    return clip[(start + torch.arange(WINDOW, device=clip.device)) % len(clip)]


@cache
def _mel_filters(device: str) -> Tensor:
    # torchaudio's bins end at half the rate, those of an odd FFT below it. Every second bin of twice the
    # resolution is where librosa has them.
    dense = melscale_fbanks(FFT + 1, 0.0, RATE / 2, MELS, RATE, norm="slaney", mel_scale="slaney")
    return dense[::2].contiguous().to(device)


def p808_features(windows: Tensor) -> Tensor:
    """Log-mel input of the P.808 model, windows (N, WINDOW) -> (N, 900, 120).

    As speechmos by librosa: the last 160 samples dropped, 321-point Hann frames every 160 samples, zero-padded at
    both ends; 120 Slaney mel bands of power; dB relative to the window's maximum, at most 80 below it;
    (dB + 40) / 40.
    """
    window = torch.hann_window(FFT, device=windows.device)
    spectra = torch.stft(windows[:, :-160], FFT, 160, window=window, pad_mode="constant", return_complex=True)
    mel = spectra.abs().square().transpose(1, 2) @ _mel_filters(str(windows.device))
    decibels = 10 * mel.clamp_min(1e-10).log10()
    relative = decibels - decibels.amax((1, 2), keepdim=True)
    return (relative.clamp_min(-80.0) + 40) / 40


def p835_mos(raw: Tensor) -> Tensor:
    """Outputs of the P.835 model (N, 3) -> MOS (N, 3): SIG, BAK, OVRL."""
    raw = raw.double()
    c2, c1, c0 = P835_POLYNOMIALS.unbind(1)
    return (c2 * raw + c1) * raw + c0


@dataclass(frozen=True)
class DnsmosGroup:
    """One DNSMOS model as a metric group. `prepare`: windows (k, WINDOW) -> model input; `finish`: output -> MOS."""

    name: str
    session: Any
    versions: Mapping[str, str]
    prepare: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]
    at_once: int
    max_windows: int | None = MAX_WINDOWS

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return GROUP_METRICS[self.name]

    @torch.inference_mode()
    def measure(self, clips: ClipBatch) -> dict[str, np.ndarray]:
        def model(windows: Tensor) -> Tensor:
            features = self.prepare(windows).cpu().numpy()
            return self.finish(torch.from_numpy(self.session.run(None, {"input_1": features})[0]))

        def starts(length: int) -> Sequence[int]:
            return window_starts(length, self.max_windows)

        mos = mean_over_windows(clips, starts, cut_window, model, len(self.metrics), self.at_once)
        return {metric.name: mos[:, i] for i, metric in enumerate(self.metrics)}


def load_p808(device: str) -> DnsmosGroup:
    """The group `dnsmos_p808`; GroupUnavailable where speechmos or onnxruntime are not installed."""
    session, versions = _session("model_v8.onnx", device)
    return DnsmosGroup("dnsmos_p808", session, versions, p808_features, lambda raw: raw, at_once=16)


def load_p835(device: str) -> DnsmosGroup:
    """The group `dnsmos_p835`; GroupUnavailable where speechmos or onnxruntime are not installed."""
    session, versions = _session("sig_bak_ovr.onnx", device)
    # A window takes 0.3 GB of activations, and a CPU gains nothing by more of them.
    at_once = 16 if "CUDAExecutionProvider" in session.get_providers() else 1
    return DnsmosGroup("dnsmos_p835", session, versions, lambda windows: windows, p835_mos, at_once)


def _session(file: str, device: str) -> tuple[Any, dict[str, str]]:
    # Found by path: importing speechmos brings librosa and its compiler with it.
    spec = importlib.util.find_spec("speechmos")
    if spec is None or spec.origin is None:
        raise GroupUnavailable("the package speechmos is not installed (pip install speechmos)")
    try:
        import onnxruntime
    except ImportError:
        raise GroupUnavailable("the package onnxruntime is not installed (pip install onnxruntime)") from None
    path = Path(spec.origin).parent / "dnsmos_models" / file
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as the job was given; the results are the same
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        index = torch.device(device).index or 0
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0}))
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    return session, {f"speechmos/{file}": sha256_file(path)}
