"""The workflow's own account of every attempt of every job: `{run}/logs/attempts.jsonl`, appended to, never rewritten.

One line per event: `time` (UTC), `start` (when this Snakemake started), `event` (submitted | finished | failed),
`stage`, `batch` (null for jobs of the whole run), `attempt`, on Slurm `slurm_job`,
of a fetch its `file`, and `given_up` with the last failure.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE = Path("logs") / "attempts.jsonl"
SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\d+) ")


class AttemptLog(logging.Handler):
    """Listens to Snakemake's logger. A full disk costs lines of this log, never the run."""

    def __init__(self, run_dir: Path, retries: int = 0):
        super().__init__(logging.INFO)
        self.retries = retries
        self.path = run_dir / FILE
        self.start = utc_now()
        self.works: dict[int, tuple[str, dict[str, str]]] = {}
        self.attempts: dict[int, int] = {}
        self.slurm_jobs: dict[int, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._note(record)
        except Exception:
            self.handleError(record)

    def _note(self, record: logging.LogRecord) -> None:
        # Snakemake's LogEvent is a str enumeration; a job's number is `jobid`, but `job_id` where it has finished.
        event = str(getattr(getattr(record, "event", None), "value", ""))
        if event == "job_info":
            job = record.jobid  # type: ignore[attr-defined]
            wildcards = getattr(record, "wildcards", None) or {}
            self.works[job] = (record.rule_name, dict(wildcards))  # type: ignore[attr-defined]
            self.attempts[job] = self.attempts.get(job, 0) + 1
            self.slurm_jobs.pop(job, None)
            if getattr(record, "local", False):
                self._write("submitted", job)
        elif event == "job_finished":
            self._write("finished", record.job_id)  # type: ignore[attr-defined]
        elif event == "job_error":
            self._write("failed", record.jobid)  # type: ignore[attr-defined]
        elif not event and (found := SUBMITTED.match(record.getMessage())):
            job = int(found[1])
            self.slurm_jobs[job] = found[2]
            self._write("submitted", job)

    def _write(self, event: str, job: int) -> None:
        stage, wildcards = self.works.get(job, ("unknown", {}))
        line: dict[str, Any] = {
            "time": utc_now(),
            "start": self.start,
            "event": event,
            "stage": stage,
            "batch": wildcards.get("batch"),
            "attempt": self.attempts.get(job, 1),
            "slurm_job": self.slurm_jobs.get(job),
        }
        if "file" in wildcards:
            line["file"] = wildcards["file"]
        if event == "failed" and self.attempts.get(job, 1) > self.retries:
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


def utc_now() -> str:
    """Now in ISO 8601 with milliseconds; sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
