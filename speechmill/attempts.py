"""The workflow's own account of every attempt of every job: `{run}/logs/attempts.jsonl`, appended to, never rewritten.

One line per event: `time` (UTC), `start` (when this Snakemake started), `event`, `stage`, `batch` (null for jobs of the
whole run), `attempt`, on Slurm `slurm_job`, of a fetch its `file`. Events are

    began, ended        of Snakemake itself (stage `run`): versions and host; `outcome` succeeded | failed | stopped
    submitted           with what the job asked for (`asked`: threads, mem_mb, runtime, gpu)
    finished, failed    with what its log tells: node, device, when it began, what it used, clips and seconds of audio by
                        state; of a failure why (`reason`, `error_class`), the `log` with its last `lines`, and `given_up`
                        where there is no further attempt

It is the record of a run: lines of a dead Snakemake stay true, and a line that was cut short is left out. No data base,
because results are on network file systems, where SQLite's locks do not hold.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from speechmill import joblog
from speechmill.events import JobEvent, JobTracker, Start
from speechmill.job import file_away
from speechmill.joblog import utc_now
from speechmill.text import plain

FILE = Path("logs") / "attempts.jsonl"
ASKED = ("mem_mb", "runtime", "gpu")
TOLD = ("seconds", "cpu_seconds", "peak_mb", "gpu_peak_mb", "device", "clips", "audio_seconds")
LINES = 15  # of a log, quoted for a failure
SUMMED_UP = 3  # failures
OF_SLURM = ("slurmstepd", "srun: error:")  # lines that say why a job ended; the daemon on the node knows more


class AttemptLog(logging.Handler):
    """Listens to Snakemake's logger. A full disk costs lines of this log, never the run."""

    def __init__(self, start: Start):
        super().__init__(logging.INFO)
        self.start = start
        self.path = start.run_dir / FILE
        self.tracker = JobTracker(start)
        self.logs: dict[int, Path] = {}
        self.asked: dict[int, dict[str, Any]] = {}
        self.said = False  # that it cannot be written
        self.described: dict[int, str] = {}  # when its attempt began, here
        try:
            self._take_over()
        except OSError as error:
            self._cannot_write(error)
        versions = {name: metadata.version(name) for name in ("speechmill", "snakemake")}
        self._run("began", host=os.uname().nodename, process=os.getpid(), goal=start.goal, versions=versions)

    def _take_over(self) -> None:
        """Note how jobs ended that an earlier Snakemake started, and died before: their logs say so."""
        open_jobs: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in read_attempts(self.start.run_dir):
            key = (line["start"], line["stage"], line["batch"], line.get("file"), line["attempt"])
            if line["event"] == "submitted":
                open_jobs[key] = line
            else:
                open_jobs.pop(key, None)
        for line in open_jobs.values():
            work = line["batch"] or line.get("file")
            log = self.start.run_dir / "logs" / (f"{line['stage']}/{work}.log" if work else f"{line['stage']}.log")
            begin, end = attempt_of(log, line["stage"], line["slurm_job"], line["time"])[1:]
            if end.get("status") == "done":
                about = {"time": end["time"], "event": "finished"} | _about(begin, end)
                self._write({name: value for name, value in line.items() if name != "asked"} | about)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            for event in self.tracker.read(record):
                self._note(event)
        except OSError as error:
            self._cannot_write(error)
        except Exception:
            self.handleError(record)

    def end(self) -> None:
        """Snakemake ends; what failed for good is summed up on the terminal."""
        self._run("ended", outcome=self.start.outcome or "stopped")
        failed = [line for line in given_up(read_attempts(self.start.run_dir)) if line["start"] == self.start.time]
        if failed and self.start.outcome == "failed":
            print(f"speechmill: {len(failed)} jobs failed for good", file=sys.stderr)
            for line in failed[:SUMMED_UP]:
                print("-", failure_text(line), file=sys.stderr)
            if len(failed) > SUMMED_UP:
                print(f"- and {len(failed) - SUMMED_UP} more: speechmill status {self.start.run_dir}", file=sys.stderr)
            sys.stderr.flush()

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
            about = how_it_went(self.logs[event.job], event, self.described[event.job])
        line = self._line(event.kind, event.stage, event.wildcards, event.attempt, event.slurm_job) | about
        if event.given_up:
            line["given_up"] = True
        self._write(line)
        if event.kind == "failed":
            print("speechmill:", failure_text(line, quote=False), file=sys.stderr, flush=True)

    def _run(self, event: str, **about: Any) -> None:
        try:
            self._write(self._line(event, "run", {}, 1, None) | about)
        except OSError as error:
            self._cannot_write(error)

    def _cannot_write(self, error: OSError) -> None:
        if not self.said:
            print(f"speechmill: the account of the run has gaps: {self.path}: {error}", file=sys.stderr, flush=True)
        self.said = True

    def _line(
        self, event: str, stage: str, wildcards: Mapping[str, str], attempt: int, slurm_job: str | None
    ) -> dict[str, Any]:
        line: dict[str, Any] = {
            "time": utc_now(),
            "start": self.start.time,
            "event": event,
            "stage": stage,
            "batch": wildcards.get("batch"),
            "attempt": attempt,
            "slurm_job": slurm_job,
        }
        return line | ({"file": wildcards["file"]} if "file" in wildcards else {})

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


def how_it_went(log: Path, event: JobEvent, since: str) -> dict[str, Any]:
    """What the log of a job tells of this attempt; of one that failed also why, with the lines that say it."""
    lines, begin, end = attempt_of(log, event.stage, event.slurm_job, since)
    about = _about(begin, end)
    if event.kind != "failed":
        return about
    slurm_log = next((Path(str(each)) for each in reversed(_texts(event.record)) if "slurm_logs" in str(each)), None)
    of_slurm = [plain(line["text"]) for line in (joblog.read(slurm_log, 20_000) if slurm_log else [])]
    errors = [line for line in lines if line.get("level") == "error"]
    if lines and not end:  # killed: nobody else files this log away, and the next attempt removes it
        file_away(log, failed=True)
    source: Path | None = joblog.story_of(log) or log
    if errors:
        reason = plain(errors[-1]["text"])
    elif said := next((line for start in OF_SLURM for line in of_slurm if line.startswith(start)), None):
        reason, source = said, slurm_log  # the first: the others follow from it
    elif lines:
        reason = "killed: it ended without a word of its own"
    else:
        reason, source = "it never began", slurm_log
    quoted = [joblog.human(line) for line in lines if line.get("event") != "end"] or of_slurm
    return about | {
        "reason": reason,
        "error_class": errors[-1].get("error_class") if errors else None,
        "log": str(source) if source else None,
        "slurm_log": str(slurm_log) if slurm_log else None,
        "lines": [plain(part, 300) for text in quoted[-LINES:] for part in text.splitlines()][-LINES:],
    }


def attempt_of(
    log: Path, stage: str, slurm_job: str | None, since: str
) -> tuple[list[dict[str, Any]], Mapping[str, Any], Mapping[str, Any]]:
    """The lines of the attempt that was submitted at `since`, its `begin` and its `end`; empty where they are not there.

    One that never began, or whose log is not to be seen from here yet, is not told by its predecessor's.
    """
    lines = joblog.last_attempt(log, stage)
    begin = joblog.of_attempt(lines, "begin")
    is_another = begin.get("slurm_job") != slurm_job if slurm_job else str(begin.get("time")) < since
    return ([], {}, {}) if is_another else (lines, begin, joblog.of_attempt(lines, "end"))


def _about(begin: Mapping[str, Any], end: Mapping[str, Any]) -> dict[str, Any]:
    about = {"node": begin.get("node"), "gpus": begin.get("gpus"), "began": begin.get("time")}
    return about | {name: end[name] for name in TOLD if name in end}


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


def read_attempts(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Events in the order they happened; a line cut short by a crash is left out."""
    path = run_dir / FILE
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def given_up(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last failure of every piece of work that has failed for good, and has not been finished since."""
    last = {(line["stage"], line["batch"], line.get("file")): line for line in lines if line["stage"] != "run"}
    return [line for line in last.values() if line.get("given_up")]


def _asked(resources: Any) -> dict[str, Any]:
    """Of a job's resources, what its node must give; whatever is not known yet is left out."""
    names = list(getattr(resources, "_names", {}) or {})
    values = {name: getattr(resources, name, None) for name in ASKED if name in names}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}


def _texts(record: logging.LogRecord) -> Sequence[Any]:
    return list(getattr(record, "log", None) or ())
