"""What Panoptes is told of a start of Snakemake, so that its page shows what is true.

It takes any failed job for a failed run, and any progress of N/N for a finished one. So a failed attempt that is
repeated is not told: the job's row begins anew, as `enhance, attempt 2`. The last step is held back until the run has
ended well: before the checkpoint nobody knows how many there will be.

The lengths are those of the columns of panoptes-ui 1.6; the server keeps lists as their repr().
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from speechmill.runlog.snakemake_events import JobEvent, JobTracker, Start, event_name
from speechmill.utils.text import encodable

NAME, TEXT, FILES = 30, 100, 500
Message = dict[str, Any]


class Messages:
    """Reads Snakemake's records, and keeps what the last word on the run depends on."""

    def __init__(self, start: Start):
        self.start = start
        self.tracker = JobTracker(start)
        self.done = self.total = 0
        self.at_work: dict[int, Message] = {}  # jobs that the page shows as running
        self.failed = False

    def read(self, record: logging.LogRecord) -> list[Message]:
        found: Any = record  # fields of LogEvents are attributes
        kind = event_name(record)
        if kind == "run_info":
            return self._progress(0, int(found.stats.get("total", 0)))
        if kind == "progress":
            return self._progress(int(found.done), int(found.total))
        messages = [message for event in self.tracker.read(record) for message in self._job(event)]
        if kind == "error":  # of a run that was stopped, too
            self.failed |= not self.start.asked_to_stop
        return messages

    def left(self) -> list[Message]:
        """At the end: what the page would show as running for ever was ended with the run."""
        return [{"level": "job_error", "jobid": job} for job in self.at_work]

    def outcome(self) -> str:
        """Done, Error or Cancelled."""
        if self.start.outcome == "succeeded":
            return "Done"
        return "Error" if self.failed or self.start.outcome == "failed" else "Cancelled"

    def last(self) -> Message:
        """Sets the workflow to Done, or Error: as many steps as were done, since with --until others remain."""
        steps = max(self.done, 1)
        return {"level": "progress", "done": steps, "total": steps} if self.outcome() == "Done" else {"level": "error"}

    def _progress(self, done: int, total: int) -> list[Message]:
        self.done, self.total = done, total
        return [{"level": "progress", "done": min(done, total - 1), "total": total}] if total > 0 else []

    def _job(self, event: JobEvent) -> list[Message]:
        if event.kind == "described":
            self.at_work[event.job] = described(event)
            return [self.at_work[event.job]]
        if event.kind == "submitted" and event.slurm_job:
            said = self.at_work.get(event.job)
            return [on_slurm(said, event.slurm_job)] if said else []
        if event.kind == "finished":
            self.at_work.pop(event.job, None)
            return [{"level": "job_finished", "jobid": event.job}]
        if event.given_up:
            self.failed = True
            self.at_work.pop(event.job, None)
            return [{"level": "job_error", "jobid": event.job}]
        return []


def described(event: JobEvent) -> Message:
    """The row of a job; no command line, which may hold what nobody else is to see."""
    found: Any = event.record
    attempt = f"attempt {event.attempt}"
    return {
        "level": "job_info",
        "jobid": event.job,
        "name": encodable(event.stage if event.attempt == 1 else f"{event.stage}, {attempt}")[:NAME],
        "msg": attempt,
        "input": fitting(found.input or [], FILES),
        "output": fitting(found.output or [], FILES),
        "log": fitting(found.log or [], TEXT),
        "wildcards": fitting_values(event.wildcards, TEXT),
        "is_checkpoint": bool(found.is_checkpoint),
    }


def on_slurm(said: Message, job: str) -> Message:
    """The same row, once Slurm has a number for it: among the logs, where the page of the job shows it."""
    number = f"Slurm job {job}"
    return said | {"msg": f"{said['msg']}, {number}"[:TEXT], "log": fitting([number, *said["log"]], TEXT)}


def fitting(values: Iterable[object], length: int) -> list[str]:
    """As many values as a column of this length takes, and then how many more there are."""
    texts = [encodable(value) for value in values]
    kept: list[str] = []
    for number, text in enumerate(texts, 1):
        more = [f"... and {len(texts) - number} more"] if number < len(texts) else []
        if not kept:
            text = text[-length:]
            while len(repr([text, *more])) > length:  # the end of a path says most
                text = "..." + text[4:]
        elif len(repr([*kept, text, *more])) > length:
            return [*kept, f"... and {len(texts) - number + 1} more"]
        kept.append(text)
    return kept


def fitting_values(values: Mapping[str, object], length: int) -> dict[str, str]:
    """As many as a column of this length takes."""
    kept: dict[str, str] = {}
    for name, value in values.items():
        if len(repr(kept | {name: encodable(value)})) <= length:
            kept[name] = encodable(value)
    return kept
