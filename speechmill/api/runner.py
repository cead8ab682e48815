"""Works on one run, from its beginning to its end: `python -m speechmill.api.runner STATE_DIR RUN_ID`.

The server starts it in a session of its own and may die at any time. If the runner dies, another one is started, which
first waits for what its predecessor left at work. Whoever takes a run does so in one transaction, so no two work on it.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from speechmill import owner, runs
from speechmill.api import journal, processes
from speechmill.api.store import Run, Store
from speechmill.api.views import last_error_of, snapshot
from speechmill.errors import SpeechmillError
from speechmill.files import write_json
from speechmill.supervise import LOG, Plan, Supervisor, finished_pieces, settle, unlock
from speechmill.text import plain
from speechmill.times import utc_now

LOOK_SECONDS = 1.0
BEAT_SECONDS = 15.0
CANCEL_SECONDS = 60.0  # that Snakemake has to end after SIGINT, before it is killed


def main(state_dir: Path, run_id: str) -> int:
    """Exit status 0 also where another runner has the run."""
    store = Store(state_dir)
    run = store.get(run_id)
    if run is None or not run.is_active or processes.is_alive(run.runner, run.beat):
        return 0
    me = processes.identity()
    taken = store.take(run_id, me, run.runner, finished_pieces(Path(run.run_dir)), time.time())
    if taken is None:
        return 0
    Runner(store, taken, me, is_first=run.runner is None).work()
    return 0


class Runner:
    """One process's work on a run."""

    def __init__(self, store: Store, run: Run, me: str, is_first: bool):
        self.store, self.run, self.me, self.is_first = store, run, me, is_first
        self.run_dir = Path(run.run_dir)
        self.plan = Plan(**json.loads(run.plan))
        self.wanted = run.wanted
        self.supervisor: Snakemakes | None = None
        self.obeyed: tuple[str, int] | None = None  # what was asked for, and the Snakemake that was told
        self.seen: int | None = None  # the Snakemake that is known to be at work
        self.quoted_from: int | None = None  # where in the log of the run its Snakemake, which failed, began
        self.over = threading.Event()

    def work(self) -> None:
        """Until the run has ended, one way or the other. What nobody foresaw ends this runner, and not the run."""
        os.environ[processes.MARK] = self.run.id  # of all that is started from here
        attending = threading.Thread(target=self._attend, daemon=True)
        attending.start()
        if self.run.id not in {run.id for run in journal.runs_of(self.run_dir)}:  # the disk was full then
            journal.note_created(self.run)
        journal.note(self.run_dir, "taken", self.run.id, runner=self.me)
        try:
            state, why = self._work()
        except SpeechmillError as failure:
            state, why = "failed", str(failure)
        if self._is_shut_down() and state != "succeeded":
            return
        said = None
        while left := processes.end_all(self.run.id, self.plan):
            if left != said:
                said = left
                self._say(f"before the run ends: {left}")
            time.sleep(LOOK_SECONDS)
        error = None
        if state == "failed":
            error = plain(last_error_of(self.run_dir, self.run, self.quoted_from) or why, 2000)
        self._end(state, why, error)

    def _is_shut_down(self) -> bool:
        """Whether nobody asked for the end but a machine that is shut down: the run goes on after that."""
        supervisor = self.supervisor
        return supervisor is not None and bool(supervisor.asked_to) and not (self.wanted or supervisor.by_person)

    def _work(self) -> tuple[str, str | None]:
        """The state in which the run ends, and why."""
        was_left = self._await_predecessor()
        if self.wanted:
            settle(self.plan, self.wanted == "cancel", self._say, lambda: self.wanted == "cancel")
            unlock(self.plan)
            return "cancelled", f"asked to {self.wanted}"
        if was_left:
            settle(self.plan, False, self._say, lambda: self.wanted == "cancel")
            unlock(self.plan)
        write_json(self.run_dir / runs.FILE, json.loads(self.run.plan))
        self.supervisor = Snakemakes(self.plan)
        self.supervisor.runner = self
        self.supervisor.asked_to = self.wanted
        log_from = (self.run_dir / LOG).stat().st_size
        status = self.supervisor.run()
        child = self.supervisor.child
        if status == 0 and child and child.returncode == 0:
            return "succeeded", None
        if self.supervisor.asked_to:
            return "cancelled", f"asked to {self.supervisor.asked_to}"
        self.quoted_from = log_from
        return "failed", f"Snakemake ended with {status}: {self.run_dir / LOG}"

    def _await_predecessor(self) -> bool:
        """Wait until no Snakemake works on the run, and kill what one left; whether there was any."""
        told: set[tuple[int, str]] = set()
        found = False
        late: float | None = None
        while True:
            pids = processes.leaders(self.run.id)
            holder = owner.read_owner(self.run_dir)
            if holder and holder.is_alive and holder.pid not in pids:
                if not holder.is_here:
                    raise SpeechmillError(f"{self.run_dir} is being worked on by {holder}: end it on {holder.host}")
                pids.append(holder.watched_by or holder.pid)  # a person's
            if not pids or (late and time.monotonic() > late):
                break
            found = True
            self.store.move(self.run.id, self.me, "running", f"waits for Snakemake, process {pids[0]}, to end")
            if self.wanted == "cancel" and late is None:
                late = time.monotonic() + CANCEL_SECONDS
            for pid in pids:
                if self.wanted and (pid, self.wanted) not in told:
                    told.add((pid, self.wanted))
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM if self.wanted == "drain" else signal.SIGINT)
            time.sleep(LOOK_SECONDS)
        left = processes.of_run(self.run.id)
        processes.kill(self.run.id)
        return found or bool(left) or holder is not None or not self.is_first

    def _attend(self) -> None:
        """Beat, hear what people ask for, and tell how far Snakemake is."""
        beat = time.monotonic()
        while not self.over.wait(LOOK_SECONDS):
            with suppress(sqlite3.Error, OSError, SpeechmillError):
                if time.monotonic() - beat > BEAT_SECONDS:
                    self.store.beat(self.run.id, self.me, time.time())
                    beat = time.monotonic()
                run = self.store.get(self.run.id)
                if run and run.runner == self.me and run.wanted:
                    self.wanted = run.wanted
                self._look_at_snakemake()

    def _look_at_snakemake(self) -> None:
        supervisor = self.supervisor
        child = supervisor.child if supervisor else None
        if not supervisor or not child or child.poll() is not None:
            if supervisor and self.wanted and supervisor.asked_to != "cancel":
                supervisor.asked_to = self.wanted
            return
        if self.wanted and self.obeyed != (self.wanted, child.pid):
            self.obeyed = (self.wanted, child.pid)
            supervisor.asked_to = None  # the same word twice would mean cancel
            supervisor.stop(self.wanted)
        holder = owner.read_owner(self.run_dir)
        if self.seen != child.pid and holder and holder.pid == child.pid:
            self.seen = child.pid
            self.store.move(self.run.id, self.me, "running")

    def is_started_again(self, why: str) -> None:
        with suppress(sqlite3.Error):
            self.store.move(self.run.id, self.me, "retrying", why)

    def _end(self, state: str, why: str | None, error: str | None) -> None:
        """Write how it ended: first in the folder, then in the data base, from where on the corpus is free."""
        final: dict[str, Any] = {}
        with suppress(Exception):
            final = snapshot(self.run_dir, self.run)
        for attempt in range(60):
            try:
                if attempt == 0 or not self.over.is_set():
                    journal.note(self.run_dir, "ended", self.run.id, state=state, why=why, error=error, final=final)
                self.over.set()
                self.store.end(self.run.id, self.me, state, why, error, final)
                return
            except (sqlite3.Error, OSError):  # a full disk
                time.sleep(10)

    def _say(self, *words: str) -> None:
        with suppress(OSError), open(self.run_dir / LOG, "ab") as log:
            log.write(utc_now().encode() + b" " + " ".join(words).encode() + b"\n")


class Snakemakes(Supervisor):
    """A supervisor that tells its runner of every start, and writes into the log of the run alone."""

    runner: Runner
    said = ""
    starts = 0

    def watch(self, command: list[str]) -> int:
        if self.asked_to:
            return 130
        self.starts += 1
        if self.starts > 1:
            self.runner.is_started_again(self.said)
        return super().watch(command)

    def say(self, *words: str) -> None:
        self.said = plain(" ".join(words))
        super().say(*words)

    def _write(self, line: bytes) -> None:
        with suppress(OSError):  # a full disk
            os.write(self.log, line)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
