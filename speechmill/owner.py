"""Who runs a run: one Snakemake at a time, known by host, process and start of that process.

Snakemake's own lock stays behind when it is killed, and says nothing of who held it. `{run}/owner.json` does: the
Snakefile writes it when a run starts and removes it when it ends. `{run}/supervisor.json` is the same of the
`speechmill run` that looks after it, between two starts of Snakemake, too.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from speechmill.errors import SpeechmillError
from speechmill.files import read_json, write_json

FILE = "owner.json"
SUPERVISED = "supervisor.json"
SUPERVISOR = "SPEECHMILL_SUPERVISOR"  # process id of `speechmill run`, for the Snakemake that it starts


@dataclass(frozen=True)
class Owner:
    """A Snakemake that works on a run. `ticks` is its start in clock ticks since boot; 0 where that is unknown."""

    host: str
    boot: str
    pid: int
    ticks: int
    supervisor: int | None
    since: str

    @property
    def is_here(self) -> bool:
        """Whether it was started on this machine, so that its process can be looked at."""
        return self.host == os.uname().nodename

    @property
    def is_alive(self) -> bool:
        """Whether it works still. One on another machine counts as alive: from here nobody can tell."""
        return not self.is_here or (self.boot == _boot() and self.ticks == _ticks(self.pid) != 0)

    @property
    def watched_by(self) -> int | None:
        """Process id of the `speechmill run` that looks after it, while that lives."""
        return self.supervisor if self.supervisor and _fields(self.pid)[1:2] == [str(self.supervisor)] else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def read_owner(run_dir: Path, name: str = FILE) -> Owner | None:
    """Who holds the run, dead or alive; None if it ended properly or was never started."""
    try:
        return Owner(**read_json(run_dir / name))
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise SpeechmillError(
            f"{run_dir / name} cannot be read ({error}); remove it if nothing works on this run"
        ) from error


def is_supervised(run_dir: Path) -> bool:
    """Whether a `speechmill run` looks after it now."""
    supervisor = read_owner(run_dir, SUPERVISED)
    return supervisor is not None and supervisor.is_alive


def claim(run_dir: Path) -> None:
    """Take the run for this process.

    Raises:
        SpeechmillError: another process has it.
    """
    owner = read_owner(run_dir)
    if owner and owner.is_alive and owner.pid != os.getpid():
        raise SpeechmillError(f"{run_dir} is being worked on by {owner}. {_advice(owner, run_dir)}")
    sign(run_dir / FILE)


def sign(file: Path) -> None:
    """Write who this process is."""
    write_json(file, asdict(this_process()))


def this_process() -> Owner:
    """What this process is known by."""
    supervisor = os.environ.get(SUPERVISOR)
    pid = os.getpid()
    since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return Owner(os.uname().nodename, _boot(), pid, _ticks(pid), int(supervisor) if supervisor else None, since)


def release(run_dir: Path, name: str = FILE) -> None:
    """Give the run free, if this process holds it."""
    owner = read_owner(run_dir, name)
    if owner and owner.is_here and owner.pid == os.getpid():
        (run_dir / name).unlink(missing_ok=True)


def _advice(owner: Owner, run_dir: Path) -> str:
    if owner.is_here:
        return f"See speechmill status {run_dir}; stop it with speechmill drain or cancel {run_dir}."
    return (
        f"Look there; if that machine or process is gone, remove {run_dir / FILE} and say speechmill resume {run_dir}."
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _ticks(pid: int) -> int:
    """Start time of a process; 0 if there is none, or it is a zombie."""
    fields = _fields(pid)
    return 0 if not fields or fields[0] == "Z" else int(fields[19])


def _fields(pid: int) -> list[str]:
    """What follows the name in /proc/PID/stat: state, parent, ...; nothing if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
