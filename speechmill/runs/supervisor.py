"""Supervises one run: starts Snakemake, watches it, repairs what the Slurm plugin cannot, and starts it again.

It holds the run's lock from before the first Snakemake until after the last (runlog/run_lock.py), whether the command
line or the API started it. It looks at the process, at the run's jobs in the queue and at the files of the run:

- what an earlier start left is waited for or ended (runs/leftovers.py);
- a preempted job, or one whose node failed, that Slurm does not requeue is requeued;
- a job that Slurm holds after its launch failed is released;
- Snakemake that waits while the queue has no job of the run, and nothing runs here, has lost track of jobs: it is
  killed and started again;
- a Snakemake that was killed is started again, once no job of it can write any more;
- after a full disk it waits for space and starts Snakemake again;
- batches that failed for good are left out, so that there is a report of all others that names them;
- a request to stop (stop.json, or a signal) is obeyed in whatever it does;
- alerts are sent when the run needs attention (monitor/watch.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from speechmill.errors import Failure, SpeechmillError
from speechmill.monitor.watch import watch_run
from speechmill.runlog import run_lock
from speechmill.runlog.attempts import read_attempts
from speechmill.runlog.failures import says_no_space
from speechmill.runlog.progress import finished_pieces, unscored_batches
from speechmill.runlog.run_lock import DRAIN, STOPPING, RunLock, State
from speechmill.runs.leftovers import CANCEL_SECONDS, MARK, end_all, has_children, take_over, unlock
from speechmill.runs.plan import LOG, RUN_FILE, Plan, plan_config
from speechmill.storage.files import write_json
from speechmill.tables.batches import read_batches
from speechmill.utils.times import utc_now

MAKES_A_BATCH = frozenset({"enhance", "score"})
SPACE = 2**20  # bytes: less is a full disk
LOOK_SECONDS = 0.5  # between two looks for a request to stop
RETRY_SECONDS = 10.0  # between two attempts to write a file of the run
T = TypeVar("T")


@dataclass
class Supervisor:
    """One `speechmill run` or `speechmill supervise`. It writes to logs/run.log, and to the terminal if there is one."""

    plan: Plan
    result: str | None = None  # the file of the run in which its end is written, for the API
    resumes: bool = False  # unlock even where nothing was found of an earlier start
    cancels: bool = False  # jobs of an earlier start, instead of waiting for them
    asked_to: str | None = None  # drain | cancel
    by_user: bool = False  # and not only by SIGTERM, which a machine that shuts down sends
    child: subprocess.Popen[bytes] | None = None
    starts: int = 0  # of Snakemake
    reason: str | None = None  # of its last restart
    since: str = ""  # start of the child, UTC
    _request: run_lock.StopRequest | None = None  # the last one that was read
    _seen: int | None = None  # the Snakemake that is known to be at work
    _passed_on: tuple[str, int] | None = None  # the request, and the Snakemake that got it
    _no_space_at: int = -1  # where the log says last that the disk is full
    _passing: threading.RLock = field(default_factory=threading.RLock)
    _following: threading.RLock = field(default_factory=threading.RLock)
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.run_dir = Path(self.plan.run_dir)
        (self.run_dir / LOG).parent.mkdir(parents=True, exist_ok=True)
        self.log_file = os.open(self.run_dir / LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._followed = self._output_from = os.fstat(self.log_file).st_size
        self.queue = self.plan.queue(self.log)
        self.lock = RunLock(self.run_dir, self.result)
        self.environment = os.environ | {MARK: self.plan.run_dir, run_lock.SUPERVISOR: str(os.getpid())}

    def run(self) -> int:
        """Work until the run is complete, cannot continue, or is asked to stop; returns the exit status.

        Raises:
            SpeechmillError: another supervisor is alive, or the run cannot continue.
        """
        signal.signal(signal.SIGTERM, lambda *_: self.stop("drain", by_user=False))
        signal.signal(DRAIN, lambda *_: self.stop("drain"))
        signal.signal(signal.SIGINT, lambda *_: self.stop("cancel"))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal ends nothing
        log_from = self._followed
        was_left = self.take_lock()
        self.look()
        threading.Thread(target=self._attend, daemon=True).start()
        alerts = watch_run(self.run_dir, lambda: plan_config(self.plan), self.log, quotes=self.run_dir / LOG)
        status, error = 1, None
        try:
            status = self.work(was_left)
        except SpeechmillError as failure:
            error = failure
        finally:
            if alerts:
                alerts.stop("stopped" if self.asked_to else "failed" if status else "finished")
        # After an error that no one foresaw the lock remains, as after a kill: so what is left of the run is found.
        self.end(status, error, log_from)
        if error:
            raise error
        return status

    def take_lock(self) -> bool:
        """Take the run's lock and write its plan; whether a dead supervisor held it."""
        was_left = self._write_when_possible("the lock", self.lock.take) is not None
        if not self.resumes:
            self._write_when_possible(RUN_FILE, lambda: write_json(self.run_dir / RUN_FILE, asdict(self.plan)))
        return was_left

    def _write_when_possible(self, what: str, write: Callable[[], T]) -> T:
        """Write to the run's folder as soon as that works, such as after a full disk."""
        reported = None
        while True:
            try:
                return write()
            except OSError as error:
                if self.asked_to and not self.starts:
                    raise SpeechmillError(f"{self.run_dir}: {what} cannot be written: {error.strerror}") from error
                if str(error) != reported:
                    reported = str(error)
                    self.log(f"{what} cannot be written, retrying: {error}")
                time.sleep(RETRY_SECONDS)

    def end(self, status: int, error: SpeechmillError | None, log_from: int) -> None:
        """Leave nothing of the run at work, record how it ended, and give the lock back."""
        succeeded = not error and status == 0 and self.child is not None and self.child.returncode == 0
        state: str = "failed"
        why: str | None = str(error or f"Snakemake ended with {status}: {self.run_dir / LOG}")
        if succeeded:
            state, why = "succeeded", None
        elif self.asked_to and not error:
            state, why = "cancelled", f"asked to {self.asked_to}"
        # A machine that shuts down ends no run: it continues once the user, or the API, starts it again.
        is_shutdown = not succeeded and self.asked_to is not None and not self.by_user
        if not is_shutdown:
            reported = None
            while not succeeded and (left := end_all(self.plan, self.queue)):
                if left != reported:
                    reported = left
                    self.log(f"before the run ends: {left}")
                time.sleep(LOOK_SECONDS)
            if self.result:
                quoted = log_from if state == "failed" and not error else None
                end = {"state": state, "why": why, "log_from": quoted, "time": utc_now()}
                self._write_when_possible(
                    f"the end of the run ({state})", lambda: write_json(self.run_dir / str(self.result), end)
                )
        self._over.set()
        self.follow()
        if not (is_shutdown and error):  # else something may be left
            self.lock.release()

    def _attend(self) -> None:
        """Send heartbeats, and look for requests to stop."""
        sent = time.monotonic()
        while not self._over.wait(LOOK_SECONDS):
            if time.monotonic() - sent > run_lock.HEARTBEAT_SECONDS:
                self.lock.heartbeat()
                sent = time.monotonic()
            with contextlib.suppress(SpeechmillError, OSError):
                self.look()
                self.follow()

    def look(self) -> None:
        """Obey a request to stop, and note once Snakemake works."""
        request = run_lock.read_stop(self.run_dir)
        if request and request != self._request:
            self._request = request
            self.log(f"{request.by} asked to {request.how} the run")
            self.stop(request.how)
        child = self.child
        if self.asked_to:
            self.lock.note(STOPPING[self.asked_to], self.reason)
            self._pass_on()
        elif child and self._seen != child.pid and child.poll() is None:
            holder = run_lock.read_owner(self.run_dir)
            if holder and holder.pid == child.pid:
                self._seen = child.pid
                self.lock.note(State.RUNNING, self.reason)

    def work(self, was_left: bool = False) -> int:
        """Start Snakemake as often as that makes progress; the exit status."""
        asked_to = lambda: self.asked_to or ("cancel" if self.cancels else None)  # noqa: E731
        take_over(self.plan, self.queue, asked_to, self._wait_for, was_left or self.resumes)
        if self.asked_to:
            return self.stopped()
        restarts = 0
        while True:
            before = self.progress()
            status = self.watch(self.plan.command())
            if self.asked_to:
                return self.stopped()
            if status == 0:
                return 0
            if status > 0 and not self.disk_was_full():
                return self.without_failed_batches(status)
            restarts = 1 if self.progress() > before else restarts + 1
            if restarts > self.plan.max_restarts:
                self.log(f"giving up after {self.plan.max_restarts} restarts without progress")
                return 1
            why = f"ended by signal {-status}" if status < 0 else "failed while the file system was full"
            self.reason = f"Snakemake {why}; starting it again (restart {restarts})"
            self.log(self.reason)
            self.lock.note(State.BETWEEN, self.reason)
            self.wait_for_space()
            if not self.settle():
                return self.stopped()
            unlock(self.plan)

    def _wait_for(self, what: str) -> None:
        self.log(what)
        self.lock.note(State.WAITING, what)

    def disk_was_full(self) -> bool:
        """Whether a job, or Snakemake itself, failed because the disk was full since Snakemake was started.

        On a full disk, the attempt log and Snakemake's output have gaps.
        """
        self.follow()
        return self._no_space_at >= self._output_from or any(
            line.get("failure") == Failure.NO_SPACE and line["time"] >= self.since
            for line in read_attempts(self.run_dir)
        )

    def progress(self) -> int:
        """Number of finished pieces of work."""
        return finished_pieces(self.run_dir)

    def watch(self, command: list[str]) -> int:
        """Start Snakemake and watch it until it ends; its exit status, negative for a signal."""
        if self.asked_to:
            return 130
        self.lock.note(State.PLANNING, self.reason)
        self.starts += 1
        self.queue = self.plan.queue(self.log)
        self.since = utc_now()
        self.follow()
        self._output_from = self._followed
        # Its own process group: Ctrl-C in this terminal reaches it through us alone, and with its children.
        self.child = subprocess.Popen(
            command,
            cwd=self.plan.directory,
            env=self.environment,
            stdout=self.log_file,  # and no pipe, which would break if this process is killed, and Snakemake with it
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._pass_on()  # what came in this moment
        quiet_since = time.monotonic()
        while True:
            try:
                self.child.wait(self.plan.poll_seconds)
                break
            except subprocess.TimeoutExpired:
                pass
            if self.is_working(self.child.pid):
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > self.plan.stall_seconds:
                self.log(
                    f"Snakemake lost track of jobs: for {self.plan.stall_seconds:.0f} s Slurm had no job of this run and "
                    "nothing ran here; ending it"
                )
                self._signal(signal.SIGKILL)
                self.child.wait()
                break
        if self.child.returncode < 0:  # end its processes, too: they must not write beside its successor
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
        return self.child.returncode

    def is_working(self, pid: int) -> bool:
        """Whether the run moves: jobs in the queue, or child processes of Snakemake."""
        return self.queue.has_work(drain=self.asked_to == "drain") or has_children(pid)

    def wait_for_space(self) -> None:
        """Wait while the results' file system has no space or no inodes."""
        logged = False
        while self.asked_to is None:
            free = os.statvfs(self.run_dir)
            inodes = free.f_favail if free.f_files else 1000
            if free.f_bavail * free.f_frsize >= SPACE and inodes >= 1000:
                return
            if not logged:
                self.log(f"the file system of {self.run_dir} is full: waiting for space")
                logged = True
            time.sleep(self.plan.poll_seconds)

    def without_failed_batches(self, status: int) -> int:
        """After jobs failed for good: a report, and if so configured a publication, of the other batches."""
        failed = self.failed_batches()
        total, unscored = unscored_batches(self.run_dir)
        if not failed or len(failed) == total or not unscored <= set(failed):
            return status  # another failure, which Snakemake's output explains
        names = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
        self.log(f"{len(failed)} of {total} batches failed: {names}; see {self.run_dir}/logs/batches/")
        publishing = self.plan.failed_batches == "publish"
        self.log("publishing the other batches" if publishing else "not publishing; reporting the other batches")
        targets = [] if publishing else ["report"]  # the rule
        setting = f"without_batches=[{', '.join(failed)}]"
        again = self.watch(self.plan.command([setting], targets))
        if self.asked_to:
            return self.stopped()
        self.log(f"fix the cause, then run: speechmill resume {self.plan.run_dir}")
        return again if publishing else status

    def failed_batches(self) -> list[str]:
        """Batches whose last attempt at a stage, or at fetching their file, failed in this start of Snakemake."""
        last = {}
        for line in read_attempts(self.run_dir):
            if line["time"] >= self.since:
                last[line["batch"], line["stage"], line.get("file")] = line["event"]
        failed = [work for work, event in last.items() if event == "failed"]
        files = {file for _, _, file in failed if file}
        table = self.run_dir / "manifest" / "batches.tsv"
        rows = read_batches(table) if files and table.exists() else []
        waiting = {row["batch"] for row in rows if row["fetched_as"] in files}
        done = {path.stem for path in (self.run_dir / "scores").glob("*.parquet")}
        # A batch that only could not be sent has not failed: it is sent when the run continues.
        return sorted({batch for batch, stage, _ in failed if batch and stage in MAKES_A_BATCH} | (waiting - done))

    def stop(self, how: str, by_user: bool = True) -> None:
        """Signal handler, and for requests: `drain` lets running jobs end, `cancel` ends them. A cancel stays one."""
        self.asked_to = "cancel" if self.asked_to == "cancel" else how
        self.by_user |= by_user
        self._pass_on()

    def _pass_on(self) -> None:
        """Ask the Snakemake at work to stop, once for each kind of request."""
        child, how = self.child, self.asked_to
        with self._passing:
            if not how or not child or child.poll() is not None or self._passed_on == (how, child.pid):
                return
            self._passed_on = (how, child.pid)
        if how == "drain":
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
        else:
            self._signal(signal.SIGINT)
            late = threading.Timer(CANCEL_SECONDS, self._signal, [signal.SIGKILL])
            late.daemon = True
            late.start()

    def stopped(self) -> int:
        """Wait until nothing of the run works any more; the exit status."""
        if self.starts:
            self.settle()
            unlock(self.plan)
        self.log(f"stopped ({self.asked_to}); continue with: speechmill resume {self.plan.run_dir}")
        return 0 if self.asked_to == "drain" else 130

    def settle(self) -> bool:
        """Wait until no job of the run is in the queue, cancel them if asked to; False if asked to stop meanwhile."""
        self.queue.settle(lambda: self.asked_to == "cancel")
        return self.asked_to is None

    def log(self, message: str) -> None:
        line = f"[speechmill {time.strftime('%H:%M:%S')}] {message}\n".encode()
        try:
            os.write(self.log_file, line)
        except OSError:  # a full disk
            self._show(line)

    def follow(self) -> None:
        """Show what is new in the log, and note where it says that the disk is full."""
        with self._following:
            while text := os.pread(self.log_file, 2**16, self._followed):
                text = text[: text.rfind(b"\n") + 1] or text  # whole lines
                if says_no_space(text.decode(errors="replace")):
                    self._no_space_at = self._followed
                self._followed += len(text)
                self._show(text)

    def _show(self, text: bytes) -> None:
        if not self.result:
            with contextlib.suppress(OSError):  # a closed terminal
                os.write(sys.stderr.fileno(), text)

    def _signal(self, number: int) -> None:
        if self.child and self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, number)
