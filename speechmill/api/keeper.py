"""Keeps a living supervisor for every active run, records its end, and starts scheduled runs; one thread of the server.

Its state is in the data base, so it continues where an earlier server ended.
"""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

from speechmill.api.backup import back_up
from speechmill.api.schedules import begin_due
from speechmill.api.service import Service, result_file
from speechmill.api.store import Run, new_id
from speechmill.api.views import last_error_of, snapshot
from speechmill.errors import SpeechmillError
from speechmill.runlog import run_lock
from speechmill.runlog.progress import finished_pieces
from speechmill.runlog.run_lock import State
from speechmill.runs.leftovers import end_all
from speechmill.runs.plan import plan_from
from speechmill.runs.start import open_supervisor
from speechmill.storage.files import read_json
from speechmill.utils.text import plain

LOOK_SECONDS = 1.0
BACKUP_SECONDS = 3600.0
MOST_RESTARTS = 5  # of supervisors without progress
PAUSE_SECONDS = 5.0  # between the first two of them; four times as long before every further one
CLAIM_SECONDS = 120.0  # that a supervisor may need to take the run's lock
EXIT_SECONDS = 10.0  # that it may need to exit once it has written the end


class Keeper(threading.Thread):
    """Looks at the runs every few seconds, and when it is woken."""

    def __init__(self, service: Service):
        super().__init__(name="keeper", daemon=True)
        self.service = service
        self.over = threading.Event()
        self.looked_at = time.monotonic()
        self._backed_up = -math.inf
        self._begun: dict[str, tuple[subprocess.Popen[bytes], float]] = {}  # supervisors, and when they were started
        self._reported: dict[str, str] = {}  # the last message about a run

    def run(self) -> None:
        while not self.over.is_set():
            self.service.wake.clear()
            try:
                self.look()
                begin_due(self.service)
                self.looked_at = time.monotonic()
            except Exception:  # such as a full disk: looked at again
                traceback.print_exc()
            if time.monotonic() - self._backed_up > BACKUP_SECONDS:
                self._back_up()
            self.service.wake.wait(LOOK_SECONDS)
        self._back_up()

    def _back_up(self) -> None:
        self._backed_up = time.monotonic()
        try:
            back_up(self.service.store.path)
        except (OSError, sqlite3.Error, SpeechmillError) as error:
            print(f"speechmill: no backup of {self.service.store.path}: {error}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Runs continue."""
        self.over.set()
        self.service.wake.set()
        self.join(10)

    def look(self) -> None:
        """See that every active run is supervised, and record what its supervisor does and how it ended."""
        active = self.service.store.active()
        for run_id in self._begun.keys() - {run.id for run in active}:
            self._begun.pop(run_id)[0].poll()
            self._reported.pop(run_id, None)
        for run in active:
            try:
                self._look_at(run)
            except (sqlite3.Error, OSError, SpeechmillError) as error:  # such as a full disk: looked at again
                self._report(run, str(error))
            except Exception:  # of this run alone
                traceback.print_exc()

    def _look_at(self, run: Run) -> None:
        run_dir, result = Path(run.run_dir), result_file(run)
        supervisor = run_lock.read_supervisor(run_dir)
        is_alive = supervisor is not None and supervisor.is_alive
        is_ours = supervisor is not None and supervisor.result == str(result)
        if (run_dir / result).exists() and not (is_alive and is_ours):
            self._record_end(run, run_dir / result)
            return
        request = run_lock.read_stop(run_dir)
        if run.wanted and (request is None or (request.how, run.wanted) == ("drain", "cancel")):
            run_lock.request_stop(run_dir, run.wanted, by="the API")
        if supervisor and is_alive and is_ours:
            self._copy_state(run, supervisor, request)
        elif supervisor and is_alive:
            self._report(run, f"waiting for {supervisor}, which this server did not start, to end")
        elif not self._is_starting(run):
            self._start(run)

    def _copy_state(self, run: Run, supervisor: run_lock.Supervision, request: run_lock.StopRequest | None) -> None:
        store = self.service.store
        if run.runner is None:  # the data base was restored
            store.claim(run.id, new_id(), None, finished_pieces(Path(run.run_dir)))
        elif request and run.wanted not in ("cancel", request.how):  # of a person beside the server
            store.request_stop(run.id, request.how)
        elif supervisor.state in (State.BETWEEN, State.PLANNING) and supervisor.reason:
            store.move(run.id, run.runner, "retrying", plain(supervisor.reason))
        elif supervisor.state == State.WAITING:
            store.move(run.id, run.runner, "running", supervisor.reason)
        elif supervisor.state == State.RUNNING:
            store.move(run.id, run.runner, "running")

    def _record_end(self, run: Run, file: Path) -> None:
        """Write the end of a run, as its supervisor left it, into the data base."""
        if run.id in self._begun:
            self._begun[run.id][0].wait(EXIT_SECONDS)
        end = read_json(file)
        error, final = None, {}
        if end["state"] == "failed":
            error = plain(last_error_of(Path(run.run_dir), run, end["log_from"]) or end["why"], 2000)
        with suppress(Exception):
            final = snapshot(Path(run.run_dir), run)
        self.service.store.end(run.id, run.runner, end["state"], end["why"], error, final, end["time"])
        file.unlink()

    def _is_starting(self, run: Run) -> bool:
        """Whether a supervisor was started that does not hold the run's lock yet."""
        if run.id not in self._begun or self._begun[run.id][0].poll() is not None:
            return False
        child, since = self._begun[run.id]
        if time.monotonic() - since > CLAIM_SECONDS:
            child.kill()
        return True

    def _start(self, run: Run) -> None:
        """Start a supervisor; after one that died less often each time, and after too many none."""
        store, progress = self.service.store, finished_pieces(Path(run.run_dir))
        if run.runner:
            if run.restarts >= MOST_RESTARTS and progress <= run.progress:
                self._give_up(run)
                return
            store.mark_lost(run.id, run.runner, "its supervisor died; another one takes over")
            began = self._begun[run.id][1] if run.id in self._begun else -math.inf
            if run.wanted != "cancel" and time.monotonic() - began < PAUSE_SECONDS * 4**run.restarts:
                return
        taken = store.claim(run.id, new_id(), run.runner, progress)
        if taken is None:  # it was cancelled before it began
            return
        if not taken.wanted:
            run_lock.clear_stop(Path(run.run_dir))
        settings = self.service.settings
        arguments = ["--plan", run.plan, "--result", str(result_file(run))]
        with open(settings.supervisor_log, "ab") as log:
            child = open_supervisor(Path(run.run_dir), settings.directory, arguments, log)
        self._begun[run.id] = (child, time.monotonic())

    def _give_up(self, run: Run) -> None:
        """End a run once no process or job of it is left."""
        plan = plan_from(json.loads(run.plan))
        if left := end_all(plan, plan.queue(print)):
            self._report(run, f"it cannot end before {left}")
            return
        why = f"giving up: its supervisors died {MOST_RESTARTS + 1} times without progress; see {self.service.settings.supervisor_log}"
        state = "cancelled" if run.wanted == "cancel" else "failed"
        self.service.store.mark_lost(run.id, run.runner, why, for_good=state)

    def _report(self, run: Run, message: str) -> None:
        """Print what is new about a run."""
        if self._reported.get(run.id) != message:
            self._reported[run.id] = message
            print(f"speechmill: {run.id}: {message}", file=sys.stderr, flush=True)
