"""The workflow's own account of every attempt of every job: `{run}/logs/attempts.jsonl`, appended to, never rewritten.

One line per event: `time` (UTC), `start` (when this Snakemake started), `event` (submitted | finished | failed),
`stage`, `batch` (null for jobs of the whole run), `attempt`, on Slurm `slurm_job`,
of a fetch its `file`, and `given_up` with the last failure.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechmill.monitor.events import JobEvent, JobTracker, Start, utc_now

FILE = Path("logs") / "attempts.jsonl"


class AttemptLog(logging.Handler):
    """Listens to Snakemake's logger. A full disk costs lines of this log, never the run."""

    def __init__(self, start: Start):
        super().__init__(logging.INFO)
        self.start = start
        self.path = start.run_dir / FILE
        self.tracker = JobTracker(start)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for event in self.tracker.read(record):
                if event.kind != "described":
                    self._write(event)
        except Exception:
            self.handleError(record)

    def _write(self, event: JobEvent) -> None:
        line: dict[str, Any] = {
            "time": utc_now(),
            "start": self.start.time,
            "event": event.kind,
            "stage": event.stage,
            "batch": event.wildcards.get("batch"),
            "attempt": event.attempt,
            "slurm_job": event.slurm_job,
        }
        if "file" in event.wildcards:
            line["file"] = event.wildcards["file"]
        if event.given_up:
            line["given_up"] = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_attempts(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Events in the order they happened; a line cut short by a crash is left out."""
    path = run_dir / FILE
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue
