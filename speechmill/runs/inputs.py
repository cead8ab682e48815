"""What the rules of the workflow read and make: files of a run, and values that trigger jobs when they change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from speechmill.config import missing_paths, profile_path
from speechmill.errors import ConfigError
from speechmill.metrics import all_metrics
from speechmill.publish.target import NoTarget
from speechmill.ranking.profile import load_profile, with_weights
from speechmill.storage.hub_client import HubRefusedError
from speechmill.storage.run_folder import run_folder
from speechmill.tables.batches import read_batches

# Snakemake treats an intermediate file as up to date as long as the files after it exist. So every file that is kept is
# a target: a job that failed when it was repeated, and lost its old output, would never be tried again.
SINGLE_FILES = (
    "preflight.json",
    "source.json",
    "manifest/batches.tsv",
    "ledger/duplicates.parquet",
    "ledger/held_out.parquet",
    "ledger/near_duplicates.parquet",
    "ranking/profile.json",
    "ranking/ranked.tsv",
    "ranking/advice.json",
    "report/summary.json",
    "report/report.html",
)
FILES_OF_BATCHES = ("ledger/{batch}.enhance.parquet", "scores/{batch}.parquet")


def kept_files(config: dict[str, Any], target: NoTarget) -> tuple[str, ...]:
    """Patterns of the files of a batch that stay."""
    enhanced = ("enhanced/{batch}.parquet",) if config["keep_enhanced"] else ()
    return FILES_OF_BATCHES + enhanced + (("published/sent/{batch}.json",) if target.sends_ahead else ())


def batch_rows(batches_tsv: str | Path) -> dict[str, dict[str, Any]]:
    """The rows of manifest/batches.tsv by batch, read once for every state of the file."""
    return _batch_rows(Path(batches_tsv), run_folder().state(Path(batches_tsv)))


@functools.lru_cache(1)
def _batch_rows(batches_tsv: Path, state: str) -> dict[str, dict[str, Any]]:
    run_folder().fetch("manifest/batches.tsv", batches_tsv)
    return {row["batch"]: row for row in read_batches(batches_tsv)}


def is_fetched(config: dict[str, Any]) -> bool:
    """Whether the source's files are downloaded, one job each, before they are read."""
    return config["source"]["repo"] is not None or config["source"]["datacollective"] is not None


def source_fingerprint(
    config: dict[str, Any], run_dir: Path, goal: str, warn: Callable[[str], None]
) -> tuple[str, str | None]:
    """A value that changes when the source does, and why a hub refuses the source if it does.

    Args:
        goal: the file of the run that its last job makes.
        warn: is called with what the user should know.
    """
    from speechmill.sources.revision import UNKNOWN, current_revision

    if missing_paths(config):
        return UNKNOWN, None
    try:
        return current_revision(config, run_dir, goal, warn), None
    except HubRefusedError as error:
        return UNKNOWN, str(error)


def ranking_profile(config: dict[str, Any], config_dir: Path) -> dict[str, Any]:
    """The content of the ranking profile, and not its path: a run may move to another checkout.

    Raises:
        ConfigError: there is no such profile, or it is not valid.
    """
    return load_profile(profile_path(config, config_dir), config_dir / "ranking", all_metrics())


def ranking_problems(config: dict[str, Any], config_dir: Path) -> list[str]:
    """Problems of the ranking profile and its weights. Checked at each start, because it needs no model and no job."""
    try:
        with_weights(ranking_profile(config, config_dir), config["rank"]["weights"])
    except ConfigError as error:
        return [str(error)]
    return []


def state_of_others(paths: Iterable[str]) -> list[int | None]:
    """Changes when another run that this one is compared with, or a list of clips, does."""
    marks = [Path(path) / "ledger" / "duplicates.parquet" if Path(path).is_dir() else Path(path) for path in paths]
    return [mark.stat().st_mtime_ns if mark.exists() else None for mark in marks]
