"""Denoising: plug-ins behind one small interface, and the attenuation limit that makes levels of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from speechmill.errors import SpeechmillError

LEVELS_DB = {"none": 0.0, "light": 6.0, "moderate": 12.0, "aggressive": 20.0}


class Enhancer(Protocol):
    """A denoiser. Its output has the input's length and is aligned with it; levels are not its business."""

    name: str
    version: str
    native_rate: int  # Hz of what it takes and gives
    weights_sha256: str | None

    def __call__(self, batch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, S) float32, full scale 1, zeros after a clip's end; lengths (B,) -> denoised (B, S).

        A clip's result does not depend on its batch-mates or on padding.
        """


def load_enhancer(name: str, device: str = "cpu") -> Enhancer | None:
    """The enhancer of that name for a device; None for `none`.

    RNNoise is its C library in threads on CPUs, and the same network in torch, for many clips at once, on GPUs.

    Raises:
        SpeechmillError: the name is not known, or the enhancer's package is not installed here.
    """
    if name == "none":
        return None
    if name == "rnnoise":
        if importlib.util.find_spec("pyrnnoise") is None:
            raise SpeechmillError("pyrnnoise is not installed (pip install pyrnnoise)")
        if device.startswith("cuda"):
            from speechmill.enhance.rnnoise_torch import RNNoiseTorch

            return RNNoiseTorch(device)
        from speechmill.enhance.rnnoise import RNNoise

        return RNNoise()
    if name == "spectral_gate":
        from speechmill.enhance.spectral_gate import SpectralGate

        return SpectralGate()
    raise SpeechmillError(f"enhancer {name!r} is not known; there are rnnoise, spectral_gate and none")


def available_enhancer(section: Mapping[str, Any]) -> tuple[str, str | None]:
    """What an `enhance` section means on this machine: the name for `load_enhancer`, and a warning or None.

    Where RNNoise cannot be loaded, the spectral gate takes its place, under its own name.
    """
    if section["level"] == "none" or section["enhancer"] == "none":
        return "none", None
    try:
        load_enhancer(section["enhancer"])
        return section["enhancer"], None
    except SpeechmillError as error:
        if section["enhancer"] != "rnnoise":
            raise
        return "spectral_gate", f"{error}: the spectral gate takes the place of RNNoise"


def limit_attenuation(original: torch.Tensor, denoised: torch.Tensor, level: str) -> torch.Tensor:
    """Mix the original back in, so that nothing is attenuated by more than the level's limit.

    y = a * original + (1 - a) * denoised with a = 10^(-limit / 20); all levels come from one pass of the model.
    """
    share = 10 ** (-LEVELS_DB[level] / 20)
    return share * original + (1 - share) * denoised
