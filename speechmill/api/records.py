"""Readings of run folders, kept for a moment: fifty who ask are one reader of a shared file system."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.monitor.record import record_and_jobs

KEEP_SECONDS = 2.0
MOST = 32  # folders


@dataclass(frozen=True)
class Reading:
    """The record of a folder (None before anything began there) and its attempts."""

    record: dict[str, Any] | None
    jobs: list[dict[str, Any]]


@dataclass
class _Kept:
    lock: threading.Lock = field(default_factory=threading.Lock)
    reading: Reading | None = None
    read_at: float = 0.0


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
            kept = self._kept.setdefault(run_dir, _Kept())
            self._kept.move_to_end(run_dir)
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)
        age = time.monotonic() - kept.read_at
        if kept.reading is not None and age <= 2 * self.keep_seconds:
            if age > self.keep_seconds and not kept.lock.locked():
                threading.Thread(target=self._read, args=(kept, run_dir), daemon=True).start()
            return kept.reading
        return self._read(kept, run_dir)

    def _read(self, kept: _Kept, run_dir: str) -> Reading:
        """Read it, unless somebody has done so meanwhile."""
        with kept.lock:
            if kept.reading is None or time.monotonic() - kept.read_at > self.keep_seconds:
                begin = time.monotonic()
                kept.reading = read(Path(run_dir))
                kept.read_at = begin
            return kept.reading


def read(run_dir: Path) -> Reading:
    try:
        return Reading(*record_and_jobs(run_dir))
    except SpeechmillError:
        return Reading(None, [])
