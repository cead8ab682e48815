"""Metric groups by name: those that a configuration selects, and those that this machine can load."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechmill.errors import ConfigError
from speechmill.metrics.base import GroupUnavailable, MetricGroup, Skipped
from speechmill.metrics.catalogue import GROUPS, SETS
from speechmill.utils.schema import nearest


def resolve_groups(spec: str | Iterable[str]) -> tuple[str, ...]:
    """The groups of a set, of a group, or of a list of both, without repetition, in the given order.

    Raises:
        ConfigError: a name is neither a set nor a group. The message suggests the nearest valid name.
    """
    groups: dict[str, None] = {}
    for name in [spec] if isinstance(spec, str) else spec:
        if name in SETS:
            groups.update(dict.fromkeys(SETS[name]))
        elif name in GROUPS:
            groups[name] = None
        else:
            raise ConfigError(f"score.metrics: unknown metric group {name!r}: {nearest(name, [*SETS, *GROUPS])}")
    if not groups:
        raise ConfigError(f"score.metrics names no metric group; choose from {', '.join([*SETS, *GROUPS])}")
    return tuple(groups)


def load_groups(
    names: Iterable[str], device: str = "cpu", squim_weights: str | Path | None = None
) -> tuple[list[MetricGroup], list[Skipped]]:
    """Load the models of the named groups onto `device`. Groups that are not installed are skipped, with the reason.

    Raises:
        ConfigError: `squim_weights` is given but is not a usable weights file.
    """
    weights = Path(squim_weights) if squim_weights is not None else None
    settings: dict[str, Any] = {"device": device, "squim_weights": weights}
    loaded: list[MetricGroup] = []
    skipped: list[Skipped] = []
    for name in names:
        try:
            loader = GROUPS[name]
            load = getattr(importlib.import_module(f"speechmill.metrics.{loader.module}"), loader.name)
            loaded.append(load(*(settings[argument] for argument in loader.arguments)))
        except GroupUnavailable as reason:
            skipped.append(Skipped(name, str(reason)))
    return loaded, skipped
