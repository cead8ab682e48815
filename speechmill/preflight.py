"""Checks before a run: reports all its problems at once.

All jobs use exactly the models that preflight finds installed, or fail.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from speechmill.audio.vad import vad_versions
from speechmill.config import missing_paths
from speechmill.enhance import available_enhancer
from speechmill.errors import ConfigError, SourceError, SpeechmillError
from speechmill.metrics import ENHANCE_METRICS, load_groups, resolve_groups
from speechmill.publish.target import target_of
from speechmill.publish.terms import check_policy
from speechmill.sources import open_source
from speechmill.storage import s3


def preflight(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Check paths, disk, access, terms and models. Jobs that request a GPU check it themselves.

    Returns the findings, which are the same for the same machine and configuration.

    Raises:
        ConfigError: lists all problems.
    """
    problems = missing_paths(config)
    report: dict[str, Any] = {"dataset": config["dataset"], "warnings": []}
    if not problems:
        problems += _check_disk(config, run_dir)
        problems += _check_access(config)
    refused = _check_policy(config)
    problems += refused
    if not refused:
        problems += _check_target(config, run_dir)
    problems += _check_models(config, report)
    if target_of(config).publishes and config["source"]["license"] is None:
        report["warnings"].append(
            "source.license is not set: rows without a licence of their own are published without a licence"
        )
    if problems:
        raise ConfigError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return report


def _check_target(config: dict[str, Any], run_dir: Path) -> list[str]:
    try:
        target_of(config).check(run_dir)
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
    """Free space for the enhanced shards, for a published folder, and for the originals, each as large as the source."""
    if config["source"]["path"] is None or s3.is_url(config["source"]["path"]):
        return []  # known once the source is listed
    source = Path(config["source"]["path"])
    size = sum(f.stat().st_size for f in ([source] if source.is_file() else source.rglob("*")) if f.is_file())
    needed = size * (1 + target_of(config).copies + config["enhance"]["keep_original"])
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
