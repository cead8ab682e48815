"""Checks before anything is computed: all the problems of a run at once, in a person's words."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from speechmill.config import missing_paths, profile_path
from speechmill.errors import ConfigError
from speechmill.metrics import ENHANCE_METRICS, all_metrics, load_groups, resolve_groups
from speechmill.ranking.profile import load_profile


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
    problems += _check_models(config, report)
    problems += _check_profile(config, config_dir)
    if config["publish"]["kind"] == "folder" and config["source"]["license"] is None:
        report["warnings"].append(
            "source.license is not set: rows without a licence of their own are published without"
        )
    if problems:
        raise ConfigError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return report


def _check_disk(config: dict[str, Any], run_dir: Path) -> list[str]:
    """Free space for the enhanced shards, once more for what is published, and as much again for originals."""
    source = Path(config["source"]["path"])
    if not source.is_dir():
        return []
    size = sum(f.stat().st_size for f in source.rglob("*") if f.is_file())
    needed = size * (3 if config["enhance"]["keep_original"] else 2)
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
    if config["enhance"]["enhancer"] == "rnnoise" and importlib.util.find_spec("pyrnnoise") is None:
        report["warnings"].append(
            "pyrnnoise is not installed: the spectral gate takes its place (pip install pyrnnoise)"
        )
    try:
        groups = resolve_groups(config["score"]["metrics"])
        loaded, skipped = load_groups(groups, "cpu", config["score"]["squim_weights"])
        report["metric_groups"] = [group.name for group in loaded]
        report["metrics"] = sorted({m.name for group in loaded for m in group.metrics} | set(ENHANCE_METRICS))
        report["models"] = {name: version for group in loaded for name, version in group.versions.items()}
        report["skipped_metrics"] = [{"name": skip.name, "reason": skip.reason} for skip in skipped]
        if not loaded:
            problems.append("none of the metric groups can be measured: " + "; ".join(skip.reason for skip in skipped))
    except ConfigError as error:
        problems.append(str(error))
    return problems


def _check_profile(config: dict[str, Any], config_dir: Path) -> list[str]:
    try:
        load_profile(profile_path(config, config_dir), config_dir / "ranking", all_metrics())
    except ConfigError as error:
        return [str(error)]
    return []
