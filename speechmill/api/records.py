"""Readings of run folders, kept for a moment: fifty who ask are one reader of a shared file system."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from speechmill.errors import SpeechmillError
from speechmill.monitor.record import RunReader

KEEP_SECONDS = 1.0
MOST = 32  # folders
MOST_ANSWERS = 64  # of a reading
T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """The record of a folder (None before anything began there: `trouble` says so) and its attempts."""

    record: dict[str, Any] | None
    jobs: list[dict[str, Any]]
    trouble: str | None = None
    _answers: dict[Any, Any] = field(default_factory=dict, compare=False)
    _making: threading.RLock = field(default_factory=threading.RLock, compare=False)

    def once(self, question: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What `make` gives, made once for this reading and question, and not to be changed."""
        with self._making:
            if question not in self._answers:
                if len(self._answers) >= MOST_ANSWERS:
                    return make()
                self._answers[question] = make()
            answer: T = self._answers[question]
            return answer


class _Kept:
    def __init__(self, run_dir: str):
        self.reader = RunReader(Path(run_dir))
        self.lock = threading.Lock()  # of whoever reads
        self.reading: Reading | None = None
        self.read_at = 0.0


class Records:
    """For the threads of a server."""

    def __init__(self, keep_seconds: float = KEEP_SECONDS):
        self.keep_seconds = keep_seconds
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, run_dir: str) -> Reading:
        """What stands in a folder, at most twice `keep_seconds` old.

        What is older than once that is read again by a thread that nobody waits for: while many ask, none of them does.
        """
        with self._lock:
            kept = self._kept.get(run_dir) or self._kept.setdefault(run_dir, _Kept(run_dir))
            self._kept.move_to_end(run_dir)
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)
        age = time.monotonic() - kept.read_at
        if kept.reading is not None and age <= 2 * self.keep_seconds:
            if age > self.keep_seconds and not kept.lock.locked():
                threading.Thread(target=self._read, args=(kept,), daemon=True).start()
            return kept.reading
        return self._read(kept)

    def of_run(self, run_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The record of a folder and its attempts.

        Raises:
            SpeechmillError: there is none.
        """
        reading = self.read(str(run_dir))
        if reading.record is None:
            raise SpeechmillError(reading.trouble or f"{run_dir} cannot be read")
        return reading.record, reading.jobs

    def _read(self, kept: _Kept) -> Reading:
        """Read it, unless somebody has done so meanwhile."""
        with kept.lock:
            if kept.reading is None or time.monotonic() - kept.read_at > self.keep_seconds:
                begin = time.monotonic()
                kept.reading = read(kept.reader)
                kept.read_at = begin
            return kept.reading


def read(reader: RunReader) -> Reading:
    try:
        return Reading(*reader.read())
    except SpeechmillError as error:
        return Reading(None, [], str(error))
