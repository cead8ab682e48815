"""What a metric declares, what a group of metrics promises, and what it is given to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

Direction = Literal["benefit", "cost", "target"]


@dataclass(frozen=True)
class Metric:
    """One measured quantity, which is also a column of that name.

    `low` and `high` span what speech corpora show, for display; `direction` says whether more of it is better
    (benefit), worse (cost), or whether there is a best value between (target).
    """

    name: str
    unit: str
    low: float
    high: float
    direction: Direction
    description: str
    source: str


@dataclass(frozen=True)
class ClipBatch:
    """Clips to measure, on one device.

    samples: (B, S) float32 at 16 kHz, full scale ±1, zeros after a clip's end. lengths: (B,) int64, samples of
    each clip. speech_probabilities: (B, T) float32 in 0..1, Silero's, one per 512 samples begun, zeros after
    a clip's end.
    """

    samples: torch.Tensor
    lengths: torch.Tensor
    speech_probabilities: torch.Tensor


class MetricGroup(Protocol):
    """Metrics that are measured together: the unit that a configuration names and that can be missing."""

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> tuple[Metric, ...]: ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Model or algorithm -> the sha256 of its weights, or its version."""
        ...

    def measure(self, clips: ClipBatch) -> dict[str, np.ndarray]:
        """Metric name -> (B,) float64; NaN where a clip cannot be measured, never infinite.

        A clip's value does not depend on its batch-mates or on padding, to the last bit.
        """
        ...


@dataclass(frozen=True)
class Skipped:
    """A metric group that this machine cannot measure, and what to install so that it can."""

    name: str
    reason: str


class GroupUnavailable(Exception):
    """A group's package or weights are missing; the message says what to install."""
