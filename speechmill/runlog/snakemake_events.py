"""Job events from Snakemake's log records, for the attempt log and for Panoptes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechmill.utils.times import utc_now

# Snakemake 9 reports two things only as text, without a LogEvent: that the user asked it to stop, and the number that
# Slurm gave a job. This is the one place that reads text of Snakemake's logger.
TEXT = re.compile(
    r"(?P<stopping>Will exit after finishing currently running jobs|Terminating processes on user request)"
    r"|Job (?P<job>\d+) has been submitted with SLURM jobid (?P<slurm_job>\d+) "
)


@dataclass
class Start:
    """One start of Snakemake on a run. A run that is interrupted and resumed has several."""

    run_dir: Path
    dataset: str
    retries: Mapping[str, int] = field(default_factory=dict)  # rule -> attempts after the first
    time: str = field(default_factory=utc_now)
    outcome: str | None = None  # succeeded | failed, once Snakemake has reported it; None if it was stopped
    goal: str = "published/UPLOADED.json"  # the file that the last job of the run writes
    withholds: bool = False  # some jobs failed for good: the run reports the other batches and publishes nothing
    asked_to_stop: bool = False

    def end(self, outcome: str) -> None:
        """Set the outcome. Snakemake reports a requested stop as a failure, which is corrected here."""
        self.outcome = None if self.asked_to_stop and outcome == "failed" else outcome


@dataclass(frozen=True)
class JobEvent:
    """An event of a job.

    `kind` is described (before each attempt) | submitted | finished | failed; `job` is Snakemake's id.
    """

    kind: str
    job: int
    stage: str
    wildcards: Mapping[str, str]
    attempt: int
    slurm_job: str | None
    given_up: bool  # failed, and no attempt is left
    record: logging.LogRecord


class JobTracker:
    """Tracks the stage, wildcards, attempt and Slurm job of each job, which later log records do not repeat."""

    def __init__(self, start: Start):
        self.start = start
        self.works: dict[int, tuple[str, dict[str, str]]] = {}
        self.attempts: dict[int, int] = {}
        self.slurm_jobs: dict[int, str] = {}

    def read(self, record: logging.LogRecord) -> list[JobEvent]:
        """Return the job events in a log record of Snakemake."""
        found: Any = record  # fields of LogEvents are attributes
        kind = event_name(record)
        if kind == "job_info":
            job = int(found.jobid)
            self.works[job] = (str(found.rule_name), dict(getattr(found, "wildcards", None) or {}))
            self.attempts[job] = self.attempts.get(job, 0) + 1
            self.slurm_jobs.pop(job, None)
            described = [self._event("described", job, record)]
            return [*described, self._event("submitted", job, record)] if getattr(found, "local", False) else described
        if kind == "job_finished":  # the only event that spells the id `job_id`
            return [self._event("finished", int(found.job_id), record)]
        if kind == "job_error":
            return [self._event("failed", int(found.jobid), record)]
        found_text = None if kind else TEXT.match(record.getMessage())
        if found_text and found_text["stopping"]:
            self.start.asked_to_stop = True
        elif found_text:
            job = int(found_text["job"])
            self.slurm_jobs[job] = found_text["slurm_job"]
            return [self._event("submitted", job, record)]
        return []

    def _event(self, kind: str, job: int, record: logging.LogRecord) -> JobEvent:
        stage, wildcards = self.works.get(job, ("unknown", {}))
        attempt = self.attempts.get(job, 1)
        given_up = kind == "failed" and attempt > self.start.retries.get(stage, 0)
        return JobEvent(kind, job, stage, wildcards, attempt, self.slurm_jobs.get(job), given_up, record)


def event_name(record: logging.LogRecord) -> str:
    """Return the name of Snakemake's LogEvent, such as "job_info"; "" for plain text."""
    return str(getattr(getattr(record, "event", None), "value", ""))
