"""Differences between two mappings of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIDES = ("before", "after")
FACTS = ("dataset", "source_revision", "batches", "profile", "profile_sha256", "threshold", "near_duplicates")


def difference(before: Any, after: Any) -> dict[str, Any]:
    return {"before": before, "after": after, "difference": round(after - before, 6)}


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return name -> values before and after, for names whose value differs or that only one side has."""
    return {
        name: {side: values[name] for side, values in zip(SIDES, (before, after), strict=True) if name in values}
        for name in sorted({*before, *after})
        if name not in before or name not in after or before[name] != after[name]
    }


def dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as dotted name -> value; a list is one value."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
