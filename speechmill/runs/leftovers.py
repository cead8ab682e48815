"""What an earlier start of a run left: its processes on this machine, its jobs in the queue, Snakemake's lock.

All that a supervisor starts carries the folder of the run in its environment. So it is found whichever process died in
between, whatever its parents and groups are now.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from speechmill.cluster.queue import NoQueue
from speechmill.errors import SpeechmillError
from speechmill.runlog import run_lock
from speechmill.runs.plan import Plan
from speechmill.utils.machine import environment_of, slurm_job

MARK = "SPEECHMILL_RUN"  # environment variable: the folder of the run
LOOK_SECONDS = 1.0
CANCEL_SECONDS = 60.0  # that Snakemake has to end after SIGINT, before it is killed

Log = Callable[[str], None]
Request = Callable[[], str | None]  # drain | cancel, once the run is asked to stop


def take_over(plan: Plan, queue: NoQueue, asked_to: Request, log: Log, was_left: bool) -> None:
    """Wait until no Snakemake works on the run, kill what it left, wait for its jobs and remove its lock.

    A request to stop is passed on to that Snakemake, and jobs in the queue are cancelled as it says.

    Args:
        queue: of the run's jobs.
        asked_to: the request to stop, if there is one by now.
        log: called with what is waited for.
        was_left: whether the run is known to be left by a start that was killed; else there may be nothing to do.

    Raises:
        SpeechmillError: a Snakemake works on another machine, or does not end.
    """
    run_dir = Path(plan.run_dir)
    sent: set[tuple[int, str]] = set()
    waited: int | None = None
    late: float | None = None
    while pids := _snakemakes(run_dir):
        if waited != pids[0]:
            waited = pids[0]
            log(f"waiting for Snakemake, process {waited}, to end")
        how = asked_to()
        if how == "drain":
            queue.has_work(drain=True)  # jobs that wait are cancelled
        if how == "cancel":
            late = late or time.monotonic() + CANCEL_SECONDS
            if time.monotonic() > late:
                break
        for pid in pids:
            if how and (pid, how) not in sent:
                sent.add((pid, how))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM if how == "drain" else signal.SIGINT)
        time.sleep(LOOK_SECONDS)
    was_left = was_left or bool(waited or of_run(run_dir)) or run_lock.read_owner(run_dir) is not None
    kill(run_dir)
    if was_left or asked_to():
        queue.settle(lambda: asked_to() == "cancel")
    if was_left:
        unlock(plan)


def _snakemakes(run_dir: Path) -> list[int]:
    """Those of the run that are at work on this machine."""
    pids = [pid for pid in of_run(run_dir) if _group(pid) == pid]
    holder = run_lock.read_owner(run_dir)
    if holder and holder.is_alive and holder.pid not in pids:
        if not holder.is_here:
            raise SpeechmillError(f"{run_dir} is being worked on by {holder}: end it on {holder.host}")
        pids.append(holder.pid)  # started without a supervisor
    return pids


def end_all(plan: Plan, queue: NoQueue) -> str | None:
    """Kill the processes of a run and cancel its jobs; what is left of them, if anything, for another call."""
    run_dir = Path(plan.run_dir)
    if left := kill(run_dir):
        return f"processes {left} could not be killed"
    with suppress(SpeechmillError):  # a damaged file: its owner is not known
        holder = run_lock.read_owner(run_dir)
        if holder and holder.is_alive:  # a Snakemake without a supervisor: so are the jobs
            return None
    try:
        alive = queue.cancel()
    except SpeechmillError as error:
        return str(error)
    return f"{alive} jobs in the queue end, which are cancelled" if alive else None


def unlock(plan: Plan) -> None:
    """Remove the lock that a dead Snakemake left.

    Raises:
        SpeechmillError: its owner is alive.
    """
    run_dir = Path(plan.run_dir)
    holder = run_lock.read_owner(run_dir)
    if holder and holder.is_alive:
        raise SpeechmillError(f"{run_dir} is being worked on by {holder}; not unlocking it")
    done = subprocess.run(
        plan.command(arguments=["--unlock"]),
        cwd=plan.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C in this terminal is for this process
    )
    if done.returncode:
        raise SpeechmillError(f"snakemake --unlock failed: {done.stderr.strip()[-1000:]}")
    (run_dir / run_lock.FILE).unlink(missing_ok=True)


def of_run(run_dir: Path) -> list[int]:
    """Living processes that a supervisor of the run started, without Slurm's jobs, which Slurm ends, and this process."""
    others = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]
    return [pid for pid in others if _belongs(pid, run_dir) and run_lock.start_ticks(pid)]


def kill(run_dir: Path, seconds: float = 30) -> list[int]:
    """Kill them all; those that are still there after `seconds`."""
    end = time.monotonic() + seconds
    while (left := of_run(run_dir)) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    return left


def has_children(pid: int) -> bool:
    """Whether a process has child processes."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            if children.read_text().split():
                return True
        except OSError:
            continue
    return False


def _belongs(pid: int, run_dir: Path) -> bool:
    environment = environment_of(pid)
    return environment.get(MARK) == str(run_dir) and slurm_job(environment) in (None, slurm_job())


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0
