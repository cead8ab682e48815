"""Selection of log lines for `speechmill logs RUN [NAME]`."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.runlog import joblog

NAME = re.compile(r"[A-Za-z0-9_-]+")
WORSE = ("warning", "error")


def logs_of(run_dir: Path, name: str | None = None) -> list[Path]:
    """Return the logs of a batch, a downloaded file, or a stage of the whole run; all logs if `name` is None.

    For a batch or a file these are the batch log and the logs of stages that are running or were killed.

    Raises:
        SpeechmillError: the name is not valid, or it has no log.
    """
    folder = run_dir / "logs"
    if name is not None and not NAME.fullmatch(name):
        raise SpeechmillError(f"{name!r} is not a valid name of a batch or a stage")
    found = sorted(folder.glob(f"batches/{name or '*'}.log"))
    found += sorted(path for path in folder.glob(f"*/{name or '*'}.log") if _is_open(path))
    found += sorted(path for path in folder.glob(f"{name or '*'}.log") if path.name != "run.log")
    if not found:
        raise SpeechmillError(f"{folder} has no log of {name or 'any job'}; batches are in manifest/batches.tsv")
    return found


def lines_of(run_dir: Path, name: str | None = None, problems: bool = False, tail: int | None = None) -> Iterator[Any]:
    """Yield pairs of log and line: the last `tail` of each log, with `problems` only warnings and errors."""
    for path in logs_of(run_dir, name):
        lines = (line for line in joblog.read(path) if not problems or line.get("level") in WORSE)
        for line in deque(lines, maxlen=tail):
            yield path, line


def _is_open(path: Path) -> bool:
    """Whether a stage's log is not yet in the batch log, because the stage is running or was killed."""
    lines = [] if path.parent.name == "batches" else joblog.read(path)
    return bool(lines) and not joblog.of_attempt(lines, "end")
