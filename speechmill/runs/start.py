"""Start, resume and stop runs: what `speechmill run | resume | drain | cancel` and the API do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from speechmill.errors import SpeechmillError
from speechmill.runlog import run_lock
from speechmill.runlog.run_lock import STOPPING, Owner, RunLock
from speechmill.runs import leftovers
from speechmill.runs.plan import LOG, RUN_FILE, Plan, read_plan
from speechmill.runs.supervisor import Supervisor

STOP_SECONDS = 180.0  # in which a run that is cancelled has to end


def start(plan: Plan, background: bool = False) -> int:
    """Start a run, or continue one that ended; returns the exit status.

    Raises:
        SpeechmillError: it is being worked on, or an earlier start left a lock or jobs.
    """
    run_dir = Path(plan.run_dir)
    for holder in (run_lock.read_supervisor(run_dir), run_lock.read_owner(run_dir)):
        if holder and holder.is_alive:
            raise SpeechmillError(f"{run_dir} is being worked on by {holder}; see speechmill status {run_dir}")
        if holder:
            raise SpeechmillError(
                f"{run_dir} was left by {holder}, which is dead; continue with: speechmill resume {run_dir}"
            )
    if background:
        return _in_background(plan, "--plan", json.dumps(asdict(plan)))
    return Supervisor(plan).run()


def resume(run_dir: Path, cancel: bool, background: bool = False) -> int:
    """Continue a run that was stopped or killed; returns the exit status.

    A Snakemake that is still at work and Slurm jobs are waited for, or cancelled.

    Raises:
        SpeechmillError: another supervisor works on it, or it was never started by `speechmill run`.
    """
    plan = read_plan(run_dir)
    if background:
        return _in_background(plan, "--resume", *(["--cancel"] if cancel else []))
    return Supervisor(plan, resumes=True, cancels=cancel).run()


def stop(run_dir: Path, how: str, timeout: float = STOP_SECONDS) -> None:
    """`drain` a run (running jobs end, no new job starts) or `cancel` it (nothing of it is left when this returns).

    The supervisor does so. Where it is dead, this process does: it then returns once nothing of the run is at work.

    Raises:
        SpeechmillError: something of it is still at work, or it was never started by `speechmill run`.
    """
    holder: Owner | None = run_lock.read_supervisor(run_dir)
    if holder and holder.is_alive:
        run_lock.request_stop(run_dir, how)
    else:
        holder = run_lock.read_owner(run_dir)
        if (run_dir / RUN_FILE).exists() or not (holder and holder.is_alive and holder.is_here):
            _clean_up(read_plan(run_dir), how)
            return
        os.kill(holder.pid, signal.SIGTERM if how == "drain" else signal.SIGINT)  # a plain snakemake
    if how == "drain":
        print(f"{holder} starts no new job and ends with its running jobs; see speechmill status {run_dir}")
        return
    end = time.monotonic() + timeout
    while _holds(run_dir, holder) and time.monotonic() < end:
        time.sleep(0.2)
    ended = "has ended" if not _holds(run_dir, holder) else f"did not end within {timeout:.0f} s"
    left = leftovers.of_run(run_dir.resolve())
    if left or _holds(run_dir, holder):
        raise SpeechmillError(
            f"{holder} {ended}; processes still at work: {left}; see {run_dir / LOG}, then cancel again"
        )


def _holds(run_dir: Path, holder: Owner) -> bool:
    """Whether a process is alive and still has the run. One on another machine is known by its files alone."""
    now = (run_lock.read_supervisor(run_dir), run_lock.read_owner(run_dir))
    return any(each and each.is_same(holder) and each.is_alive for each in now)


def _clean_up(plan: Plan, how: str) -> None:
    """End what a dead supervisor left. The lock keeps others from starting the run meanwhile."""
    lock, queue = RunLock(Path(plan.run_dir)), plan.queue(print)
    try:
        was_left = lock.take() is not None
        lock.note(STOPPING[how])
        leftovers.take_over(plan, queue, lambda: how, print, was_left)
        if how == "cancel" and (left := leftovers.end_all(plan, queue)):
            raise SpeechmillError(f"{left}; cancel again")
    except OSError as error:  # such as another user's run
        raise SpeechmillError(f"{plan.run_dir} cannot be changed: {error}") from error
    finally:
        lock.release()


def open_supervisor(
    run_dir: Path, directory: Path, arguments: Sequence[str], output: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start `speechmill supervise`, which needs neither this process nor its terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "speechmill", "supervise", str(run_dir), *arguments],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _in_background(plan: Plan, *arguments: str) -> int:
    """Return once the supervisor has the run's lock, so that it can be stopped from then on."""
    run_dir = Path(plan.run_dir)
    child = open_supervisor(run_dir, Path(plan.directory), arguments, subprocess.DEVNULL)
    while not ((holder := run_lock.read_supervisor(run_dir)) and holder.pid == child.pid):
        if status := child.poll():
            raise SpeechmillError(f"the supervisor of {run_dir} ended with {status}; see {run_dir / LOG}")
        if status == 0:
            break
        time.sleep(0.1)
    print(
        f"process {child.pid} continues without this terminal; see speechmill status {run_dir}; output: {run_dir / LOG}"
    )
    return 0
