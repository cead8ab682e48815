"""Keeps one Snakemake at work on a run: watches it, mends what the Slurm plugin cannot, and starts it again.

What it looks at: the process, squeue (by the run's job names) and the files of the run. What it does:

- a preempted job, or one whose node failed, that Slurm does not put back into the queue is put back;
- a job that Slurm holds after its launch failed is released;
- Snakemake waiting while Slurm has no job of the run, and nothing runs here, has forgotten jobs: killed, started again;
- a Snakemake that was killed is started again, once no job of it can write any more;
- where the file system was full, it waits for space and starts Snakemake again;
- batches that failed for good are left out, so that there is a report of all others that names them;
- people are told of what they should know (monitor/watch.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speechmill import owner, slurm
from speechmill.attempts import read_attempts
from speechmill.errors import NO_SPACE, SpeechmillError
from speechmill.manifest import read_batches
from speechmill.monitor.watch import watch_run
from speechmill.times import utc_now

LOG = Path("logs") / "run.log"
DRAIN = signal.SIGUSR1  # `speechmill drain` to `speechmill run`
MAKES_A_BATCH = frozenset({"enhance", "score", "rank"})
SPACE = 2**20  # bytes: less is a full disk
NOT_TAKEN_BACK = frozenset({"PREEMPTED", "NODE_FAIL"})  # the plugin waits for ever for Slurm to requeue these


@dataclass
class Plan:
    """How a run is started: everything a person chose, so that it can be started again the same way."""

    program: list[str]  # snakemake
    options: list[str]  # all but --config and targets
    config: list[str]  # key=value
    directory: str
    run_dir: str
    prefix: str
    on_slurm: bool
    failed_batches: str = "withhold"  # or publish
    poll_seconds: float = 15
    stall_seconds: float = 600  # longer than the plugin's longest pause (180 s) and the latency wait
    max_restarts: int = 5

    def command(self, extra_config: Sequence[str] = (), arguments: Sequence[str] = ()) -> list[str]:
        """`arguments` (targets, --unlock) come first: an option before them would take them for its own."""
        return [*self.program, *arguments, *self.options, "--config", *self.config, *extra_config]


@dataclass
class Supervisor:
    """One `speechmill run`. Its output goes to the terminal, while there is one, and to logs/run.log."""

    plan: Plan
    asked_to: str | None = None  # drain | cancel
    by_person: bool = True  # and not by SIGTERM, which is also what a machine says that is shut down
    child: subprocess.Popen[bytes] | None = None
    since: str = ""  # start of the child, UTC
    disk_was_full: bool = False  # so the child has said
    seen: set[str] = field(default_factory=set)  # Slurm jobs that this Snakemake had in the queue
    twice: set[str] = field(default_factory=set)  # to be mended if the next look shows them the same

    def __post_init__(self) -> None:
        self.run_dir = Path(self.plan.run_dir)
        (self.run_dir / LOG).parent.mkdir(parents=True, exist_ok=True)
        self.log = os.open(self.run_dir / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def run(self) -> int:
        """Work until all is done, nothing more can be done, or somebody asked to stop; returns the exit status."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop("drain", by_person=False))
        signal.signal(DRAIN, lambda *_: self.stop("drain"))
        signal.signal(signal.SIGINT, lambda *_: self.stop("cancel"))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal ends nothing
        from speechmill.runs import plan_config

        alerts = watch_run(self.run_dir, lambda: plan_config(self.plan), self.say, quotes=self.run_dir / LOG)
        status = 1
        with contextlib.suppress(OSError):  # a full disk is waited for later
            owner.sign(self.run_dir / owner.SUPERVISED)
        try:
            status = self.work()
            return status
        finally:
            with contextlib.suppress(SpeechmillError):
                owner.release(self.run_dir, owner.SUPERVISED)
            if alerts:
                alerts.stop("stopped" if self.asked_to else "failed" if status else "finished")

    def work(self) -> int:
        """Start Snakemake, as often as it helps; the exit status."""
        restarts = 0
        while True:
            before = self.progress()
            status = self.watch(self.plan.command())
            if self.asked_to:
                return self.stopped()
            if status == 0:
                return 0
            if status > 0 and not self.disk_was_full:
                return self.without_failed_batches(status)
            restarts = 1 if self.progress() > before else restarts + 1
            if restarts > self.plan.max_restarts:
                self.say(f"given up after {self.plan.max_restarts} restarts that brought nothing forward")
                return 1
            why = f"ended by signal {-status}" if status < 0 else "failed while the file system was full"
            self.say(f"Snakemake {why}; it is started again (restart {restarts})")
            self.wait_for_space()
            if not self.settle(cancel=False):
                return self.stopped()
            self.unlock()

    def progress(self) -> int:
        """Number of finished pieces of work."""
        return finished_pieces(self.run_dir)

    def watch(self, command: list[str]) -> int:
        """Start Snakemake and look after it until it ends; its status, negative for a signal."""
        environment = os.environ | {owner.SUPERVISOR: str(os.getpid())}
        # Its own process group: Ctrl-C in this terminal reaches it through us alone, and with its children.
        self.child = subprocess.Popen(
            command,
            cwd=self.plan.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        reader = threading.Thread(target=self._copy_output, args=(self.child,), daemon=True)
        reader.start()
        self.seen.clear()
        self.since = utc_now()
        self.disk_was_full = False
        quiet_since = time.monotonic()
        while True:
            try:
                self.child.wait(self.plan.poll_seconds)
                break
            except subprocess.TimeoutExpired:
                pass
            if self.at_work(self.child.pid):
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > self.plan.stall_seconds:
                self.say(
                    f"Snakemake waits, but for {self.plan.stall_seconds:.0f} s Slurm had no job of this run and nothing "
                    "ran here: it has lost track of jobs"
                )
                self._signal(signal.SIGKILL)
                self.child.wait()
                break
        if self.child.returncode < 0:  # what it started here goes with it, and writes nothing beside its successor
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
        reader.join(5)
        return self.child.returncode

    def at_work(self, pid: int) -> bool:
        """Whether the run moves: jobs in Slurm's queue or processes of Snakemake. Mends jobs on the way."""
        if not self.plan.on_slurm:
            return True
        try:
            found = slurm.jobs(self.plan.prefix)
            self.mend(found)
            alive = [job for job in found if job.state in slurm.WAITING | slurm.RUNNING]
            self.seen.update(job.id for job in alive)
            if self.asked_to == "drain":
                slurm.cancel([job for job in alive if job.state in slurm.WAITING])
        except slurm.SlurmError as error:
            self.say(f"{error}; asked again in {self.plan.poll_seconds:.0f} s")
            return True  # not known
        return bool(alive) or has_children(pid)

    def mend(self, found: Sequence[slurm.Job]) -> None:
        """Put back into the queue what Slurm left out of it, once it was so for two looks."""
        wrong = {}
        for job in found:
            if job.state in NOT_TAKEN_BACK and job.id in self.seen:
                wrong[job.id] = (job, "requeue", f"{job.state} on {job.node}")
            elif job.state == "PENDING" and "requeued held" in job.reason.replace("_", " "):
                wrong[job.id] = (job, "release", job.reason)
        for job, action, why in (wrong[number] for number in sorted(self.twice & wrong.keys())):
            slurm.call("scontrol", action, job.id)
            self.say(f"{job.work} (Slurm job {job.id}) was left alone: {why}; {action}d")
        self.twice = set(wrong) - self.twice

    def wait_for_space(self) -> None:
        """Wait while the results' file system has no space or no inodes."""
        said = False
        while self.asked_to is None:
            free = os.statvfs(self.run_dir)
            inodes = free.f_favail if free.f_files else 1000
            if free.f_bavail * free.f_frsize >= SPACE and inodes >= 1000:
                return
            if not said:
                self.say(f"the file system of {self.run_dir} is full: waiting for space")
                said = True
            time.sleep(self.plan.poll_seconds)

    def without_failed_batches(self, status: int) -> int:
        """After jobs failed for good: a report, and if so configured a publication, of the other batches."""
        failed = self.failed_batches()
        total, unscored = unscored_batches(self.run_dir)
        if not failed or len(failed) == total or not unscored <= set(failed):
            return status  # it failed of something else, and Snakemake said of what
        names = ", ".join(failed[:5]) + (", ..." if len(failed) > 5 else "")
        self.say(f"{len(failed)} of {total} batches failed: {names}; why: {self.run_dir}/logs/batches/")
        publishing = self.plan.failed_batches == "publish"
        self.say("publishing" if publishing else "nothing is published; reporting", "the other batches")
        targets = [] if publishing else ["report"]  # the rule
        setting = f"without_batches=[{', '.join(failed)}]"
        again = self.watch(self.plan.command([setting], targets))
        if self.asked_to:
            return self.stopped()
        self.say(f"mend what they fail of, then: speechmill resume {self.plan.run_dir}")
        return again if publishing else status

    def failed_batches(self) -> list[str]:
        """Batches of which a stage, or the download of their file, failed in its last attempt, since Snakemake was started."""
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
        # A batch that only could not be sent is no failed batch: it is sent when the run goes on.
        return sorted({batch for batch, stage, _ in failed if batch and stage in MAKES_A_BATCH} | (waiting - done))

    def stop(self, how: str, by_person: bool = True) -> None:
        """Signal handler: `drain` lets running jobs end, `cancel` ends them; a second signal always cancels."""
        self.asked_to, self.by_person = "cancel" if self.asked_to else how, by_person
        if self.child and self.child.poll() is None:
            if self.asked_to == "drain":
                os.kill(self.child.pid, signal.SIGTERM)
            else:
                self._signal(signal.SIGINT)
                late = threading.Timer(60, self._signal, [signal.SIGKILL])
                late.daemon = True
                late.start()

    def stopped(self) -> int:
        """Make sure that nothing of the run is left at work."""
        self.settle(cancel=self.asked_to == "cancel")
        self.unlock()
        self.say(f"stopped ({self.asked_to}); go on with speechmill resume {self.plan.run_dir}")
        return 0 if self.asked_to == "drain" else 130

    def settle(self, cancel: bool) -> bool:
        """Wait until no Slurm job of the run is alive; False if asked to cancel meanwhile."""
        settle(self.plan, cancel or self.asked_to == "cancel", self.say, lambda: self.asked_to == "cancel")
        return self.asked_to is None

    def unlock(self) -> None:
        unlock(self.plan)

    def say(self, *words: str) -> None:
        self._write((f"[speechmill {time.strftime('%H:%M:%S')}] " + " ".join(words) + "\n").encode())

    def _copy_output(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout
        for line in child.stdout:
            self._write(line)
            self.disk_was_full |= any(words.encode() in line for words in NO_SPACE)

    def _write(self, line: bytes) -> None:
        for descriptor in (self.log, sys.stderr.fileno()):
            with contextlib.suppress(OSError):  # a full disk, or a closed terminal
                os.write(descriptor, line)

    def _signal(self, number: int) -> None:
        if self.child and self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, number)


def settle(plan: Plan, cancel: bool, say: Callable[[str], None], hurry: Callable[[], bool] = lambda: False) -> None:
    """Wait until no Slurm job of the run is alive: waiting ones are cancelled, running ones too if `cancel` or `hurry`.

    A job that ends by itself leaves complete results, and Snakemake's record of them: they need not be made again.
    """
    said = 0.0
    while plan.on_slurm:
        try:
            alive = [job for job in slurm.jobs(plan.prefix) if job.state in slurm.WAITING | slurm.RUNNING]
            if not alive:
                return
            if time.monotonic() - said > 300:
                said = time.monotonic()
                say(
                    f"{len(alive)} Slurm jobs of the earlier start are alive: " + ("cancelled" if cancel else "waiting")
                )
            slurm.cancel([job for job in alive if cancel or hurry() or job.state in slurm.WAITING])
        except slurm.SlurmError as error:
            say(f"{error}; asked again in {plan.poll_seconds:.0f} s")
        time.sleep(min(plan.poll_seconds, 2) if cancel else plan.poll_seconds)


def unlock(plan: Plan) -> None:
    """Remove the lock that a dead Snakemake left.

    Raises:
        SpeechmillError: its owner is alive.
    """
    holder = owner.read_owner(Path(plan.run_dir))
    if holder and holder.is_alive:
        raise SpeechmillError(f"{plan.run_dir} is being worked on by {holder}; it is not unlocked")
    done = subprocess.run(
        plan.command(arguments=["--unlock"]), cwd=plan.directory, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SpeechmillError(f"snakemake --unlock failed: {done.stderr.strip()[-1000:]}")
    (Path(plan.run_dir) / owner.FILE).unlink(missing_ok=True)


def finished_pieces(run_dir: Path) -> int:
    """Number of files that batches leave: it grows as a run comes forward."""
    return sum(len(list((run_dir / stage).glob("*.parquet"))) for stage in ("ledger", "scores", "ranking"))


def unscored_batches(run_dir: Path) -> tuple[int, set[str]]:
    """Number of batches in the manifest, and those of them that have no scores; (0, none) without a manifest."""
    table = run_dir / "manifest" / "batches.tsv"
    if not table.exists():
        return 0, set()
    names = {row["batch"] for row in read_batches(table)}
    return len(names), names - {path.stem for path in (run_dir / "scores").glob("*.parquet")}


def has_children(pid: int) -> bool:
    """Whether a process has child processes."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            if children.read_text().split():
                return True
        except OSError:
            continue
    return False
