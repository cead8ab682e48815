"""The workflow's own account of every attempt of every job: `{run}/logs/attempts.jsonl`, appended to, never rewritten.

One line per event: `time` (UTC), `start` (when this Snakemake started), `event`, `stage`, `batch` (null for jobs of the
whole run), `attempt`, on Slurm `slurm_job`, of a fetch its `file`. Events are

    began, ended        of Snakemake itself (stage `run`): versions and host; `outcome` succeeded | failed | stopped
    submitted           with what the job asked for (`asked`: threads, mem_mb, runtime, gpu)
    finished, failed    with what its log tells: node, device, when it began, what it used, clips and seconds of audio by
                        state (`resumed`: how many of them earlier attempts had done); of a failure why (`reason`,
                        `error_class`), the `log` with its last `lines`, and `given_up` where there is no further attempt

It is the record of a run: lines of a dead Snakemake stay true, and a line that was cut short is left out. No data base,
because results are on network file systems, where SQLite's locks do not hold.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import speechmill
from speechmill import bucket, joblog
from speechmill.events import JobEvent, JobTracker, Start
from speechmill.job import file_away
from speechmill.text import plain
from speechmill.times import utc_now

FILE = Path("logs") / "attempts.jsonl"
ASKED = ("mem_mb", "runtime", "gpu")
USED = ("seconds", "cpu_seconds", "peak_mb", "gpu_peak_mb")
TOLD = (*USED, "device", "clips", "audio_seconds", "bytes", "transfer_seconds")  # the last two of a fetch
LINES = 15  # of a log, quoted for a failure
SUMMED_UP = 3  # failures
KEPT_FAILURES = 5  # the last ones
TYPES: dict[str, Any] = {"time": str, "event": str, "stage": str, "start": str, "attempt": int}  # of every line
TYPES |= dict.fromkeys(("batch", "file", "slurm_job"), (str, type(None)))
NOT_OF_JOBS = {"event", "time", "lines"}  # though they stand in their lines
Key = tuple[Any, ...]
OF_SLURM = ("slurmstepd", "srun: error:")  # lines that say why a job ended; the daemon on the node knows more


class AttemptLog(logging.Handler):
    """Listens to Snakemake's logger. Whatever goes wrong here costs lines of this log, never the run."""

    def __init__(self, start: Start):
        super().__init__(logging.INFO)
        self.start = start
        self.path = start.run_dir / FILE
        self.tracker = JobTracker(start)
        self.logs: dict[int, Path] = {}
        self.asked: dict[int, dict[str, Any]] = {}
        self.described: dict[int, str] = {}  # when its attempt began, here
        self.said: set[str] = set()
        self._carefully(self._begin)

    def emit(self, record: logging.LogRecord) -> None:
        def note() -> None:
            for event in self.tracker.read(record):
                self._note(event)

        self._carefully(note)

    def end(self) -> None:
        """Snakemake ends; what failed for good is summed up on the terminal."""
        self._carefully(self._end)

    def _begin(self) -> None:
        for line in ended_meanwhile(self.start.run_dir):
            self._write(line)
        versions = {"speechmill": speechmill.__version__, "snakemake": metadata.version("snakemake")}
        about = {"goal": self.start.goal, "withholds": self.start.withholds, "versions": versions}
        self._write(self._line("began", "run") | {"host": os.uname().nodename, "process": os.getpid()} | about)

    def _end(self) -> None:
        self._write(self._line("ended", "run") | {"outcome": self.start.outcome or "stopped"})
        failed = [line for line in given_up(read_attempts(self.start.run_dir)) if line["start"] == self.start.time]
        if failed and self.start.outcome == "failed":
            say(f"speechmill: {len(failed)} jobs failed for good")
            for line in failed[:SUMMED_UP]:
                say(f"- {failure_text(line)}")
            if len(failed) > SUMMED_UP:
                say(f"- and {len(failed) - SUMMED_UP} more: speechmill status {self.start.run_dir}")

    def _note(self, event: JobEvent) -> None:
        found: Any = event.record
        about: dict[str, Any] = {}
        if event.kind == "described":
            if found.log:
                self.logs[event.job] = Path(str(found.log[0]))
            self.described[event.job] = utc_now()
            self.asked[event.job] = {"threads": getattr(found, "threads", None)} | _asked(found.resources)
            return
        if event.kind == "submitted":
            about = {"asked": self.asked.get(event.job)}
        elif event.job in self.logs:
            log = bucket.bring_log(self.logs[event.job], self.start.run_dir)
            about = how_it_went(log, event, self.described[event.job])
            if log != self.logs[event.job] and log.exists():
                file_away(log, event.kind == "failed")
        line = self._line(event.kind, event.stage, event) | about
        if event.given_up:
            line["given_up"] = True
        self._write(line)
        if event.kind == "failed":
            say(f"speechmill: {failure_text(line, quote=False)}")

    def _line(self, event: str, stage: str, job: JobEvent | None = None) -> dict[str, Any]:
        line: dict[str, Any] = {
            "time": utc_now(),
            "start": self.start.time,
            "event": event,
            "stage": stage,
            "batch": job.wildcards.get("batch") if job else None,
            "attempt": job.attempt if job else 1,
            "slurm_job": job.slurm_job if job else None,
        }
        return line | ({"file": job.wildcards["file"]} if job and "file" in job.wildcards else {})

    def _write(self, line: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # After a line that a full disk or a crash cut short, this one would be lost with it.
            size = os.fstat(descriptor).st_size
            torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (b"\n" if torn else b"") + json.dumps(line, default=str).encode() + b"\n")
        finally:
            os.close(descriptor)

    def _carefully(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            words = f"speechmill: the account of the run has gaps: {self.path}: {type(error).__name__}: {error}"
            if words not in self.said:
                self.said.add(words)
                say(words)


def say(text: str) -> None:
    """To the terminal, where there still is one."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def read_attempts(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Events in the order they happened; a line that is damaged, or cut short by a crash, is left out."""
    return (line for _, line in Tail(run_dir / FILE).read()[1])


class Tail:
    """Reads an account again and again, each time only what is new. Not for several threads at once."""

    def __init__(self, path: Path):
        self.path = path
        self._identity: tuple[int, int] | None = None
        self._place, self._last = 0, b""  # after the last line, and that line

    def read(self) -> tuple[bool, list[tuple[int, dict[str, Any]]]]:
        """The whole lines since the last call, each with the place after it.

        And whether they begin anew, because the file is another one than before, or was cut: what was read of it
        before counts no more.
        """
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            was_there = self._place > 0
            self._place, self._last = 0, b""
            return was_there, []
        with file:
            found = os.fstat(file.fileno())
            identity = (found.st_dev, found.st_ino)
            before = os.pread(file.fileno(), len(self._last), self._place - len(self._last))
            is_new = self._place > 0 and (identity != self._identity or before != self._last)
            place, last = (0, b"") if is_new else (self._place, self._last)
            file.seek(place)
            lines = []
            for text in file:
                if not text.endswith(b"\n"):  # it is being written
                    break
                place, last = place + len(text), text
                if line := _line(text):
                    lines.append((place, line))
        self._identity, self._place, self._last = identity, place, last
        return is_new, lines


def _line(text: bytes) -> dict[str, Any] | None:
    """A line of an account; None if it is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    line = {"start": "", "batch": None, "attempt": 1, "slurm_job": None} | line
    return line if all(isinstance(line.get(name), kind) for name, kind in TYPES.items()) else None


class Account:
    """What the lines of an account add up to. Jobs are replaced, not changed: a list of them stays as it was given."""

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()):
        self.starts: list[Mapping[str, Any]] = []  # of Snakemake
        self.of_run: Mapping[str, Any] | None = None  # the last line about Snakemake itself
        self.failures: deque[Mapping[str, Any]] = deque(maxlen=KEPT_FAILURES)
        self.time: str | None = None  # of the last line
        self.is_on_slurm = False
        self._jobs: list[dict[str, Any]] = []
        self._open: dict[Key, int] = {}  # jobs whose end may come
        self._submitted: set[int] = set()  # jobs whose end is not known
        self._given_up: dict[Key, Mapping[str, Any]] = {}
        self._starts: set[str] = set()
        self._last_start: str | None = None  # by its first line: a later one may be about an earlier start
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        if line["start"] not in self._starts:
            self._starts.add(line["start"])
            self._last_start = line["start"]
        self.time = line["time"]
        self.is_on_slurm = self.is_on_slurm or bool(line["slurm_job"])
        if line["event"] == "began":
            self.starts.append(line)
        if line["event"] == "failed":
            self.failures.append(line)
        if line["stage"] == "run":
            self.of_run = line
            return
        work = (line["stage"], line["batch"], line.get("file"))
        self._given_up.pop(work, None)
        if line.get("given_up"):
            self._given_up[work] = line
        key = (line["start"], *work, line["attempt"])
        if line["event"] == "submitted" or key not in self._open:
            self._open[key] = len(self._jobs)
            self._submitted.add(len(self._jobs))
            about = {name: line.get(name) for name in ("start", "stage", "batch", "file", "attempt")}
            self._jobs.append(about | {"status": "submitted", "submitted": line["time"], "ended": None})
        number = self._open[key]
        job = self._jobs[number]
        job = job | {name: value for name, value in line.items() if name not in job and name not in NOT_OF_JOBS}
        job["slurm_job"] = line["slurm_job"] or job.get("slurm_job")
        if line["event"] in ("finished", "failed"):
            job |= {"status": line["event"], "ended": line["time"]}
            del self._open[key]  # whatever comes next is another one, though the line of its submission may be lost
            self._submitted.discard(number)
        self._jobs[number] = job

    def jobs(self) -> list[dict[str, Any]]:
        """Every attempt of every job, in the order of their submission.

        `status` is submitted, finished, failed, or lost: Snakemake died before it saw the end. `seconds` are those of
        the job itself; from `submitted` to `began` it waited, mostly in Slurm's queue.
        """
        found = self._jobs.copy()
        for number in self._submitted:
            if found[number]["start"] != self._last_start:
                found[number] = found[number] | {"status": "lost"}
        return found

    def given_up(self) -> list[Mapping[str, Any]]:
        """The last failure of every piece of work that has failed for good, and has not been finished since."""
        return list(self._given_up.values())


def jobs(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`Account.jobs` of these lines."""
    return Account(lines).jobs()


def given_up(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """`Account.given_up` of these lines."""
    return Account(lines).given_up()


def ended_meanwhile(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Lines about jobs that ended well after their Snakemake had died, as their logs tell; to be written by the next."""
    for job in jobs(read_attempts(run_dir)):
        if job["status"] != "submitted":  # those of the last start
            continue
        work = job["batch"] or job["file"]
        log = run_dir / "logs" / (f"{job['stage']}/{work}.log" if work else f"{job['stage']}.log")
        lines = attempt_of(log, job["stage"], job["slurm_job"], job["submitted"])
        end = joblog.of_attempt(lines, "end")
        if end.get("status") == "done":
            names = ("start", "stage", "batch", "attempt", "slurm_job", *(("file",) if job["file"] else ()))
            line = {"time": end["time"], "event": "finished"} | {name: job[name] for name in names}
            yield line | _about(lines)


def how_it_went(log: Path, event: JobEvent, since: str) -> dict[str, Any]:
    """What the log of a job tells of this attempt; of one that failed also why, with the lines that say it."""
    try:
        lines = attempt_of(log, event.stage, event.slurm_job, since)
        return _about(lines) | (_why(log, lines, event) if event.kind == "failed" else {})
    except OSError as error:  # the event itself must not be lost with it
        return {"reason": f"its log cannot be read: {error}", "log": str(log)} if event.kind == "failed" else {}


def attempt_of(log: Path, stage: str, slurm_job: str | None, since: str) -> list[dict[str, Any]]:
    """The lines of the attempt that was submitted at `since`; none where its log does not have it.

    One that never began, or whose log is not to be seen from here yet, is not told by its predecessor's.
    """
    lines = joblog.last_attempt(log, stage)
    begin = joblog.of_attempt(lines, "begin")
    is_another = begin.get("slurm_job") != slurm_job if slurm_job else str(begin.get("time")) < since
    return [] if is_another else lines


def _about(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    lines = list(lines)
    begin, end = joblog.of_attempt(lines, "begin"), joblog.of_attempt(lines, "end")
    about = {"node": begin.get("node"), "gpus": begin.get("gpus"), "began": begin.get("time")}
    about |= {name: end[name] for name in TOLD if name in end}
    resumed = sum(line["resumed"] for line in lines if "resumed" in line)
    return about | ({"resumed": resumed} if resumed else {})


def _why(log: Path, lines: list[dict[str, Any]], event: JobEvent) -> dict[str, Any]:
    told: Any = event.record
    slurm_log = next((Path(str(each)) for each in reversed(told.log or ()) if "slurm_logs" in str(each)), None)
    of_slurm = [plain(line["text"]) for line in (joblog.read(slurm_log, 20_000) if slurm_log else [])]
    errors = [line for line in lines if line.get("level") == "error"]
    end = joblog.of_attempt(lines, "end")
    if lines and not end:  # killed: nobody else files this log away, and the next attempt removes it
        with suppress(OSError):
            file_away(log, failed=True)
    source: Path | None = joblog.story_of(log) or log
    if errors:
        reason = plain(errors[-1]["text"])
    elif end.get("status") == "done":
        reason = "it ended well, but Snakemake does not see all of its files: see its output"
    elif said := next((line for start in OF_SLURM for line in of_slurm if line.startswith(start)), None):
        reason, source = said, slurm_log  # the first: the others follow from it
    elif lines:
        reason = "killed: it ended without a word of its own"
    else:
        reason, source = "it never began", slurm_log
    quoted = [joblog.human(line) for line in lines if line.get("event") != "end"] or of_slurm
    return {
        "reason": reason,
        "error_class": errors[-1].get("error_class") if errors else None,
        "log": str(source) if source else None,
        "slurm_log": str(slurm_log) if slurm_log else None,
        "lines": [plain(part, 300) for text in quoted[-LINES:] for part in text.splitlines()][-LINES:],
    }


def failure_text(line: Mapping[str, Any], quote: bool = True) -> str:
    """A failed attempt for a person: what, where, why, the log and its last lines."""
    work = " ".join(str(part) for part in (line["stage"], line.get("batch") or line.get("file")) if part)
    where = [f"attempt {line['attempt']}" + (", the last" if line.get("given_up") else "")]
    where += [f"Slurm job {line['slurm_job']}"] if line.get("slurm_job") else []
    where += [f"node {line['node']}"] if line.get("node") else []
    text = f"{work} failed ({', '.join(where)}): {line.get('reason') or 'why is not known'}"
    if not quote:
        return text + (f"; {line['log']}" if line.get("log") else "")
    quoted = "".join(f"\n    {each}" for each in line.get("lines") or ())
    return text + (f"\n  {line['log']}:" if line.get("log") else "") + quoted


def _asked(resources: Any) -> dict[str, Any]:
    """Of a job's resources, what its node must give; whatever is not known yet is left out."""
    names = list(getattr(resources, "_names", {}) or {})
    values = {name: getattr(resources, name, None) for name in ASKED if name in names}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}
