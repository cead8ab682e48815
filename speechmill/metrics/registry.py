"""The metric groups by name: which there are, which a configuration means, which this machine can load."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from speechmill.config import nearest
from speechmill.errors import ConfigError
from speechmill.metrics.base import GroupUnavailable, MetricGroup, Skipped

Loader = Callable[[str, Path | None], MetricGroup]  # (device, weights of SQUIM) -> group, or GroupUnavailable


def _signal(device: str, squim_weights: Path | None) -> MetricGroup:
    from speechmill.metrics.signal import SignalGroup

    return SignalGroup()


def _dnsmos_p808(device: str, squim_weights: Path | None) -> MetricGroup:
    from speechmill.metrics.dnsmos import load_p808

    return load_p808(device)


def _dnsmos_p835(device: str, squim_weights: Path | None) -> MetricGroup:
    from speechmill.metrics.dnsmos import load_p835

    return load_p835(device)


def _distillmos(device: str, squim_weights: Path | None) -> MetricGroup:
    from speechmill.metrics.distillmos import load_distillmos

    return load_distillmos(device)


def _squim(device: str, squim_weights: Path | None) -> MetricGroup:
    from speechmill.metrics.squim import load_squim

    return load_squim(device, squim_weights)


# A new group is one line here and its metrics in the catalogue.
GROUPS: dict[str, Loader] = {
    "signal": _signal,
    "dnsmos_p808": _dnsmos_p808,
    "dnsmos_p835": _dnsmos_p835,
    "distillmos": _distillmos,
    "squim": _squim,
}

SETS: dict[str, tuple[str, ...]] = {
    "light": ("signal", "dnsmos_p808"),
    "full": ("signal", "dnsmos_p808", "dnsmos_p835", "distillmos", "squim"),
}


def resolve_groups(spec: str | Iterable[str]) -> tuple[str, ...]:
    """The groups that a set, a group, or a list of both names: each once, in the order named.

    Raises:
        ConfigError: a name is neither a set nor a group; the message has the nearest valid one.
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
    """Load the models of the named groups onto `device`; what is not installed is skipped, with its reason.

    Raises:
        ConfigError: `squim_weights` is given but is not a usable weights file.
    """
    loaded: list[MetricGroup] = []
    skipped: list[Skipped] = []
    for name in names:
        try:
            loaded.append(GROUPS[name](device, Path(squim_weights) if squim_weights is not None else None))
        except GroupUnavailable as reason:
            skipped.append(Skipped(name, str(reason)))
    return loaded, skipped
