"""SQUIM objective: torchaudio's no-reference estimates of STOI, wide-band PESQ and SI-SDR.

Kumar et al., "TorchAudio-Squim: Reference-less Speech Quality and Intelligibility Measures in TorchAudio",
ICASSP 2023. No package contains the weights (CC BY 4.0): `score.squim_weights` names their file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speechmill.audio.vad import RATE
from speechmill.engine.tensors import exact_convolutions
from speechmill.errors import ConfigError
from speechmill.metrics.base import ClipBatch, GroupUnavailable, Metric, extra_full
from speechmill.metrics.catalogue import GROUP_METRICS
from speechmill.storage.files import sha256_file

MAX_PART = 10 * RATE  # memory of the attention grows with the square of the length
MIN_LENGTH = RATE // 10
WEIGHTS_URL = "https://download.pytorch.org/torchaudio/models/squim_objective_dns2020.pth"


@dataclass(frozen=True)
class SquimGroup:
    """SQUIM as a metric group. model: (1, n) -> [STOI, PESQ, SI-SDR], each (1,)."""

    model: torch.nn.Module
    versions: Mapping[str, str]
    name: str = "squim"
    metrics: tuple[Metric, ...] = GROUP_METRICS["squim"]

    @torch.inference_mode()
    def measure(self, clips: ClipBatch) -> dict[str, np.ndarray]:
        """One clip at a time: the model pools over time without a mask, so clips must not be padded.

        A clip above 10 s is cut into equal parts, and their scores are averaged. NaN for silence and below 0.1 s.
        """
        values = np.full((len(clips.samples), len(self.metrics)), np.nan)
        with exact_convolutions():
            for i, length in enumerate(clips.lengths.cpu().tolist()):
                clip = clips.samples[i, :length]
                if length < MIN_LENGTH or not bool(clip.any()):
                    continue
                parts = clip.tensor_split(-(-length // MAX_PART))
                scores = torch.stack([torch.cat(list(self.model(part[None]))) for part in parts])
                values[i] = scores.double().nanmean(0).cpu().numpy()  # a silent part gives NaN
        return {metric.name: values[:, i] for i, metric in enumerate(self.metrics)}


def load_squim(device: str, weights: Path | None) -> SquimGroup:
    """The group `squim` on `device`, with the state dictionary in `weights`.

    Raises:
        GroupUnavailable: no weights are named, or torchaudio cannot be imported.
        ConfigError: the file is missing, or is not a state dictionary of this model.
    """
    if weights is None:
        raise GroupUnavailable(
            f"no package contains its weights: download {WEIGHTS_URL} and set score.squim_weights to the file"
        )
    with extra_full():
        from torchaudio.models import squim_objective_base

    model = squim_objective_base()
    try:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise ConfigError(f"score.squim_weights: {weights} does not exist; download {WEIGHTS_URL}") from None
    except Exception as error:  # torch raises many types for a wrong or damaged file
        first_line = str(error).partition("\n")[0]
        raise ConfigError(
            f"score.squim_weights: {weights} does not contain the weights of {WEIGHTS_URL} ({first_line})"
        ) from error
    return SquimGroup(model.eval().to(device), {f"squim/{weights.name}": sha256_file(weights)})
