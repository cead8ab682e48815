"""Checks before anything is computed: all the problems of a run at once, in a person's words.

What preflight finds installed binds the run: every job uses exactly that, or fails where it cannot.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechmill import bucket
from speechmill.config import missing_paths, profile_path
from speechmill.devices import node_name
from speechmill.enhance import available_enhancer
from speechmill.errors import ConfigError, SourceError, SpeechmillError
from speechmill.files import read_json
from speechmill.metrics import ENHANCE_METRICS, MetricGroup, all_metrics, load_groups, resolve_groups
from speechmill.policy import check_policy
from speechmill.ranking.profile import load_profile, with_weights
from speechmill.sources import open_source
from speechmill.vad import vad_versions


def preflight(config: dict[str, Any], config_dir: Path, run_dir: Path) -> dict[str, Any]:
    """Check paths, disk, models and the ranking profile. GPUs are checked by the jobs that ask for one.

    Returns what was checked, the same for the same machine and configuration.

    Raises:
        ConfigError: names every problem that was found.
    """
    problems = missing_paths(config, config_dir)
    report: dict[str, Any] = {"dataset": config["dataset"], "warnings": []}
    if not problems:
        problems += _check_disk(config, run_dir)
        problems += _check_access(config)
    refused = _check_policy(config)
    problems += refused
    if config["publish"]["kind"] == "hub" and not refused:
        problems += _check_target(config, run_dir)
    problems += _check_models(config, report)
    problems += _check_profile(config, config_dir)
    if config["publish"]["kind"] != "none" and config["source"]["license"] is None:
        report["warnings"].append(
            "source.license is not set: rows without a licence of their own are published without"
        )
    if problems:
        raise ConfigError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return report


def read_preflight(path: Path) -> dict[str, Any]:
    """What preflight found, for the jobs.

    Raises:
        SpeechmillError: the file is of a version that did not say yet what the jobs need.
    """
    found = read_json(path)
    if not {"enhancer", "metric_groups", "models"} <= found.keys():
        raise SpeechmillError(f"{path} is of an earlier version of speechmill; delete it and run again")
    return found


@contextmanager
def as_preflight_found() -> Iterator[None]:
    """Around the loading of models in a job: what preflight found but is not here is said with the node's name.

    Raises:
        SpeechmillError: in place of the one that says what cannot be loaded.
    """
    try:
        yield
    except SpeechmillError as error:
        raise SpeechmillError(
            f"node {node_name()} cannot compute what preflight found: {str(error).rstrip('.')}. Another attempt on "
            "another node works; repair this one or keep jobs away from it. Where all nodes are like this, delete "
            "preflight.json and run again, to check anew"
        ) from error


def load_found_groups(found: Mapping[str, Any], device: str, squim_weights: str | None) -> list[MetricGroup]:
    """The metric groups that preflight found, with the same models.

    Raises:
        SpeechmillError: a group cannot be loaded here, or has other weights.
    """
    groups, missing = load_groups(found["metric_groups"], device, squim_weights)
    if missing:
        raise SpeechmillError("; ".join(f"metric group {skip.name}: {skip.reason}" for skip in missing))
    check_models({name: version for group in groups for name, version in group.versions.items()}, found)
    return groups


def check_models(here: Mapping[str, str], found: Mapping[str, Any]) -> None:
    """Compare weights (package/file -> sha256) with those of preflight; our own formulas are the same on every node.

    Raises:
        SpeechmillError: names the first that differs.
    """
    for name, version in here.items():
        there = found["models"].get(name, "not there")
        if "/" in name and version != there:
            raise SpeechmillError(f"the weights {name} have the sha256 {version} here, preflight's are {there}")


def _check_target(config: dict[str, Any], run_dir: Path) -> list[str]:
    from speechmill.publish.hub import check_target

    try:
        check_target(config, run_dir)
    except SpeechmillError as error:
        return [str(error)]
    return []


def _check_access(config: dict[str, Any]) -> list[str]:
    try:
        open_source(config).check_access()
    except SourceError as error:
        return [str(error)]
    return []


def _check_policy(config: dict[str, Any]) -> list[str]:
    try:
        check_policy(config)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def _check_disk(config: dict[str, Any], run_dir: Path) -> list[str]:
    """Free space for the enhanced shards, once more for what is published here, and as much again for originals."""
    if config["source"]["path"] is None or bucket.is_url(config["source"]["path"]):
        return []  # known once the source is listed
    source = Path(config["source"]["path"])
    size = sum(f.stat().st_size for f in ([source] if source.is_file() else source.rglob("*")) if f.is_file())
    needed = size * (1 + (config["publish"]["kind"] == "folder") + config["enhance"]["keep_original"])
    run_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(run_dir, os.W_OK):
        return [f"{run_dir} is not writable; choose another outdir"]
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        return [
            f"{run_dir} has {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB are needed; choose another outdir"
        ]
    return []


def _check_models(config: dict[str, Any], report: dict[str, Any]) -> list[str]:
    problems = []
    try:
        report["enhancer"], warning = available_enhancer(config["enhance"])
        report["warnings"] += [warning] if warning else []
        groups = resolve_groups(config["score"]["metrics"])
        loaded, skipped = load_groups(groups, "cpu", config["score"]["squim_weights"])
        report["metric_groups"] = [group.name for group in loaded]
        report["metrics"] = sorted({m.name for group in loaded for m in group.metrics} | set(ENHANCE_METRICS))
        report["models"] = vad_versions() | {n: version for group in loaded for n, version in group.versions.items()}
        report["skipped_metrics"] = [{"name": skip.name, "reason": skip.reason} for skip in skipped]
        if not loaded:
            problems.append("none of the metric groups can be measured: " + "; ".join(skip.reason for skip in skipped))
    except SpeechmillError as error:
        problems.append(str(error))
    return problems


def _check_profile(config: dict[str, Any], config_dir: Path) -> list[str]:
    try:
        profile = load_profile(profile_path(config, config_dir), config_dir / "ranking", all_metrics())
        with_weights(profile, config["rank"]["weights"])
    except ConfigError as error:
        return [str(error)]
    return []
