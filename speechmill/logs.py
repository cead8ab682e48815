"""What the logs of a run say, for a person: `speechmill logs RUN [NAME]`."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechmill import joblog
from speechmill.errors import SpeechmillError

NAME = re.compile(r"[A-Za-z0-9_-]+")
WORSE = ("warning", "error")


def logs_of(run_dir: Path, name: str | None = None) -> list[Path]:
    """The logs that a name means: of a batch or a downloaded file its story and what is at work on it, of a stage of the
    whole run its log; without a name all of them.

    Raises:
        SpeechmillError: there are none of this name.
    """
    folder = run_dir / "logs"
    if name is not None and not NAME.fullmatch(name):
        raise SpeechmillError(f"{name!r} is no name of a batch or a stage")
    found = sorted(folder.glob(f"batches/{name or '*'}.log"))
    found += sorted(path for path in folder.glob(f"*/{name or '*'}.log") if _is_open(path))
    found += sorted(path for path in folder.glob(f"{name or '*'}.log") if path.name != "run.log")
    if not found:
        raise SpeechmillError(f"{folder} has no log of {name or 'any job'}; batches are in manifest/batches.tsv")
    return found


def lines_of(run_dir: Path, name: str | None = None, problems: bool = False, tail: int | None = None) -> Iterator[Any]:
    """Pairs of log and line; with `problems` only warnings and errors, of each log the last `tail`."""
    for path in logs_of(run_dir, name):
        lines = (line for line in joblog.read(path) if not problems or line.get("level") in WORSE)
        for line in deque(lines, maxlen=tail):
            yield path, line


def _is_open(path: Path) -> bool:
    """Whether a stage's own log has what its batch's story does not have yet: it is at work, or was killed."""
    lines = [] if path.parent.name == "batches" else joblog.read(path)
    return bool(lines) and not joblog.of_attempt(lines, "end")
