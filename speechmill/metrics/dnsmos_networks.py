"""The two DNSMOS networks in torch, for GPUs, with the weights of the ONNX files in the speechmos wheel.

onnxruntime's wheel computes on CPUs only. The structure is that of the files' graphs: 3×3 convolutions of zero-padded
images (frames, bands), the maximum over the image, three dense layers. Only the weights are read from the files; their
graphs are not executed. Sources: dnsmos.py.

float32 throughout: bfloat16 moved P.835 by up to 0.03 MOS, float32 is within 1e-4 of onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from speechmill.metrics.windows import SeparateSums, window_products

FRAME = 320  # samples of a P.835 frame
FRAME_HOP = 160
P835_BINS = FRAME // 2 + 1
POWER_FLOOR = 1e-12  # of a bin, in P.835
# Names of the layers in the files, first to last. The images are halved after the convolutions with these indices.
P808_CONVOLUTIONS = ("conv2d_5", "conv2d_6", "conv2d_7", "conv2d_8", "conv2d_9")
P808_HALVED = (0, 1, 3)
P808_DENSE = tuple(f"mos_estimator_small_1/dense_{i}" for i in (3, 4, 5))
P835_CONVOLUTIONS = ("conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "conv2d_4", "conv2d_5", "conv2d_6")
P835_HALVED = (3, 4, 5)
P835_DENSE = tuple(f"mos_estimator_logpow/{name}" for name in ("dense", "dense_1", "dense_3"))


def onnx_weights(path: Path) -> dict[str, Tensor]:
    """Name -> value of all constants of the ONNX file."""
    import onnx  # only jobs on a GPU need it
    from onnx import numpy_helper

    graph = onnx.load(path, load_external_data=False).graph
    return {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}


class _ConvolutionalMos(nn.Module):
    """Common base of the two networks: images (N, 1, frames, bands) -> (N, outputs)."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        convolutions: Sequence[str],
        halved: Sequence[int],
        dense: Sequence[str],
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for i, name in enumerate(convolutions):
            kernel = weights[f"{name}/kernel:0"]  # (out, in, 3, 3)
            convolution = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
            convolution.load_state_dict({"weight": kernel, "bias": weights[f"{name}/bias:0"]})
            layers += [convolution, nn.ReLU(inplace=True)]
            if i in halved:
                layers.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*layers)
        heads: list[nn.Module] = []
        for name in dense:
            matrix = weights[f"{name}/MatMul/ReadVariableOp/resource:0"]  # (in, out)
            heads += [SeparateSums(matrix.T, weights[f"{name}/BiasAdd/ReadVariableOp/resource:0"]), nn.ReLU()]
        self.dense = nn.Sequential(*heads[:-1])

    def score(self, images: Tensor) -> Tensor:
        return self.dense(self.convolutions(images).amax((2, 3)))


class P808Network(_ConvolutionalMos):
    """Log-mel windows (N, 900, 120) by dnsmos.p808_features -> MOS (N, 1)."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__(weights, P808_CONVOLUTIONS, P808_HALVED, P808_DENSE)

    def forward(self, features: Tensor) -> Tensor:
        return self.score(features[:, None])


class P835Network(_ConvolutionalMos):
    """Windows of samples (N, 144160) at 16 kHz -> raw SIG, BAK, OVRL (N, 3), for dnsmos.p835_mos.

    A window needs 0.11 GB in the first two layers: 128 and 64 channels of 900 frames by 161 bins.
    """

    basis: Tensor

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__(weights, P835_CONVOLUTIONS, P835_HALVED, P835_DENSE)
        parts = [weights[f"time2freq/stft-{part}/kernel:0"][:, :, 0] for part in ("real", "imag")]
        # (320, 322): a windowed DFT, real then imaginary
        self.register_buffer("basis", torch.cat(parts).T.contiguous())

    def forward(self, windows: Tensor) -> Tensor:
        spectra = window_products(windows.unfold(1, FRAME, FRAME_HOP), self.basis)  # (N, 900, 322)
        power = spectra[..., :P835_BINS].square() + spectra[..., P835_BINS:].square()
        return self.score(power.clamp_min(POWER_FLOOR).log10()[:, None])
