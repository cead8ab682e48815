"""What Snakemake tells its loggers, as events of jobs: for the account of a run and for Panoptes alike."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechmill.times import utc_now

SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\d+) ")
STOPPING = ("Will exit after finishing currently running jobs", "Terminating processes on user request")


@dataclass
class Start:
    """One start of Snakemake on a run. A run that is interrupted and resumed has several."""

    run_dir: Path
    dataset: str
    retries: Mapping[str, int] = field(default_factory=dict)  # rule -> attempts after the first
    time: str = field(default_factory=utc_now)
    outcome: str | None = None  # succeeded | failed, once Snakemake has said which; stays None if it is stopped
    goal: str = "published/UPLOADED.json"  # the file of the run that its last job makes
    withholds: bool = False  # jobs failed for good: it reports the others, and publishes nothing
    asked_to_stop: bool = False

    def end(self, outcome: str) -> None:
        """How it ended. Snakemake takes being asked to stop for a failure."""
        self.outcome = None if self.asked_to_stop and outcome == "failed" else outcome


current: Start | None = None
"""The start that this process is: set by the Snakefile as its first job begins, None in a dry run."""


@dataclass(frozen=True)
class JobEvent:
    """`kind` is described (anew before each attempt) | submitted | finished | failed; `job` Snakemake's number."""

    kind: str
    job: int
    stage: str
    wildcards: Mapping[str, str]
    attempt: int
    slurm_job: str | None
    given_up: bool  # failed, and there is no further attempt
    record: logging.LogRecord


class JobTracker:
    """Keeps what the events of a job leave out: its stage, wildcards, attempt and Slurm job."""

    def __init__(self, start: Start):
        self.start = start
        self.works: dict[int, tuple[str, dict[str, str]]] = {}
        self.attempts: dict[int, int] = {}
        self.slurm_jobs: dict[int, str] = {}

    def read(self, record: logging.LogRecord) -> list[JobEvent]:
        """The events of jobs that a record of Snakemake's logger tells of."""
        found: Any = record  # fields of LogEvents are attributes
        kind = event_name(record)
        if kind == "job_info":
            job = int(found.jobid)
            self.works[job] = (str(found.rule_name), dict(getattr(found, "wildcards", None) or {}))
            self.attempts[job] = self.attempts.get(job, 0) + 1
            self.slurm_jobs.pop(job, None)
            described = [self._event("described", job, record)]
            return [*described, self._event("submitted", job, record)] if getattr(found, "local", False) else described
        if kind == "job_finished":  # the one event whose number of the job has another name
            return [self._event("finished", int(found.job_id), record)]
        if kind == "job_error":
            return [self._event("failed", int(found.jobid), record)]
        if not kind and record.getMessage().startswith(STOPPING):
            self.start.asked_to_stop = True
        if not kind and (words := SUBMITTED.match(record.getMessage())):
            self.slurm_jobs[int(words[1])] = words[2]
            return [self._event("submitted", int(words[1]), record)]
        return []

    def _event(self, kind: str, job: int, record: logging.LogRecord) -> JobEvent:
        stage, wildcards = self.works.get(job, ("unknown", {}))
        attempt = self.attempts.get(job, 1)
        given_up = kind == "failed" and attempt > self.start.retries.get(stage, 0)
        return JobEvent(kind, job, stage, wildcards, attempt, self.slurm_jobs.get(job), given_up, record)


def event_name(record: logging.LogRecord) -> str:
    """Of Snakemake's LogEvent, as "job_info"; "" for plain text."""
    return str(getattr(getattr(record, "event", None), "value", ""))
