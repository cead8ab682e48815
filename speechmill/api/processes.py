"""The processes of a run on this machine: all that its runner starts carry its id in their environment.

So they are found whoever died in between, whatever their parents and groups are now. Its jobs on Slurm besides.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from speechmill import slurm
from speechmill.errors import SpeechmillError
from speechmill.owner import Owner, read_owner, this_process
from speechmill.supervise import Plan

MARK = "SPEECHMILL_RUN"
SILENT_SECONDS = 600  # after which a runner on another machine is taken for dead


def identity() -> str:
    """This process, so that another one can tell whether it lives."""
    return json.dumps(asdict(this_process()), sort_keys=True)


def is_alive(runner: str | None, beat: float | None) -> bool:
    """Whether a runner lives. One on another machine, whose state directory this was, is told by its beat."""
    if runner is None:
        return False
    who = Owner(**json.loads(runner))
    return who.is_alive if who.is_here else time.time() - (beat or 0) < SILENT_SECONDS


def of_run(run_id: str) -> list[int]:
    """Living processes of a run beside Slurm's jobs, which Slurm ends."""
    return [pid for pid in _numbers() if pid != os.getpid() and _belongs(pid, run_id) and _state(pid) not in ("", "Z")]


def leaders(run_id: str) -> list[int]:
    """Those of them that lead a group: Snakemake itself."""
    return [pid for pid in of_run(run_id) if _group(pid) == pid]


def kill(run_id: str, seconds: float = 30) -> list[int]:
    """Kill them all; those that are still there after `seconds`."""
    end = time.monotonic() + seconds
    while (left := of_run(run_id)) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    return left


def end_all(run_id: str, plan: Plan) -> str | None:
    """Kill the processes of a run and cancel its Slurm jobs; what is left of them, if anything, for another call."""
    if left := kill(run_id):
        return f"processes {left} could not be killed"
    with suppress(SpeechmillError):  # nobody knows whose it is
        holder = read_owner(Path(plan.run_dir))
        if holder and holder.is_alive:  # a person's Snakemake: so are the jobs
            return None
    if not plan.on_slurm or shutil.which("squeue") is None:
        return None
    try:
        alive = [job for job in slurm.jobs(plan.prefix) if job.state in slurm.WAITING | slurm.RUNNING]
        slurm.cancel(alive)
    except slurm.SlurmError as error:
        return str(error)
    return f"{len(alive)} Slurm jobs, which are cancelled" if alive else None


def _belongs(pid: int, run_id: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return False
    ours = os.environ.get("SLURM_JOB_ID", "")
    job = next(
        (entry[13:].decode("utf-8", "replace") for entry in environment if entry.startswith(b"SLURM_JOB_ID=")), ""
    )
    return f"{MARK}={run_id}".encode() in environment and job in ("", ours)


def _numbers() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0
