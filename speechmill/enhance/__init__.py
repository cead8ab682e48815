"""Denoising: enhancers behind one small interface, and the attenuation limit that defines their levels."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from speechmill.errors import SpeechmillError

LEVELS_DB = {"none": 0.0, "light": 6.0, "moderate": 12.0, "aggressive": 20.0}


class Enhancer(Protocol):
    """A denoiser. Its output has the input's length and is aligned with it. `limit_attenuation` applies the level."""

    name: str
    version: str
    native_rate: int  # Hz of its input and output
    weights_sha256: str | None

    def __call__(self, batch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, S) float32, full scale 1, zeros after a clip's end; lengths (B,) -> denoised (B, S).

        A clip's result does not depend on the other clips of the batch or on padding.
        """


def load_enhancer(name: str, device: str = "cpu") -> Enhancer | None:
    """The enhancer of that name for a device; None for `none`.

    RNNoise runs its C library in threads on CPUs, and the same network in torch, batched, on GPUs.

    Raises:
        SpeechmillError: the name is not known, or the package of the enhancer is not installed.
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
    raise SpeechmillError(f"enhancer {name!r} is not known; choose rnnoise, spectral_gate or none")


def available_enhancer(section: Mapping[str, Any]) -> tuple[str, str | None]:
    """Resolve an `enhance` section on this machine: the name for `load_enhancer`, and a warning or None.

    If RNNoise cannot be loaded, the spectral gate replaces it, under its own name.
    """
    if section["level"] == "none" or section["enhancer"] == "none":
        return "none", None
    try:
        load_enhancer(section["enhancer"])
        return section["enhancer"], None
    except SpeechmillError as error:
        if section["enhancer"] != "rnnoise":
            raise
        return "spectral_gate", f"{error}: the spectral gate replaces RNNoise"


def limit_attenuation(original: torch.Tensor, denoised: torch.Tensor, level: str) -> torch.Tensor:
    """Mix the original back in, so that the attenuation is at most the level's limit.

    y = a * original + (1 - a) * denoised with a = 10^(-limit / 20). All levels use one pass of the model.
    """
    share = 10 ** (-LEVELS_DB[level] / 20)
    return share * original + (1 - share) * denoised
