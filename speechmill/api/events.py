"""What happens in a run, as it happens: server-sent events of its state, its jobs, and how far it is.

The id of an event is `N-B`: the state changes up to number N and the bytes up to B of the run's account of attempts are
told. Who comes back with it (Last-Event-ID) misses nothing and hears nothing twice.
"""

from __future__ import annotations

import heapq
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from speechmill.api.service import Service
from speechmill.api.store import Run
from speechmill.attempts import FILE

LOOK_SECONDS = 1.0
SILENT_SECONDS = 15.0  # then a comment shows that the connection lives
ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
CHUNK = 1_000_000
News = tuple[str, int, dict[str, Any]]  # time, number or place after it, what happened
ABOUT_JOB = ("time", "event", "stage", "batch", "file", "attempt", "slurm_job", "node", "seconds", "reason", "given_up")


class Follower:
    """One who listens to one run."""

    def __init__(self, service: Service, run: Run, last_id: str | None):
        self.service, self.run = service, run
        self.path = Path(run.run_dir) / FILE
        found = ID.fullmatch(last_id) if last_id else None
        self.number, self.offset = (int(found[1]), int(found[2])) if found else (0, 0)
        self.told: Any = None  # how far the run is
        self.over = False

    def news(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Events since the last call, by time: id, kind, data. `over` once there will be no more."""
        run = self.service.store.get(self.run.id)
        changes = self.service.store.history(self.run.id, self.number)
        jobs, end = self._jobs()
        self.over = (run is None or not run.is_active) and end is None
        states = [
            (change["time"], change.pop("number"), change) for change in changes if end is None or change["time"] < end
        ]
        for kind, (_, position, data) in _by_time(states, jobs):
            if kind == "state":
                self.number = position
                yield self._id, kind, {"run_id": self.run.id} | data
            else:
                self.offset = position
                if data:
                    yield self._id, kind, data
        progress = None if run is None else self._progress(run)
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

    def _jobs(self) -> tuple[list[News], str | None]:
        """What the account says after `offset`, and, if that is not all of it, up to which time."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(CHUNK)
        except FileNotFoundError:
            return [], None
        found: list[News] = []
        offset = self.offset
        for raw in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            offset += len(raw)
            try:
                line = json.loads(raw)
                of_others = line["time"] < self.run.created or (self.run.ended and line["time"] > self.run.ended)
                told = {name: line[name] for name in ABOUT_JOB if line.get(name) is not None}
                found.append((line["time"], offset, {} if of_others or line["stage"] == "run" else told))
            except (ValueError, KeyError, TypeError):  # cut short by a crash
                continue
        return found, found[-1][0] if found and len(data) == CHUNK else None

    def _progress(self, run: Run) -> dict[str, Any] | None:
        found = self.service.reading(run).record
        if found is None or not run.is_active:
            return None
        names = ("stage", "done", "total", "running", "waiting", "failed_attempts", "given_up")
        stages = [{name: stage[name] for name in names} for stage in found["stages"]]
        return {"seconds_left": found["seconds_left"], "stages": stages}


def _by_time(states: list[News], jobs: list[News]) -> Iterator[tuple[str, News]]:
    """Both in one order, each in its own."""
    named = ((("state", each) for each in states), (("job", each) for each in jobs))
    return heapq.merge(*named, key=lambda event: event[1][0])


async def stream(follower: Follower) -> AsyncIterator[str]:
    """The text of the events until the run is over."""
    yield "retry: 2000\n\n"
    spoken = time.monotonic()
    while True:
        news = await to_thread.run_sync(lambda: list(follower.news()))
        text = "".join(f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for number, kind, data in news)
        if not text and time.monotonic() - spoken > SILENT_SECONDS:
            text = ": alive\n\n"
        if text:
            spoken = time.monotonic()
            yield text
        if follower.over:
            return
        await anyio.sleep(LOOK_SECONDS)
