"""What happens in a run, as it happens: server-sent events of its state, its jobs, and how far it is.

The id of an event is `N-B`: the state changes up to number N and the bytes up to B of the run's account of attempts are
told. Who comes back with it (Last-Event-ID) misses nothing and hears nothing twice.
"""

from __future__ import annotations

import bisect
import heapq
import json
import re
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from speechmill.api.service import Service
from speechmill.api.store import Run
from speechmill.runlog.attempts import FILE, Tail

LOOK_SECONDS = 1.0
BEHIND_SECONDS = 0.2  # between two looks of one who is told what was before
SILENT_SECONDS = 15.0  # then a comment shows that the connection lives
ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
MOST = 1000  # jobs in one look
News = tuple[str, int, str]  # time, number or place after it, what happened as JSON
ABOUT_JOB = ("time", "event", "stage", "batch", "file", "attempt", "slurm_job", "node", "seconds", "reason", "given_up")


class Jobs:
    """What the account of a folder says of jobs, read and put into words once for all who listen."""

    def __init__(self, path: Path):
        self._tail = Tail(path)
        self._news: list[News] = []
        self._places: list[int] = []
        self._lock = threading.Lock()

    def after(self, place: int) -> list[News]:
        """At most MOST, as they stand in the account. Those about Snakemake itself have no words."""
        with self._lock:
            is_new, lines = self._tail.read()
            if is_new:
                self._news, self._places = [], []
            for end, line in lines:
                told = {name: line[name] for name in ABOUT_JOB if line.get(name) is not None}
                self._news.append((line["time"], end, "" if line["stage"] == "run" else json.dumps(told)))
                self._places.append(end)
            first = bisect.bisect_right(self._places, place)
            return self._news[first : first + MOST]


_listened_to: weakref.WeakValueDictionary[Path, Jobs] = weakref.WeakValueDictionary()
_listening = threading.Lock()


def jobs_of(path: Path) -> Jobs:
    """The same for all who listen at the same time."""
    with _listening:
        found = _listened_to.get(path) or Jobs(path)
        _listened_to[path] = found
        return found


class Follower:
    """One who listens to one run."""

    def __init__(self, service: Service, run: Run, last_id: str | None):
        self.service, self.run = service, run
        self.jobs = jobs_of(Path(run.run_dir) / FILE)
        found = ID.fullmatch(last_id) if last_id else None
        self.number, self.offset = (int(found[1]), int(found[2])) if found else (0, 0)
        self.told = ""  # how far the run is
        self.is_behind = True  # there is more to tell at once
        self.over = False

    def news(self) -> Iterator[tuple[str, str, str]]:
        """Events since the last call, by time: id, kind, data as JSON. `over` once there will be no more."""
        run = self.service.store.get(self.run.id)
        changes = self.service.store.history(self.run.id, self.number)
        jobs = self.jobs.after(self.offset)
        self.is_behind = len(jobs) == MOST
        self.over = (run is None or not run.is_active) and not self.is_behind
        states = [
            (change["time"], change.pop("number"), json.dumps({"run_id": self.run.id} | change))
            for change in changes
            if not self.is_behind or change["time"] < jobs[-1][0]
        ]
        for kind, (time_of, position, data) in _by_time(states, jobs):
            if kind == "state":
                self.number = position
                yield self._id, kind, data
            else:
                self.offset = position
                if data and not self._is_of_others(time_of):
                    yield self._id, kind, data
        progress = None if run is None or self.is_behind else self._progress(run)
        if progress and progress != self.told:
            self.told = progress
            yield self._id, "progress", progress

    def is_done(self) -> bool:
        """Whether everything was told before."""
        run = self.service.store.get(self.run.id)
        return (run is None or not run.is_active) and not self.service.store.history(self.run.id, self.number)

    @property
    def _id(self) -> str:
        return f"{self.number}-{self.offset}"

    def _is_of_others(self, time_of: str) -> bool:
        """Whether this was before or after the run."""
        return time_of < self.run.created or (self.run.ended is not None and time_of > self.run.ended)

    def _progress(self, run: Run) -> str | None:
        reading = self.service.reading(run)
        found = reading.record
        if found is None or not run.is_active:
            return None
        return reading.once(("progress",), lambda: _progress(found))


def _progress(found: Mapping[str, Any]) -> str:
    names = ("stage", "done", "total", "running", "waiting", "failed_attempts", "given_up")
    stages = [{name: stage[name] for name in names} for stage in found["stages"]]
    return json.dumps({"seconds_left": found["seconds_left"], "stages": stages})


def _by_time(states: list[News], jobs: list[News]) -> Iterator[tuple[str, News]]:
    """Both in one order, each in its own."""
    named = ((("state", each) for each in states), (("job", each) for each in jobs))
    return heapq.merge(*named, key=lambda event: event[1][0])


def _text(follower: Follower) -> str:
    return "".join(f"id: {number}\nevent: {kind}\ndata: {data}\n\n" for number, kind, data in follower.news())


async def stream(follower: Follower, open_ones: Counter[str], caller: str) -> AsyncIterator[str]:
    """The text of the events until the run is over. `open_ones` counts the streams of every caller."""
    open_ones[caller] += 1
    try:
        async for text in _texts(follower):
            yield text
    finally:
        open_ones[caller] -= 1


async def _texts(follower: Follower) -> AsyncIterator[str]:
    yield "retry: 2000\n\n"
    spoken = time.monotonic()
    while True:
        text = await to_thread.run_sync(_text, follower, limiter=follower.service.tellers)
        if not text and time.monotonic() - spoken > SILENT_SECONDS:
            text = ": alive\n\n"
        if text:
            spoken = time.monotonic()
            yield text
        if follower.over:
            return
        await anyio.sleep(BEHIND_SECONDS if follower.is_behind else LOOK_SECONDS)
