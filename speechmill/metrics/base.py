"""Interfaces: the declaration of a metric, a group of metrics, and the clips that it measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch

Direction = Literal["benefit", "cost", "target"]


@dataclass(frozen=True)
class Metric:
    """One measured quantity, and the column of that name.

    `low` and `high` are the range in speech corpora, for display. `direction`: higher is better (benefit), lower is
    better (cost), or there is a best value in between (target).
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
    each clip. speech_probabilities: (B, T) float32 in 0..1 by Silero VAD, T = ceil(S / 512), zeros after a clip's
    end.
    """

    samples: torch.Tensor
    lengths: torch.Tensor
    speech_probabilities: torch.Tensor


class MetricGroup(Protocol):
    """Metrics that are measured together. The configuration names groups, and a machine can lack some of them."""

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

        A clip's value is the same to the last bit in any batch and with any padding.
        """
        ...


@dataclass(frozen=True)
class Skipped:
    """A metric group that this machine cannot measure, and what to install."""

    name: str
    reason: str


class GroupUnavailable(Exception):
    """The package or the weights of a group are missing. The message says what to install."""


@contextmanager
def extra_full() -> Iterator[None]:
    """For a block that imports packages of the extra `full`.

    Raises:
        GroupUnavailable: one is not installed; or torchaudio is, but built for another torch.
    """
    try:
        yield
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise GroupUnavailable(
            f"a package cannot be imported ({reason}): pip install 'speechmill[full]', with torchaudio built for this torch"
        ) from error
