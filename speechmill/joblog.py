"""The log of a job: one JSON object per line, and how a person reads them.

Every line has `time` (UTC), `level` (info | warning | error | output) and `text`; a problem also what it is about (`clip`,
`file`, `error_class`). An attempt begins with `event: begin` (`stage`, `node`, `slurm_job`, `gpus`) and ends with
`event: end` (`status`, `seconds`, what it used, clips and seconds of audio by state). What libraries print past Python
stands between them as it came, and becomes a line of the level `output` as the log is filed away.
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

from speechmill.text import plain
from speechmill.times import utc_now

LINE_LETTERS = 4000
TAIL_BYTES = 2_000_000  # more than one attempt writes, but for what libraries print
PROBLEMS = 1000  # about clips, in one log; the ledger has all
PROGRESS_SECONDS = 60.0  # between two lines of a progress bar


class LogStream(io.TextIOBase):
    """What a job prints, as lines of its log. Threads may share it."""

    def __init__(self, descriptor: int):
        super().__init__()
        self._descriptor = descriptor
        self._rests: dict[int, str] = {}  # of each thread: print writes a text and its line break one after the other
        self._shown = time.monotonic()  # of a progress bar
        self._lock = threading.RLock()  # the garbage collector may print, too

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        with self._lock:
            *lines, rest = (self._rests.get(thread, "") + text).split("\n")
            if "\r" in rest:  # a progress bar, which overwrites itself
                rest = as_shown(rest)
                if time.monotonic() - self._shown > PROGRESS_SECONDS:
                    self._shown = time.monotonic()
                    lines.append(rest)
                rest = f"\r{rest}"
            self._rests[thread] = rest
        for line in lines:
            self.record("info", as_shown(line))
        return len(text)

    def end_line(self) -> None:
        """Write what no line break has ended yet, of any thread."""
        with self._lock:
            rests, self._rests = list(self._rests.values()), {}
        for rest in rests:
            self.record("info", as_shown(rest))

    def record(self, level: str, text: str, **about: Any) -> None:
        """Add a line; an empty text without anything else is none. A full disk costs lines, never the job."""
        if not (text.strip() or about):
            return
        line = {"time": utc_now(), "level": level, "text": text[:LINE_LETTERS], **about}
        with suppress(OSError):
            os.write(self._descriptor, encode(line))


def as_shown(line: str) -> str:
    """What a terminal would show of a line that goes back to its beginning."""
    return next((part for part in reversed(line.split("\r")) if part), "")


class Problems:
    """What was wrong with single clips: in the log of the job, up to a number that its reader can bear."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, text: str, **about: Any) -> None:
        """Note one, with what it is about: clip, file, error_class."""
        self.count += 1
        if self.count <= PROBLEMS:
            problem(plain(text), **about)
        elif self.count == PROBLEMS + 1:
            problem(f"more than {PROBLEMS} clips have problems: the ledger and the scores name all")


def problem(text: str, **about: Any) -> None:
    """Note a problem, with what it is about, in the log of this job; outside of a job, on the terminal."""
    note(text, "warning", **about)


def note(text: str, level: str = "info", **about: Any) -> None:
    """A line in the log of this job, with what programs want to know besides; outside of a job, on the terminal."""
    if isinstance(sys.stderr, LogStream):
        sys.stderr.record(level, text, **about)
    else:
        print(human({"level": level, "text": text, **about}), file=sys.stderr, flush=True)


def encode(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")


def parse(data: bytes) -> Iterator[dict[str, Any]]:
    """The lines of a log; one that is no object of ours is `output`."""
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
    """The lines of a log, or those in its last `tail` bytes; none where there is no log."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if tail is not None and size > tail:
                file.seek(size - tail)
                file.readline()
            return list(parse(file.read()))
    except FileNotFoundError:
        return []


def story_of(log: Path) -> Path | None:
    """Where the log of a batch's stage, `logs/{stage}/{batch}.log`, is filed away; None for other logs."""
    return log.parent.parent / "batches" / log.name if log.parent.parent.name == "logs" else None


def last_attempt(log: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of the last attempt of a stage, from its `begin`, in its own log or where that is filed away."""
    for path in (log, story_of(log)):
        lines = read(path, TAIL_BYTES) if path else []
        begins = [i for i, line in enumerate(lines) if line.get("event") == "begin" and line.get("stage") == stage]
        if path and begins:
            rest = lines[begins[-1] :]
            other = (i for i, line in enumerate(rest[1:], 1) if line.get("event") == "begin")
            return rest[: next(other, None)]
    return []


def of_attempt(lines: Iterable[Mapping[str, Any]], event: str) -> Mapping[str, Any]:
    """The `begin` or `end` of an attempt; nothing where it has none."""
    return next((line for line in lines if line.get("event") == event), {})


def human(line: Mapping[str, Any], color: bool = False) -> str:
    """A line for a person: the time of day, what happened, and to which clip of which file."""
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
    """A line whose indentation means something."""
    return " " * (len(text) - len(text.lstrip())) + plain(text, LINE_LETTERS)
