"""The log of a job: one JSON object per line, with functions that write, read and format it.

Every line has `time` (UTC), `level` (info | warning | error | output) and `text`. A problem also names its `clip`,
`file` and `error_class`. An attempt begins with `event: begin` (`stage`, `node`, `slurm_job`, `gpus`) and ends with
`event: end` (`status`, the `failure` of a failed job as in errors.Failure, `seconds`, resource usage, clips and seconds
of audio by state). Output that libraries write directly to the file descriptors is interleaved verbatim. It becomes
lines of the level `output` when the log is archived.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from speechmill.utils.text import plain
from speechmill.utils.times import utc_now

LINE_LETTERS = 4000
TAIL_BYTES = 2_000_000  # more than one attempt writes, apart from the output of libraries
PROBLEMS = 1000  # at most this many in one log; the ledger has all
PROGRESS_SECONDS = 60.0  # between two lines of a progress bar


class LogStream(io.TextIOBase):
    """A text stream that writes each printed line to the job's log. Thread-safe."""

    def __init__(self, descriptor: int):
        super().__init__()
        self._descriptor = descriptor
        self._rests: dict[int, str] = {}  # by thread: print() writes a text and its line break separately
        self._shown = time.monotonic()  # when a progress bar was last logged
        self._lock = threading.RLock()  # reentrant: the garbage collector may print while the lock is held

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        with self._lock:
            *lines, rest = (self._rests.get(thread, "") + text).split("\n")
            if "\r" in rest:  # a progress bar, which overwrites itself
                rest = visible_text(rest)
                if time.monotonic() - self._shown > PROGRESS_SECONDS:
                    self._shown = time.monotonic()
                    lines.append(rest)
                rest = f"\r{rest}"
            self._rests[thread] = rest
        for line in lines:
            self.record("info", visible_text(line))
        return len(text)

    def end_line(self) -> None:
        """Log the unfinished lines of all threads."""
        with self._lock:
            rests, self._rests = list(self._rests.values()), {}
        for rest in rests:
            self.record("info", visible_text(rest))

    def record(self, level: str, text: str, **about: Any) -> None:
        """Add a line.

        An empty text without other fields is skipped. If the disk is full, the line is lost and the job continues.
        """
        if not (text.strip() or about):
            return
        line = {"time": utc_now(), "level": level, "text": text[:LINE_LETTERS], **about}
        with suppress(OSError):
            os.write(self._descriptor, encode(line))


def visible_text(line: str) -> str:
    """Return what a terminal shows of a line with carriage returns."""
    return next((part for part in reversed(line.split("\r")) if part), "")


class Problems:
    """Logs the problems of single clips, at most `PROBLEMS` of them."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, text: str, **about: Any) -> None:
        """Log a problem; `about` has clip, file, error_class."""
        self.count += 1
        if self.count <= PROBLEMS:
            problem(plain(text), **about)
        elif self.count == PROBLEMS + 1:
            problem(f"more than {PROBLEMS} clips have problems: the ledger and the scores name all")


def problem(text: str, **about: Any) -> None:
    """Log a warning with its clip, file and error_class; outside of a job, print it on the terminal."""
    log_message(text, "warning", **about)


def log_message(text: str, level: str = "info", **about: Any) -> None:
    """Add a line with further fields to the log of this job; outside of a job, print it on the terminal."""
    if isinstance(sys.stderr, LogStream):
        sys.stderr.record(level, text, **about)
    else:
        print(human({"level": level, "text": text, **about}), file=sys.stderr, flush=True)


def encode(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")


def parse(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log. A line that is not one of our JSON objects gets the level `output`."""
    for raw in re.split(rb"[\r\n]+", data):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if isinstance(line, dict) and isinstance(line.get("text"), str):
            yield line
        else:
            yield {"level": "output", "text": raw[:LINE_LETTERS].decode("utf-8", "replace")}


def read(path: Path, tail: int | None = None) -> list[dict[str, Any]]:
    """Return the lines of a log, or those in its last `tail` bytes; empty if there is no log."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if tail is not None and size > tail:
                file.seek(size - tail)
                file.readline()
            return list(parse(file.read()))
    except FileNotFoundError:
        return []


def batch_log_of(log: Path) -> Path | None:
    """Return the batch log to which `logs/{stage}/{batch}.log` is archived; None for other logs."""
    return log.parent.parent / "batches" / log.name if log.parent.parent.name == "logs" else None


def last_attempt(log: Path, stage: str) -> list[dict[str, Any]]:
    """Return the lines of a stage's last attempt, from its `begin`, in its own log or in the batch log."""
    for path in (log, batch_log_of(log)):
        lines = read(path, TAIL_BYTES) if path else []
        begins = [i for i, line in enumerate(lines) if line.get("event") == "begin" and line.get("stage") == stage]
        if path and begins:
            rest = lines[begins[-1] :]
            other = (i for i, line in enumerate(rest[1:], 1) if line.get("event") == "begin")
            return rest[: next(other, None)]
    return []


def of_attempt(lines: Iterable[Mapping[str, Any]], event: str) -> Mapping[str, Any]:
    """Return the `begin` or `end` line of an attempt; empty if it has none."""
    return next((line for line in lines if line.get("event") == event), {})


def human(line: Mapping[str, Any], color: bool = False) -> str:
    """Format a line for the terminal: time of day, level, text, clip and file."""
    text = plain(line["text"], LINE_LETTERS)
    about = ", ".join(f"{key} {plain(line[key])}" for key in ("clip", "file") if line.get(key))
    kind = plain(line["error_class"]) + ": " if line.get("error_class") else ""
    level = line.get("level")
    mark = f"{level}: " if level in ("warning", "error") else "| " if level == "output" else ""
    at = str(line.get("time", ""))[11:19]
    shown = f"{at:8} {mark}{kind}{text}" + (f" ({about})" if about else "")
    codes = {"warning": "33", "error": "31;1"}
    shown = f"\x1b[{codes[level]}m{shown}\x1b[0m" if color and level in codes else shown
    trace = str(line.get("traceback", "")).rstrip()
    return shown + "".join("\n         " + plain_line(part) for part in trace.splitlines())


def plain_line(text: str) -> str:
    """Clean a line as `plain` does, but keep its indentation."""
    return " " * (len(text) - len(text.lstrip())) + plain(text, LINE_LETTERS)
