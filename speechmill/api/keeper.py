"""Keeps every active run in the hands of a living runner, and begins what is due; one thread of the server.

All that it knows is in the data base, so it begins where an earlier server ended.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

from speechmill.api import journal, processes
from speechmill.api.schedules import begin_due
from speechmill.api.service import Service
from speechmill.api.store import Run, Store
from speechmill.supervise import Plan, finished_pieces

LOOK_SECONDS = 2.0
MOST_RESTARTS = 5  # of runners that bring nothing forward
PAUSE_SECONDS = 5.0  # between the first two of them; four times as long before every further one
PATIENCE_SECONDS = 120.0  # that a runner may need to take its run


class Keeper(threading.Thread):
    """Looks at the runs every few seconds, and when it is woken."""

    def __init__(self, service: Service):
        super().__init__(name="keeper", daemon=True)
        self.service = service
        self.over = threading.Event()
        self.looked_at = time.monotonic()
        self._begun: dict[str, tuple[subprocess.Popen[bytes] | None, float]] = {}  # None: it has ended
        self._failed: dict[str, int] = {}  # runners in a row that ended without taking their run

    def run(self) -> None:
        while not self.over.is_set():
            self.service.wake.clear()
            try:
                self.look()
                begin_due(self.service)
                self.looked_at = time.monotonic()
            except Exception:  # such as a full disk: looked at again
                traceback.print_exc()
            self.service.wake.wait(LOOK_SECONDS)

    def stop(self) -> None:
        """Runs go on."""
        self.over.set()
        self.service.wake.set()
        self.join(10)

    def look(self) -> None:
        """Start a runner for every active run that has none."""
        store = self.service.store
        active = store.active()
        for run_id in self._begun.keys() - {run.id for run in active}:
            if child := self._begun.pop(run_id)[0]:
                child.poll()
            self._failed.pop(run_id, None)
        for run in active:
            try:
                if processes.is_alive(run.runner, run.beat):
                    self._failed.pop(run.id, None)
                elif not self._is_starting(run):
                    self._replace(store, run)
            except Exception:  # of this run alone
                traceback.print_exc()

    def _is_starting(self, run: Run) -> bool:
        """Whether a runner was started that has not taken the run yet."""
        child, since = self._begun.get(run.id, (None, 0.0))
        if child is None:
            return False
        if child.poll() is not None:
            self._begun[run.id] = (None, since)
            self._failed[run.id] = self._failed.get(run.id, 0) + 1
            return False
        if time.monotonic() - since > PATIENCE_SECONDS:
            child.kill()
        return True

    def _replace(self, store: Store, run: Run) -> None:
        hopeless = run.restarts >= MOST_RESTARTS and finished_pieces(Path(run.run_dir)) <= run.progress
        if hopeless or self._failed.get(run.id, 0) > MOST_RESTARTS:
            self._give_up(store, run)
            return
        if run.runner and run.state != "lost":
            store.lose(run.id, run.runner, "its runner died; another one takes over")
        deaths = max(run.restarts, self._failed.get(run.id, 0))
        began = self._begun.get(run.id, (None, -math.inf))[1]
        if deaths and run.wanted != "cancel" and time.monotonic() - began < PAUSE_SECONDS * 4 ** (deaths - 1):
            return
        with open(self.service.settings.runner_log, "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "speechmill.api.runner", str(self.service.settings.state_dir), run.id],
                cwd=self.service.settings.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._begun[run.id] = (child, time.monotonic())

    def _give_up(self, store: Store, run: Run) -> None:
        """End a run once nothing of it is at work."""
        if left := processes.end_all(run.id, Plan(**json.loads(run.plan))):
            print(f"speechmill: {run.id} cannot end before {left}", file=sys.stderr, flush=True)
            return
        why = f"its runners died {MOST_RESTARTS + 1} times without bringing it forward: {self.service.settings.runner_log}"
        state = "cancelled" if run.wanted == "cancel" else "failed"
        journal.note(Path(run.run_dir), "ended", run.id, state=state, error=why)
        store.lose(run.id, run.runner, why, for_good=state)


def rebuild(service: Service) -> int:
    """Take the runs that the corpora's folders tell of into the data base; how many were not there."""
    runs = [run for folder in service.result_folders().values() for run in journal.runs_of(folder)]
    return sum(service.store.restore(run, "found in its folder") for run in sorted(runs, key=lambda run: run.created))
