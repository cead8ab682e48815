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

import numpy as np
import torch
from torch import Tensor

from speechmill.audio.vad import RATE
from speechmill.metrics.base import ClipBatch, GroupUnavailable, Metric
from speechmill.metrics.catalogue import GROUP_METRICS
from speechmill.metrics.dnsmos_networks import P808Network, P835Network, onnx_weights
from speechmill.metrics.mel import mel_filters
from speechmill.metrics.windows import mean_over_windows, window_products, windows_at_once
from speechmill.storage.files import sha256_file

WINDOW = 144_160  # samples: 9.01 s
HOP = RATE
MAX_WINDOWS = 2  # per clip; see docs/metrics.md for the error that this makes
FFT = 321  # odd, as the P.808 model was trained
MELS = 120
# The files of speechmos 0.0.1.1, which the networks in torch reproduce. Compare other files before you add them.
KNOWN_VERSION = "0.0.1.1"
KNOWN_NETWORKS = {
    "model_v8.onnx": "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
    "sig_bak_ovr.onnx": "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
}
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
    """First samples of the windows of a clip of `length` samples, as in speechmos, but at most `max_windows`.

    A clip below 9.01 s is doubled until it is long enough. Windows start 1 s apart; of more than `max_windows`, that
    many evenly spaced ones are used. (speechmos itself drops the windows that start from 7 to 23 s, because rounding
    makes them one sample short.)
    """
    while length < WINDOW:
        length *= 2
    hops = max(1, length // RATE - 9)  # = int(floor(length / RATE) - 9.01) + 1, as the package writes it
    if max_windows is None or hops <= max_windows:
        return range(0, hops * HOP, HOP)
    return [round(i) * HOP for i in np.linspace(0, hops - 1, max_windows)]


def cut_windows(clips: ClipBatch, rows: Tensor, starts: Tensor) -> Tensor:
    """WINDOW samples from `starts` (k,) on of clips `rows` (k,), each repeated without end -> (k, WINDOW)."""
    positions = starts[:, None] + torch.arange(WINDOW, device=starts.device)
    return clips.samples[rows[:, None], positions % clips.lengths[rows, None]]


@cache
def _mel_filters(device: str) -> Tensor:
    # The bins of the filters end at half the rate, those of an odd FFT end below it. Every second bin of twice the
    # resolution is at librosa's frequency.
    dense = mel_filters(FFT + 1, 0.0, RATE / 2, MELS, RATE, equal_area=True)
    return dense[::2].contiguous().to(device)


def p808_features(windows: Tensor) -> Tensor:
    """Log-mel input of the P.808 model, windows (N, WINDOW) -> (N, 900, 120).

    As speechmos by librosa: the last 160 samples dropped, 321-point Hann frames every 160 samples, zero-padded at
    both ends; 120 Slaney mel bands of power; dB relative to the window's maximum, at most 80 below it;
    (dB + 40) / 40.
    """
    window = torch.hann_window(FFT, device=windows.device)
    spectra = torch.stft(windows[:, :-160], FFT, 160, window=window, pad_mode="constant", return_complex=True)
    mel = window_products(spectra.abs().square().transpose(1, 2), _mel_filters(str(windows.device)))
    decibels = 10 * mel.clamp_min(1e-10).log10()
    relative = decibels - decibels.amax((1, 2), keepdim=True)
    return (relative.clamp_min(-80.0) + 40) / 40


def p835_mos(raw: Tensor) -> Tensor:
    """Outputs of the P.835 model (N, 3) -> MOS (N, 3): SIG, BAK, OVRL."""
    raw = raw.double()
    c2, c1, c0 = P835_POLYNOMIALS.to(raw.device).unbind(1)
    return (c2 * raw + c1) * raw + c0


@dataclass(frozen=True)
class DnsmosGroup:
    """One DNSMOS model as a metric group. model: (at_once, WINDOW) -> MOS (at_once, one per metric)."""

    name: str
    model: Callable[[Tensor], Tensor]
    versions: Mapping[str, str]
    at_once: int
    threads: int = 1  # that call the model at the same time
    max_windows: int | None = MAX_WINDOWS

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return GROUP_METRICS[self.name]

    def measure(self, clips: ClipBatch) -> dict[str, np.ndarray]:
        def starts(length: int) -> Sequence[int]:
            return window_starts(length, self.max_windows)

        mos = mean_over_windows(clips, starts, cut_windows, self.model, len(self.metrics), self.at_once, self.threads)
        return {metric.name: mos[:, i] for i, metric in enumerate(self.metrics)}


def load_p808(device: str) -> DnsmosGroup:
    """The group `dnsmos_p808`; GroupUnavailable if a package is not installed or its network is not known."""
    network, versions = _load("model_v8.onnx", P808Network, device)

    def model(windows: Tensor) -> Tensor:
        return network(p808_features(windows))

    return DnsmosGroup("dnsmos_p808", model, versions, windows_at_once(device), _threads(device))


def load_p835(device: str) -> DnsmosGroup:
    """The group `dnsmos_p835`; GroupUnavailable if a package is not installed or its network is not known."""
    network, versions = _load("sig_bak_ovr.onnx", P835Network, device)

    def model(windows: Tensor) -> Tensor:
        return p835_mos(network(windows))

    return DnsmosGroup("dnsmos_p835", model, versions, windows_at_once(device), _threads(device))


def _threads(device: str) -> int:
    """Threads for onnxruntime: one window per thread is faster than several threads on one window."""
    return 1 if device.startswith("cuda") else torch.get_num_threads()


Network = Callable[[Tensor], Tensor]  # the networks' inputs and outputs: dnsmos_networks.py


def _load(
    file: str, in_torch: Callable[[Mapping[str, Tensor]], torch.nn.Module], device: str
) -> tuple[Network, dict[str, str]]:
    """The network of a file in the speechmos wheel, and its sha256 by name."""
    path, digest = _network_file(file)
    on_gpu = device.startswith("cuda")
    network = in_torch(onnx_weights(path)).eval().to(device) if on_gpu else onnx_network(path)
    return network, {f"speechmos/{file}": digest}


def _network_file(file: str) -> tuple[Path, str]:
    """Path and sha256 of a known network. Needs all packages on any device: preflight on a CPU checks for GPUs too."""
    # By path: importing speechmos imports librosa and numba.
    folders = {}
    for name in ("speechmos", "onnxruntime", "onnx"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise GroupUnavailable(f"the package {name} is not installed (pip install {name})")
        folders[name] = Path(spec.origin).parent
    path = folders["speechmos"] / "dnsmos_models" / file
    if not path.is_file() or (digest := sha256_file(path)) != KNOWN_NETWORKS[file]:
        found = f"sha256 {digest}" if path.is_file() else "no such file"
        raise GroupUnavailable(
            f"{path} is not a known DNSMOS network ({found}); pip install speechmos=={KNOWN_VERSION}"
        )
    return path, digest


def onnx_network(path: Path) -> Network:
    """The file's network in onnxruntime: on CPUs 1.7 (P.835) to 3 times (P.808) as fast as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def network(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input_1": inputs.numpy()})[0])

    return network
