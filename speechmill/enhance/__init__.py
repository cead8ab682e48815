"""Denoising: plug-ins behind one small interface, and the attenuation limit that makes levels of them."""

from __future__ import annotations

import importlib.util
import logging
from typing import Protocol

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


def load_enhancer(name: str, device: str) -> Enhancer | None:
    """The enhancer that a configuration names; None for `none`.

    Without the pyrnnoise package the spectral gate takes RNNoise's place: with a warning, and under its own name.
    Raises SpeechmillError for a name that is not known. Both built-in enhancers find the device in their input.
    """
    if name == "none":
        return None
    if name == "rnnoise":
        if importlib.util.find_spec("pyrnnoise") is not None:
            from speechmill.enhance.rnnoise import RNNoise

            return RNNoise()
        logging.getLogger(__name__).warning(
            "pyrnnoise is not installed: the spectral gate takes the place of RNNoise (pip install pyrnnoise)"
        )
    elif name != "spectral_gate":
        raise SpeechmillError(f"enhancer {name!r} is not known; there are rnnoise, spectral_gate and none")
    from speechmill.enhance.spectral_gate import SpectralGate

    return SpectralGate()


def limit_attenuation(original: torch.Tensor, denoised: torch.Tensor, level: str) -> torch.Tensor:
    """Mix the original back in, so that nothing is attenuated by more than the level's limit.

    y = a * original + (1 - a) * denoised with a = 10^(-limit / 20); all levels come from one pass of the model.
    """
    share = 10 ** (-LEVELS_DB[level] / 20)
    return share * original + (1 - share) * denoised
