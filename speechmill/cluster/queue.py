"""The jobs of a run in a cluster's queue: what is alive, repairs, cancelling, waiting for the end.

`queue_of` chooses: Slurm's queue, or none where the jobs are processes of Snakemake.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence

from speechmill.cluster import slurm
from speechmill.cluster.slurm import RUNNING, Job, SlurmError
from speechmill.cluster.slurm import run_prefix as job_prefix

__all__ = ["RUNNING", "Job", "NoQueue", "SlurmQueue", "job_prefix", "jobs_in_queue", "queue_of"]

Log = Callable[[str], None]
NOT_REQUEUED = frozenset({"PREEMPTED", "NODE_FAIL"})  # the plugin waits forever for Slurm to requeue these
REPORT_SECONDS = 300.0  # between two log lines while waiting for jobs
ANSWER_SECONDS = 15.0  # an answer of Slurm is reused for that long


class NoQueue:
    """Jobs are processes of Snakemake, which knows when they end."""

    def has_work(self, drain: bool = False) -> bool:
        """Whether jobs are alive; True where that is not known."""
        return True

    def settle(self, cancel: Callable[[], bool]) -> None:
        """Wait until no job is alive. Waiting jobs are cancelled, running ones too once `cancel()` is true."""

    def cancel(self) -> int:
        """Cancel all jobs; the number of those that were alive.

        Raises:
            SpeechmillError: the cluster does not answer.
        """
        return 0


class SlurmQueue(NoQueue):
    """Jobs of one run on Slurm, during one start of Snakemake."""

    def __init__(self, prefix: str, poll_seconds: float, log: Log):
        """
        Args:
            prefix: of the run's job names.
            poll_seconds: between two questions to Slurm.
            log: called with a sentence for the user.
        """
        self.prefix, self.poll_seconds, self.log = prefix, poll_seconds, log
        self.seen: set[str] = set()  # jobs that this Snakemake had in the queue
        self.suspects: set[str] = set()  # jobs to repair if the next look finds them unchanged

    def has_work(self, drain: bool = False) -> bool:
        """Also repairs jobs. `drain`: cancel those that wait."""
        try:
            found = slurm.jobs(self.prefix)
            self.repair(found)
            alive = [job for job in found if job.is_alive]
            self.seen.update(job.id for job in alive)
            if drain:
                slurm.cancel([job for job in alive if job.is_waiting])
        except SlurmError as error:
            self._log_retry(error)
            return True
        return bool(alive)

    def repair(self, found: Sequence[Job]) -> None:
        """Requeue or release jobs that Slurm left out of the queue, once two looks in a row found them so."""
        wrong = {}
        for job in found:
            if job.state in NOT_REQUEUED and job.id in self.seen:
                wrong[job.id] = (job, "requeue", f"{job.state} on {job.node}")
            elif job.state == "PENDING" and "requeued held" in job.reason.replace("_", " "):
                wrong[job.id] = (job, "release", job.reason)
        for job, action, why in (wrong[number] for number in sorted(self.suspects & wrong.keys())):
            slurm.call("scontrol", action, job.id)
            self.log(f"Slurm did not {action} job {job.id}, {job.work} ({why}); {action}d it")
        self.suspects = set(wrong) - self.suspects

    def settle(self, cancel: Callable[[], bool]) -> None:
        """A job that ends by itself leaves complete results, and Snakemake's metadata of them: it is not repeated."""
        reported = 0.0
        while True:
            cancels = cancel()
            try:
                alive = [job for job in slurm.jobs(self.prefix) if job.is_alive]
                if not alive:
                    return
                if time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    what = "cancelling them" if cancels else "waiting for them"
                    self.log(f"{len(alive)} Slurm jobs of the earlier start are alive: {what}")
                slurm.cancel([job for job in alive if cancels or job.is_waiting])
            except SlurmError as error:
                self._log_retry(error)
            time.sleep(min(self.poll_seconds, 2) if cancels else self.poll_seconds)

    def cancel(self) -> int:
        """Where Slurm is not installed, there is nothing to cancel."""
        if shutil.which("squeue") is None:
            return 0
        alive = [job for job in slurm.jobs(self.prefix) if job.is_alive]
        slurm.cancel(alive)
        return len(alive)

    def _log_retry(self, error: SlurmError) -> None:
        self.log(f"{error}; retrying in {self.poll_seconds:.0f} s")


def queue_of(on_slurm: bool, prefix: str, poll_seconds: float, log: Log) -> NoQueue:
    """The queue of a run's jobs."""
    return SlurmQueue(prefix, poll_seconds, log) if on_slurm else NoQueue()


def jobs_in_queue(prefix: str) -> tuple[list[Job], str | None]:
    """Jobs of a run that are alive, at most ANSWER_SECONDS ago, and the error if Slurm did not answer.

    Where Slurm is not installed, there are none and no error.
    """
    if shutil.which("squeue") is None:
        return [], None
    asked, found, problem = _answers.get(prefix, (-ANSWER_SECONDS, [], None))
    if time.monotonic() - asked >= ANSWER_SECONDS:
        try:
            found, problem = slurm.jobs(prefix), None
        except SlurmError as error:
            found, problem = [], str(error)
        _answers[prefix] = (time.monotonic(), found, problem)
    return [job for job in found if job.is_alive], problem


_answers: dict[str, tuple[float, list[Job], str | None]] = {}  # by prefix: many readers are one question to Slurm
