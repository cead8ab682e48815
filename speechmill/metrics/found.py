"""Load in a job exactly the models that preflight found installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.metrics import MetricGroup, load_groups
from speechmill.storage.files import read_json
from speechmill.utils.machine import node_name


def read_preflight(path: Path) -> dict[str, Any]:
    """The findings of preflight, for the jobs.

    Raises:
        SpeechmillError: an earlier version wrote the file, without what the jobs need.
    """
    found = read_json(path)
    if not {"enhancer", "metric_groups", "models"} <= found.keys():
        raise SpeechmillError(f"an earlier version of speechmill wrote {path}; delete it and run again")
    return found


@contextmanager
def as_preflight_found() -> Iterator[None]:
    """Wraps the loading of models in a job: an error about a missing model names the node.

    Raises:
        SpeechmillError: replaces the one that says what cannot be loaded.
    """
    try:
        yield
    except SpeechmillError as error:
        raise SpeechmillError(
            f"node {node_name()} lacks what preflight found: {str(error).rstrip('.')}. Fix this node or exclude it; "
            "an attempt on another node can succeed. If all nodes are like this, delete preflight.json and run again"
        ) from error


def load_found_groups(found: Mapping[str, Any], device: str, squim_weights: str | None) -> list[MetricGroup]:
    """The metric groups that preflight found, with the same models.

    Raises:
        SpeechmillError: a group cannot be loaded here, or its weights differ.
    """
    groups, missing = load_groups(found["metric_groups"], device, squim_weights)
    if missing:
        raise SpeechmillError("; ".join(f"metric group {skip.name}: {skip.reason}" for skip in missing))
    check_models({name: version for group in groups for name, version in group.versions.items()}, found)
    return groups


def check_models(here: Mapping[str, str], found: Mapping[str, Any]) -> None:
    """Compare weights (package/file -> sha256) with those of preflight. Formulas have versions, which are not compared.

    Raises:
        SpeechmillError: names the first file that differs.
    """
    for name, version in here.items():
        expected = found["models"].get(name, "none")
        if "/" in name and version != expected:
            raise SpeechmillError(f"the sha256 of the weights {name} is {version} here; preflight found {expected}")
