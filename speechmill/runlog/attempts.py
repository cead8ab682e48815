"""The attempt log of a run: `{run}/logs/attempts.jsonl`. Lines are appended and never rewritten.

Each event is one line. It has `time` (UTC), `start` (when this Snakemake started), `event`, `stage`, `batch` (null for
jobs of the whole run) and `attempt`; on Slurm also `slurm_job`, and for a fetch job also `file`. The events are:

    began, ended        Snakemake itself (stage `run`): versions and host; `outcome` is succeeded | failed | stopped
    submitted           the job's requested resources (`asked`: threads, mem_mb, runtime, gpu)
    finished, failed    values from the job's log: node, device, begin, resource usage, clips and seconds of audio by
                        state (`resumed`: clips that earlier attempts had finished). A failure adds its code (`failure`,
                        one of errors.Failure), the `reason`, the exception's class (`error_class`), the `log` with its
                        last `lines`, and `given_up` if no attempt is left

Lines of a Snakemake that was killed stay valid. A truncated line is skipped. The log is not a data base, because runs
are on network file systems, where SQLite's locks are not reliable.
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
from speechmill.errors import Failure
from speechmill.runlog import joblog
from speechmill.runlog.failures import failure_of_output, slurm_reason
from speechmill.runlog.job_context import file_away
from speechmill.runlog.snakemake_events import JobEvent, JobTracker, Start
from speechmill.storage import json_lines
from speechmill.storage.run_folder import run_folder
from speechmill.utils.text import plain
from speechmill.utils.times import utc_now

FILE = Path("logs") / "attempts.jsonl"
REQUESTED = ("mem_mb", "runtime", "gpu")
USED = ("seconds", "cpu_seconds", "peak_mb", "gpu_peak_mb")
REPORTED = (*USED, "device", "clips", "audio_seconds", "bytes", "transfer_seconds")  # the last two of a fetch
LINES = 15  # quoted from the log of a failed job
LISTED_FAILURES = 3  # failures
KEPT_FAILURES = 5  # the most recent
TYPES: dict[str, Any] = {"time": str, "event": str, "stage": str, "start": str, "attempt": int}  # fields of every line
TYPES |= dict.fromkeys(("batch", "file", "slurm_job"), (str, type(None)))
NOT_IN_JOBS = {"event", "time", "lines"}  # fields that are in a line, but not in a job
Key = tuple[Any, ...]


class AttemptLog(logging.Handler):
    """A handler of Snakemake's logger that writes the attempt log.

    Its own errors lose lines, but never stop the run.
    """

    def __init__(self, start: Start):
        super().__init__(logging.INFO)
        self.start = start
        self.path = start.run_dir / FILE
        self.tracker = JobTracker(start)
        self.logs: dict[int, Path] = {}
        self.asked: dict[int, dict[str, Any]] = {}
        self.described: dict[int, str] = {}  # job -> time on this machine when its attempt was described
        self.printed: set[str] = set()
        self._best_effort(self._begin)

    def emit(self, record: logging.LogRecord) -> None:
        def record_events() -> None:
            for event in self.tracker.read(record):
                self._record(event)

        self._best_effort(record_events)

    def end(self) -> None:
        """Log the end of Snakemake, and print the jobs that failed for good."""
        self._best_effort(self._end)

    def _begin(self) -> None:
        for line in unrecorded_successes(self.start.run_dir):
            self._write(line)
        versions = {"speechmill": speechmill.__version__, "snakemake": metadata.version("snakemake")}
        about = {"goal": self.start.goal, "withholds": self.start.withholds, "versions": versions}
        self._write(self._line("began", "run") | {"host": os.uname().nodename, "process": os.getpid()} | about)

    def _end(self) -> None:
        self._write(self._line("ended", "run") | {"outcome": self.start.outcome or "stopped"})
        failed = [line for line in given_up(read_attempts(self.start.run_dir)) if line["start"] == self.start.time]
        if failed and self.start.outcome == "failed":
            print_to_stderr(f"speechmill: {len(failed)} jobs failed for good")
            for line in failed[:LISTED_FAILURES]:
                print_to_stderr(f"- {failure_text(line)}")
            if len(failed) > LISTED_FAILURES:
                print_to_stderr(f"- and {len(failed) - LISTED_FAILURES} more: speechmill status {self.start.run_dir}")

    def _record(self, event: JobEvent) -> None:
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
            log = run_folder().log_of(self.logs[event.job], self.start.run_dir)
            about = attempt_result(log, event, self.described[event.job])
            if log != self.logs[event.job] and log.exists():
                file_away(log, event.kind == "failed")
        line = self._line(event.kind, event.stage, event) | about
        if event.given_up:
            line["given_up"] = True
        self._write(line)
        if event.kind == "failed":
            print_to_stderr(f"speechmill: {failure_text(line, quote=False)}")

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
        json_lines.append(self.path, json.dumps(line, default=str))

    def _best_effort(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            words = f"speechmill: the attempt log is incomplete: {self.path}: {type(error).__name__}: {error}"
            if words not in self.printed:
                self.printed.add(words)
                print_to_stderr(words)


def print_to_stderr(text: str) -> None:
    """Print a line to stderr; ignore a closed terminal."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def read_attempts(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a run in the order of the file. Damaged or truncated lines are skipped."""
    return (line for _, line in Tail(run_dir / FILE).read()[1])


class Tail:
    """Reads an attempt log repeatedly, each time only the new lines. Not thread-safe."""

    def __init__(self, path: Path):
        self.path = path
        self._identity: tuple[int, int] | None = None
        self._place, self._last = 0, b""  # after the last line, and that line

    def read(self) -> tuple[bool, list[tuple[int, dict[str, Any]]]]:
        """Return the complete lines since the last call, each with the byte offset after it.

        The first value is True if the file was replaced or truncated: discard what you read before.
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
                if not text.endswith(b"\n"):  # still being written
                    break
                place, last = place + len(text), text
                if line := _line(text):
                    lines.append((place, line))
        self._identity, self._place, self._last = identity, place, last
        return is_new, lines


def _line(text: bytes) -> dict[str, Any] | None:
    """Parse a line of an attempt log; None if it is not valid."""
    line = json_lines.parse(text)
    if line is None:
        return None
    line = {"start": "", "batch": None, "attempt": 1, "slurm_job": None} | line
    return line if all(isinstance(line.get(name), kind) for name, kind in TYPES.items()) else None


class AttemptSummary:
    """The state of all jobs, from the lines of an attempt log.

    Jobs are replaced and never changed, so returned lists stay valid.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()):
        self.starts: list[Mapping[str, Any]] = []  # `began` lines, one per start of Snakemake
        self.of_run: Mapping[str, Any] | None = None  # the last line about Snakemake itself
        self.failures: deque[Mapping[str, Any]] = deque(maxlen=KEPT_FAILURES)
        self.time: str | None = None  # time of the last line
        self.is_on_slurm = False
        self._jobs: list[dict[str, Any]] = []
        self._open: dict[Key, int] = {}  # key -> index of a job that has not ended
        self._submitted: set[int] = set()  # indices of jobs without an end
        self._given_up: dict[Key, Mapping[str, Any]] = {}
        self._starts: set[str] = set()
        self._last_start: str | None = None  # the start that appeared last; later lines may belong to earlier starts
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
        job = job | {name: value for name, value in line.items() if name not in job and name not in NOT_IN_JOBS}
        job["slurm_job"] = line["slurm_job"] or job.get("slurm_job")
        if line["event"] in ("finished", "failed"):
            job |= {"status": line["event"], "ended": line["time"]}
            del self._open[key]  # the next line is another job, even if its `submitted` line is missing
            self._submitted.discard(number)
        self._jobs[number] = job

    def jobs(self) -> list[dict[str, Any]]:
        """Return every attempt of every job, in the order of submission.

        `status` is submitted, finished, failed or lost (Snakemake was killed before the job ended). `seconds` is the
        job's own run time. From `submitted` to `began` it waited, mostly in Slurm's queue.
        """
        found = self._jobs.copy()
        for number in self._submitted:
            if found[number]["start"] != self._last_start:
                found[number] = found[number] | {"status": "lost"}
        return found

    def given_up(self) -> list[Mapping[str, Any]]:
        """Return the last failure of each job that failed for good and has not finished since."""
        return list(self._given_up.values())


def jobs(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`AttemptSummary.jobs` of these lines."""
    return AttemptSummary(lines).jobs()


def given_up(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """`AttemptSummary.given_up` of these lines."""
    return AttemptSummary(lines).given_up()


def unrecorded_successes(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield lines for jobs that succeeded after their Snakemake was killed, from their logs.

    The next start writes them.
    """
    for job in jobs(read_attempts(run_dir)):
        if job["status"] != "submitted":  # `submitted` jobs belong to the last start
            continue
        work = job["batch"] or job["file"]
        log = run_dir / "logs" / (f"{job['stage']}/{work}.log" if work else f"{job['stage']}.log")
        lines = lines_of_attempt(log, job["stage"], job["slurm_job"], job["submitted"])
        end = joblog.of_attempt(lines, "end")
        if end.get("status") == "done":
            names = ("start", "stage", "batch", "attempt", "slurm_job", *(("file",) if job["file"] else ()))
            line = {"time": end["time"], "event": "finished"} | {name: job[name] for name in names}
            yield line | _about(lines)


def attempt_result(log: Path, event: JobEvent, since: str) -> dict[str, Any]:
    """Return what a job's log has about this attempt; for a failure also the reason and the last lines."""
    try:
        lines = lines_of_attempt(log, event.stage, event.slurm_job, since)
        return _about(lines) | (_why(log, lines, event) if event.kind == "failed" else {})
    except OSError as error:  # the event itself is logged in any case
        if event.kind != "failed":
            return {}
        return {"reason": f"its log cannot be read: {error}", "failure": Failure.UNKNOWN, "log": str(log)}


def lines_of_attempt(log: Path, stage: str, slurm_job: str | None, since: str) -> list[dict[str, Any]]:
    """Return the log lines of the attempt that was submitted at `since`; empty if the log does not have it.

    The log may still hold the previous attempt, if this one never began or a network file system lags behind.
    """
    lines = joblog.last_attempt(log, stage)
    begin = joblog.of_attempt(lines, "begin")
    is_another = begin.get("slurm_job") != slurm_job if slurm_job else str(begin.get("time")) < since
    return [] if is_another else lines


def _about(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    lines = list(lines)
    begin, end = joblog.of_attempt(lines, "begin"), joblog.of_attempt(lines, "end")
    about = {"node": begin.get("node"), "gpus": begin.get("gpus"), "began": begin.get("time")}
    about |= {name: end[name] for name in REPORTED if name in end}
    resumed = sum(line["resumed"] for line in lines if "resumed" in line)
    return about | ({"resumed": resumed} if resumed else {})


def _why(log: Path, lines: list[dict[str, Any]], event: JobEvent) -> dict[str, Any]:
    told: Any = event.record
    slurm_log = next((Path(str(each)) for each in reversed(told.log or ()) if "slurm_logs" in str(each)), None)
    of_slurm = [plain(line["text"]) for line in (joblog.read(slurm_log, 20_000) if slurm_log else [])]
    errors = [line for line in lines if line.get("level") == "error"]
    end = joblog.of_attempt(lines, "end")
    if lines and not end:  # killed: archive its log here, because the next attempt removes it
        with suppress(OSError):
            file_away(log, failed=True)
    source: Path | None = joblog.batch_log_of(log) or log
    failure = end.get("failure", Failure.PROGRAM if errors else None)
    if errors:
        reason = plain(errors[-1]["text"])
    elif end.get("status") == "done":
        failure = Failure.MISSING_OUTPUT
        reason = "exited with status 0, but an expected output file is missing: see Snakemake's output"
    else:
        printed = [plain(line["text"]) for line in lines if line.get("level") == "output"]
        failure = failure_of_output([*of_slurm, *printed]) or (Failure.KILLED if lines else Failure.NOT_STARTED)
        if found := slurm_reason(of_slurm):
            reason, source = found, slurm_log
        elif lines:
            reason = "killed: the log has no exit record"
        else:
            reason, source = "the job did not start", slurm_log
    quoted = [joblog.human(line) for line in lines if line.get("event") != "end"] or of_slurm
    return {
        "reason": reason,
        "failure": failure,
        "error_class": errors[-1].get("error_class") if errors else None,
        "log": str(source) if source else None,
        "slurm_log": str(slurm_log) if slurm_log else None,
        "lines": [plain(part, 300) for text in quoted[-LINES:] for part in text.splitlines()][-LINES:],
    }


def failure_text(line: Mapping[str, Any], quote: bool = True) -> str:
    """Describe a failed attempt: job, attempt, node, reason, log and the last lines of the log."""
    work = " ".join(str(part) for part in (line["stage"], line.get("batch") or line.get("file")) if part)
    where = [f"attempt {line['attempt']}" + (", the last" if line.get("given_up") else "")]
    where += [f"Slurm job {line['slurm_job']}"] if line.get("slurm_job") else []
    where += [f"node {line['node']}"] if line.get("node") else []
    text = f"{work} failed ({', '.join(where)}): {line.get('reason') or 'the reason is unknown'}"
    if not quote:
        return text + (f"; {line['log']}" if line.get("log") else "")
    quoted = "".join(f"\n    {each}" for each in line.get("lines") or ())
    return text + (f"\n  {line['log']}:" if line.get("log") else "") + quoted


def _asked(resources: Any) -> dict[str, Any]:
    """Return the memory, run time and GPUs that a job requests; resources without a value yet are skipped."""
    names = list(getattr(resources, "_names", {}) or {})
    values = {name: getattr(resources, name, None) for name in REQUESTED if name in names}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}
