"""The revision of a source that a run uses: the same one from start to completion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechmill.errors import SourceError
from speechmill.sources import open_source
from speechmill.storage.files import read_json
from speechmill.storage.hub_client import HubRefusedError

UNKNOWN = "not known yet"
MINUTES = 0.5  # timeout of the query for the newest revision while the DAG is built; jobs wait longer


def current_revision(config: dict[str, Any], run_dir: Path, goal: str, warn: Callable[[str], None]) -> str:
    """A value that changes when the run has to list its source again.

    For a source on disk, this is the digest of names, sizes and times. For a repository, it is the newest commit. But
    a run that is not complete keeps the commit that it started with. If there is no network, a run that has a listing
    uses that listing; `warn` is called with a message.

    Args:
        goal: the file of the run that its last job makes.
        warn: is called with what the user should know.

    Raises:
        HubRefusedError: the repository does not exist, or access is denied.
    """
    source = open_source(config | {"download": config["download"] | {"patience_minutes": MINUTES}})
    listed = _listed(config, run_dir)
    if source.fetched and listed and not _is_complete(run_dir, goal):
        return listed
    try:
        return source.fingerprint()
    except HubRefusedError:
        raise
    except SourceError as error:
        warn(f"{error}. " + ("The last listing is used." if listed else "The run will query the revision again."))
        return listed or UNKNOWN


LISTING_SETTINGS = (
    "kind",
    "path",
    "repo",
    "revision",
    "datacollective",
    "config",
    "splits",
    "subset",
    "files",
    "language",
)


def asked_for(section: dict[str, Any]) -> dict[str, Any]:
    """The settings of the section `source` that decide what is listed."""
    return {name: section[name] for name in LISTING_SETTINGS}


def _is_complete(run_dir: Path, goal: str) -> bool:
    """Whether the run has completed the revision that it listed last."""
    try:
        listed = read_json(run_dir / "source.json")["revision"]
        return bool(read_json(run_dir / goal)["source_revision"] == listed)
    except (OSError, ValueError, KeyError):
        return False


def _listed(config: dict[str, Any], run_dir: Path) -> str | None:
    """The fingerprint of the last listing; None if there is none, or if other settings were in effect."""
    try:
        description = read_json(run_dir / "source.json")
    except (OSError, ValueError):
        return None
    return description.get("state") if description.get("asked_for") == asked_for(config["source"]) else None
