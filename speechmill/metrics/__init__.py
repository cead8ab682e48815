"""Metrics of a clip's quality, in groups that a configuration names (docs/metrics.md).

Importing this package loads no model and no torch. `load_groups` loads the models; a function of
`speechmill.metrics.signal` is imported when it is first accessed by name. Knows nothing of enhancement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechmill.metrics.base import ClipBatch, GroupUnavailable, Metric, MetricGroup, Skipped
from speechmill.metrics.catalogue import (
    ENHANCE_METRICS,
    GROUP_METRICS,
    GROUPS,
    INPUT_METRICS,
    INPUT_PREFIX,
    SETS,
    all_metrics,
)
from speechmill.metrics.registry import load_groups, resolve_groups

if TYPE_CHECKING:
    from speechmill.metrics.signal import clip_ratio, dc_offset, measure_input_signal, peak_dbfs

__all__ = [
    "ENHANCE_METRICS",
    "GROUPS",
    "GROUP_METRICS",
    "INPUT_METRICS",
    "INPUT_PREFIX",
    "SETS",
    "ClipBatch",
    "GroupUnavailable",
    "Metric",
    "MetricGroup",
    "Skipped",
    "all_metrics",
    "clip_ratio",
    "dc_offset",
    "load_groups",
    "measure_input_signal",
    "peak_dbfs",
    "resolve_groups",
]


def __getattr__(name: str) -> Any:
    if name in ("clip_ratio", "dc_offset", "measure_input_signal", "peak_dbfs"):
        from speechmill.metrics import signal

        return getattr(signal, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
