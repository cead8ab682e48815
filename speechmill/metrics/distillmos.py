"""Distill-MOS: a small network distilled from a wav2vec-based predictor of overall speech quality.

Stahl, Gamper, "Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality
Assessment", ICASSP 2025. Package distillmos with its weights: MIT.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechmill.audio.vad import RATE
from speechmill.metrics.base import ClipBatch, GroupUnavailable, Metric, extra_full
from speechmill.metrics.catalogue import GROUP_METRICS
from speechmill.metrics.windows import SeparateSums, mean_over_windows, windows_at_once
from speechmill.storage.files import sha256_file

WINDOW = 122_880  # samples: 7.68 s
MAX_HOP = RATE
WEIGHTS = "distill_mos_v7.pt"


def window_starts(length: int) -> Sequence[int]:
    """First samples of the windows of a clip of `length` samples, as in the package: evenly spaced by at most 1 s."""
    beyond = max(0, length - WINDOW)
    hops = -(-beyond // MAX_HOP) + 1
    return [int(share * beyond) for share in np.linspace(0, 1, hops)]


def cut_windows(clips: ClipBatch, rows: Tensor, starts: Tensor) -> Tensor:
    """WINDOW samples of clips `rows` (k,) from `starts` (k,) on, zeros after a clip's end -> (k, WINDOW)."""
    positions = starts[:, None] + torch.arange(WINDOW, device=starts.device)
    samples = clips.samples[rows[:, None], positions.clamp_max(clips.samples.shape[1] - 1)]
    return torch.where(positions < clips.lengths[rows, None], samples, 0.0)


@dataclass(frozen=True)
class DistillMosGroup:
    """Distill-MOS as a metric group. model: (at_once, WINDOW) -> (at_once,) MOS."""

    model: torch.nn.Module
    versions: Mapping[str, str]
    at_once: int
    name: str = "distillmos"
    metrics: tuple[Metric, ...] = GROUP_METRICS["distillmos"]

    def measure(self, clips: ClipBatch) -> dict[str, np.ndarray]:
        mos = mean_over_windows(clips, window_starts, cut_windows, self.model, 1, self.at_once)
        return {"distillmos": mos[:, 0]}


def load_distillmos(device: str) -> DistillMosGroup:
    """The group `distillmos` on `device`; GroupUnavailable if the package is not installed."""
    spec = importlib.util.find_spec("distillmos")
    if spec is None or spec.origin is None:
        raise GroupUnavailable("the package distillmos is not installed (pip install 'speechmill[full]')")
    with extra_full():
        from distillmos.sqa import ConvTransformerSQAModel

    path = Path(spec.origin).parent / "weights" / WEIGHTS
    model = ConvTransformerSQAModel(load_weights=False, segmenting_in_forward=False)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    pool = model.transformer_pool_attn.pool
    pool.linear3 = SeparateSums(pool.linear3.weight, pool.linear3.bias)
    versions = {f"distillmos/{WEIGHTS}": sha256_file(path)}
    return DistillMosGroup(model.eval().to(device), versions, windows_at_once(device))
