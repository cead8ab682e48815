"""Which revision of a source a run works on: one from its beginning to its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechmill.errors import SourceError
from speechmill.files import read_json
from speechmill.hub import HubRefusedError
from speechmill.sources import open_source

UNKNOWN = "not known yet"
MINUTES = 0.5  # that a plan may take to ask for the newest revision; the run itself has more patience


def current_revision(config: dict[str, Any], run_dir: Path, warn: Callable[[str], None]) -> str:
    """A value that changes when the run has to list its source anew.

    Of a source on disk it is the digest of names, sizes and times. A repository is asked for its newest commit, unless
    the run that began with another one is not complete yet: that goes on with its own. Without a network, a run that
    has a listing works on it.

    Raises:
        HubRefusedError: the repository is not there, or not open to us.
    """
    patient = config | {"download": config["download"] | {"patience_minutes": MINUTES}}
    source = open_source(patient)
    listed = _listed(config, run_dir)
    if source.fetched and listed and not _is_complete(config, run_dir):
        return listed
    try:
        return source.fingerprint()
    except HubRefusedError:
        raise
    except SourceError as error:
        warn(f"{error}. " + ("The last listing is used." if listed else "It is asked for when the run begins."))
        return listed or UNKNOWN


ASKED = ("kind", "path", "repo", "revision", "datacollective", "config", "splits", "subset", "files", "language")


def asked_for(section: dict[str, Any]) -> dict[str, Any]:
    """The settings that say what is to be listed."""
    return {name: section[name] for name in ASKED}


def _is_complete(config: dict[str, Any], run_dir: Path) -> bool:
    """Whether the last listing was worked on to the end."""
    last = "report/summary.json" if config["publish"]["kind"] == "none" else "published/UPLOADED.json"
    try:
        return read_json(run_dir / last)["source_revision"] == read_json(run_dir / "source.json")["revision"]
    except (OSError, ValueError, KeyError):
        return False


def _listed(config: dict[str, Any], run_dir: Path) -> str | None:
    """The state in which the run's listing was made, if that is of the source that is configured."""
    try:
        description = read_json(run_dir / "source.json")
    except (OSError, ValueError):
        return None
    return description.get("state") if description.get("asked_for") == asked_for(config["source"]) else None
