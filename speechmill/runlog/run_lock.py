"""Run lock: one supervisor and one Snakemake per run, identified by host, PID and process start time.

`{run}/supervisor.json` is the lock of the `speechmill run` (or of the API's supervisor) that works on the run: it holds
it from before the first Snakemake until after the last, and says in it what it is doing. The file's modification time
is its heartbeat: that needs no space on a full disk, and can be read from other machines. `{run}/owner.json` is the lock
of the Snakemake at work, which Snakemake's own lock does not name and which a plain `snakemake` takes, too.
`{run}/stop.json` asks the supervisor to stop. What a process left that was killed remains, and is known to be dead.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from speechmill.errors import SpeechmillError
from speechmill.storage.files import read_json, write_json
from speechmill.utils.times import utc_now

FILE = "owner.json"
SUPERVISED = "supervisor.json"
STOP = "stop.json"
SUPERVISOR = "SPEECHMILL_SUPERVISOR"  # environment variable: process id of the supervisor that started this Snakemake
DRAIN = signal.SIGUSR1  # to a supervisor; SIGINT cancels
HEARTBEAT_SECONDS = 15.0
SILENT_SECONDS = 600.0  # after which a supervisor on another machine counts as dead

T = TypeVar("T", bound="Owner | StopRequest")


class State(StrEnum):
    """What a living supervisor does. A run without one has ended, or its supervisor is dead (the file remains)."""

    STARTING = "starting"  # it cleans up what an earlier start left
    WAITING = "waiting"  # for a Snakemake of an earlier start, which is still at work
    PLANNING = "planning"  # Snakemake was started and has not taken the run yet
    RUNNING = "running"  # Snakemake works on the run
    BETWEEN = "between"  # Snakemake ended and will be started again
    DRAINING = "draining"  # asked to stop: running jobs end
    CANCELLING = "cancelling"  # asked to stop: jobs are cancelled


STOPPING = {"drain": State.DRAINING, "cancel": State.CANCELLING}


@dataclass(frozen=True)
class Owner:
    """A process that holds a run. `ticks` is its start time in clock ticks since boot; 0 if unknown."""

    host: str
    boot: str
    pid: int
    ticks: int
    since: str

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, so that its process can be checked."""
        return self.host == os.uname().nodename

    @property
    def is_alive(self) -> bool:
        """Whether it is still running.

        A process on another machine counts as alive, because it cannot be checked from here.
        """
        return not self.is_here or (self.boot == _boot() and self.ticks == start_ticks(self.pid) != 0)

    def is_same(self, other: Owner | None) -> bool:
        """Whether both are the same process."""
        names = ("host", "boot", "pid", "ticks")
        return all(getattr(self, name) == getattr(other, name, None) for name in names)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass(frozen=True)
class Supervision(Owner):
    """A supervisor that holds a run."""

    state: str = State.STARTING
    reason: str | None = None  # of the last restart of Snakemake, or what it waits for
    result: str | None = None  # the file of the run in which it writes the end of the run, for the API
    heartbeat: float = 0.0  # seconds since the epoch

    @property
    def is_alive(self) -> bool:
        """Whether it is still running. One on another machine is alive as long as its heartbeat is recent."""
        return super().is_alive if self.is_here else time.time() - self.heartbeat < SILENT_SECONDS


def read_owner(run_dir: Path) -> Owner | None:
    """Return the Snakemake that holds the run, dead or alive; None if it ended normally or was never started.

    Raises:
        SpeechmillError: the file cannot be read.
    """
    return _read(run_dir / FILE, Owner)


def read_supervisor(run_dir: Path) -> Supervision | None:
    """Return the supervisor that holds the run, dead or alive; None if it ended normally or was never started.

    Raises:
        SpeechmillError: the file cannot be read.
    """
    file = run_dir / SUPERVISED
    try:
        return _read(file, Supervision, heartbeat=file.stat().st_mtime)
    except FileNotFoundError:
        return None


def claim(run_dir: Path) -> None:
    """Lock the run for this process, a Snakemake.

    Raises:
        SpeechmillError: another Snakemake or another supervisor holds it.
    """
    owner = read_owner(run_dir)
    if owner and owner.is_alive and owner.pid != os.getpid():
        raise SpeechmillError(f"{run_dir} is being worked on by {owner}. {_advice(owner, run_dir)}")
    supervisor = read_supervisor(run_dir)
    if supervisor and supervisor.is_alive and not (supervisor.is_here and supervisor.pid == _parent()):
        raise SpeechmillError(f"{run_dir} is being worked on by {supervisor}. {_advice(supervisor, run_dir)}")
    if _parent() and (request := read_stop(run_dir)):
        raise SpeechmillError(f"{request.by} asked to {request.how} the run before its first job began")
    write_json(run_dir / FILE, asdict(this_process()))


def release(run_dir: Path) -> None:
    """Unlock the run if this process, a Snakemake, holds it."""
    owner = read_owner(run_dir)
    if owner and owner.is_here and owner.pid == os.getpid():
        (run_dir / FILE).unlink(missing_ok=True)


def this_process() -> Owner:
    """Return the identity of this process."""
    pid = os.getpid()
    return Owner(os.uname().nodename, _boot(), pid, start_ticks(pid), time.strftime("%Y-%m-%dT%H:%M:%S%z"))


class RunLock:
    """The lock of one supervisor, this process. Methods may be called from any thread."""

    def __init__(self, run_dir: Path, result: str | None = None):
        self.run_dir, self.file, self.result = run_dir, run_dir / SUPERVISED, result
        self._mine: Supervision | None = None
        self._writing = threading.Lock()

    def take(self) -> Supervision | None:
        """Lock the run; the dead supervisor that held it before, if one did.

        Raises:
            SpeechmillError: another supervisor is alive.
            OSError: the file cannot be written, such as on a full disk.
        """
        me = this_process()
        with _exclusive(self.run_dir):
            before = read_supervisor(self.run_dir)
            if before and before.is_alive and not me.is_same(before):
                raise SpeechmillError(f"{self.run_dir} is being worked on by {before}. {_advice(before, self.run_dir)}")
            if self.result is None:  # the API asks again for what it wants
                clear_stop(self.run_dir)
            self._mine = Supervision(**asdict(me), result=self.result)
            self._write()
        return None if me.is_same(before) else before

    def note(self, state: State, reason: str | None = None) -> None:
        """Write what the supervisor does now. On a full disk the file keeps what it says."""
        with self._writing:
            if self._mine and (self._mine.state, self._mine.reason) != (state, reason):
                self._mine = replace(self._mine, state=state, reason=reason)
                with suppress(OSError):
                    self._write()

    def heartbeat(self) -> None:
        with suppress(OSError):
            os.utime(self.file)

    def release(self) -> None:
        """Unlock the run if this process holds it, and remove the request that it obeyed."""
        with self._writing, suppress(SpeechmillError):
            mine, self._mine = self._mine, None
            if mine and mine.is_same(read_supervisor(self.run_dir)):
                clear_stop(self.run_dir)
                self.file.unlink(missing_ok=True)

    def _write(self) -> None:
        assert self._mine
        write_json(self.file, {name: value for name, value in asdict(self._mine).items() if name != "heartbeat"})


@dataclass(frozen=True)
class StopRequest:
    """`how` is drain or cancel."""

    how: str
    by: str
    time: str


def request_stop(run_dir: Path, how: str, by: str | None = None) -> None:
    """Ask the supervisor of a run to stop. A request to cancel remains one.

    Raises:
        SpeechmillError: the request cannot be written, and the supervisor cannot be signalled.
    """
    earlier, supervisor = read_stop(run_dir), read_supervisor(run_dir)
    trouble = None
    if not earlier or (earlier.how, how) == ("drain", "cancel"):
        who = by or f"{_user()}@{os.uname().nodename}"
        try:
            write_json(run_dir / STOP, asdict(StopRequest(how, who, utc_now())))
        except OSError as error:
            trouble = error
    try:  # At once; and the request reaches it on a full disk, too.
        if supervisor and supervisor.is_here and supervisor.is_alive:
            os.kill(supervisor.pid, DRAIN if how == "drain" else signal.SIGINT)
            trouble = None
    except OSError as error:
        trouble = trouble and error
    if trouble:
        raise SpeechmillError(f"{run_dir / STOP} cannot be written: {trouble.strerror}") from trouble


def read_stop(run_dir: Path) -> StopRequest | None:
    """Return the request to stop, if there is one that can be read."""
    with suppress(SpeechmillError):
        return _read(run_dir / STOP, StopRequest)
    return None


def clear_stop(run_dir: Path) -> None:
    """Remove a request to stop, which was obeyed or is of an earlier start."""
    with suppress(OSError):
        (run_dir / STOP).unlink(missing_ok=True)


def _read(file: Path, kind: type[T], **more: Any) -> T | None:
    """What a file holds; None if it does not exist. Fields of other versions are ignored."""
    names = {field.name for field in fields(kind)}
    try:
        found = read_json(file) | more
        return kind(**{name: value for name, value in found.items() if name in names})
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        raise SpeechmillError(
            f"{file} cannot be read ({error}); remove it if no process is working on this run"
        ) from error


@contextmanager
def _exclusive(run_dir: Path) -> Iterator[None]:
    """One process at a time looks whether the lock is free and takes it. Without effect where files cannot be locked."""
    file = run_dir / "logs" / "supervisor.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as held:
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _parent() -> int:
    """Process id of the supervisor that started this process; 0 if there is none."""
    return int(os.environ.get(SUPERVISOR) or 0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())


def _advice(owner: Owner, run_dir: Path) -> str:
    if owner.is_here or isinstance(owner, Supervision):
        return f"See speechmill status {run_dir}; stop it with speechmill drain or cancel {run_dir}."
    return (
        f"Check that machine. If the process no longer runs, remove {run_dir / FILE}, "
        f"then run: speechmill resume {run_dir}"
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot; 0 if it does not exist or is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    state, *more = text.rpartition(")")[2].split()  # after the name, which may contain blanks
    return 0 if state == "Z" else int(more[18])
