"""The runs and schedules of the API, in SQLite.

Every change is one transaction that checks the state it starts from, because several threads change the same runs. A
connection is opened for each call, so that all threads see a data base that was restored.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.utils.times import utc_now

DATA_BASE = "runs.db"
ENDED = ("succeeded", "failed", "cancelled")
ACTIVE = ("queued", "starting", "running", "retrying", "cancelling", "draining", "lost")
ENDING = {"cancel": "cancelling", "drain": "draining"}
MOST_SCHEDULES = 100
KEPT_WORDS = 2000  # of an error
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  id TEXT PRIMARY KEY, dataset TEXT NOT NULL, state TEXT NOT NULL,
  created TEXT NOT NULL, started TEXT, ended TEXT,
  run_dir TEXT NOT NULL, config TEXT NOT NULL, plan TEXT NOT NULL, hours REAL,
  caller TEXT NOT NULL, key TEXT, body TEXT,
  wanted TEXT, runner TEXT, restarts INTEGER NOT NULL DEFAULT 0, progress INTEGER NOT NULL DEFAULT 0,
  last_error TEXT, final TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS one_active_run ON runs (dataset) WHERE state NOT IN ('succeeded', 'failed', 'cancelled');
CREATE UNIQUE INDEX IF NOT EXISTS one_run_of_a_key ON runs (caller, key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_age ON runs (created, id);
CREATE TABLE IF NOT EXISTS transitions (
  number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, time TEXT NOT NULL, state TEXT NOT NULL, why TEXT
);
CREATE INDEX IF NOT EXISTS of_a_run ON transitions (run, number);
CREATE TABLE IF NOT EXISTS schedules (
  id TEXT PRIMARY KEY, dataset TEXT NOT NULL, cron TEXT NOT NULL, config TEXT NOT NULL, caller TEXT NOT NULL,
  created TEXT NOT NULL, next_due REAL NOT NULL, last_due TEXT, last_outcome TEXT
);
"""


class Busy(SpeechmillError):
    """The corpus has an active run."""

    def __init__(self, message: str, active: str | None):
        super().__init__(message)
        self.active = active


class KeyReused(SpeechmillError):
    """An Idempotency-Key was used again, with another request."""


@dataclass(frozen=True)
class Run:
    """A row of the table. `config`, `plan` and `final` are JSON."""

    id: str
    dataset: str
    run_dir: str
    config: str  # as requested
    plan: str
    caller: str
    created: str
    state: str = "queued"
    started: str | None = None
    ended: str | None = None
    hours: float | None = None  # estimated
    key: str | None = None
    body: str | None = None  # checksum of the request
    wanted: str | None = None  # cancel | drain
    runner: str | None = None  # the start of a supervisor
    restarts: int = 0  # supervisors that died since something was brought forward
    progress: int = 0  # finished pieces of work when the last supervisor was started
    last_error: str | None = None
    final: str | None = None  # the status when it ended

    @property
    def is_active(self) -> bool:
        return self.state not in ENDED


NAMES = tuple(field.name for field in fields(Run))
COLUMNS = ", ".join(NAMES)  # a data base of an earlier version has more


def new_id() -> str:
    """Sorts by time."""
    return f"{datetime.now(UTC):%Y%m%d%H%M%S}-{secrets.token_hex(4)}"


class Store:
    """Methods may be called from any thread and any process of this machine."""

    def __init__(self, state_dir: Path):
        self.path = state_dir / DATA_BASE
        with self._connect() as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(SCHEMA)
        self.path.chmod(0o600)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            yield db
        finally:
            db.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._connect() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    # Runs

    def create(self, run: Run) -> Run:
        """Insert a run; if there is a run with its key, return that one.

        Raises:
            Busy, KeyReused: nothing was inserted.
        """
        with self._change() as db:
            if run.key is not None:
                earlier = self._one(db, "caller = ? AND key = ?", run.caller, run.key)
                if earlier:
                    return same_request(earlier, run.body)
            active = self._one(db, f"dataset = ? AND state NOT IN {ENDED}", run.dataset)
            if active:
                raise Busy(f"{run.dataset} has an active run: {active.id} ({active.state})", active.id)
            self._insert(db, run, "triggered")
            return run

    def get(self, run_id: str) -> Run | None:
        with self._connect() as db:
            return self._one(db, "id = ?", run_id)

    def of_key(self, caller: str, key: str) -> Run | None:
        with self._connect() as db:
            return self._one(db, "caller = ? AND key = ?", caller, key)

    def runs(
        self,
        state: str | None = None,
        dataset: str | None = None,
        limit: int = 1000,
        before: tuple[str, str] | None = None,
    ) -> list[Run]:
        """Newest first; `before` is (created, id) of the last run of the previous page."""
        given = {"state = ?": state, "dataset = ?": dataset}
        where = [condition for condition, value in given.items() if value is not None]
        values: list[Any] = [value for value in given.values() if value is not None]
        if before:
            where.append("(created, id) < (?, ?)")
            values += before
        text = f"WHERE {' AND '.join(where)}" if where else ""
        with self._connect() as db:
            rows = db.execute(
                f"SELECT {COLUMNS} FROM runs {text} ORDER BY created DESC, id DESC LIMIT ?", [*values, limit]
            )
            return [Run(**dict(row)) for row in rows]

    def active(self, dataset: str | None = None) -> list[Run]:
        with self._connect() as db:
            more, values = ("AND dataset = ?", [dataset]) if dataset else ("", [])
            rows = db.execute(f"SELECT {COLUMNS} FROM runs WHERE state NOT IN {ENDED} {more} ORDER BY created", values)
            return [Run(**dict(row)) for row in rows]

    def folders(self) -> list[str]:
        with self._connect() as db:
            return [row[0] for row in db.execute("SELECT DISTINCT run_dir FROM runs ORDER BY run_dir")]

    def counts(self) -> dict[str, int]:
        """Runs by state."""
        with self._connect() as db:
            found = dict(db.execute("SELECT state, count(*) FROM runs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in ACTIVE + ENDED}

    def failed_in_jobs(self) -> int:
        """Number of failed runs in which a job failed for good."""
        with self._connect() as db:
            given_up = "SELECT 1 FROM json_each(final, '$.stages') WHERE json_extract(value, '$.given_up')"
            found = db.execute(f"SELECT count(*) FROM runs WHERE state = 'failed' AND EXISTS ({given_up})")
            return int(found.fetchone()[0])

    def history(self, run_id: str, after: int = 0) -> list[dict[str, Any]]:
        """State changes with their numbers."""
        with self._connect() as db:
            rows = db.execute(
                "SELECT number, time, state, why FROM transitions WHERE run = ? AND number > ? ORDER BY number",
                (run_id, after),
            )
            return [dict(row) for row in rows]

    # Requests

    def request_stop(self, run_id: str, how: str) -> Run | None:
        """Ask a run to stop (`cancel` or `drain`), and return it. A run that has not started ends at once."""
        with self._change() as db:
            run = self._one(db, "id = ?", run_id)
            if run is None or not run.is_active or run.wanted in ("cancel", how):
                return run
            if run.runner is None and run.started is None:
                self._move(db, run.id, "cancelled", "cancelled before it began")
                db.execute("UPDATE runs SET ended = ? WHERE id = ?", (utc_now(), run.id))
            else:
                db.execute("UPDATE runs SET wanted = ? WHERE id = ?", (how, run.id))
                self._move(db, run.id, ENDING[how], f"asked to {how}")
            return self._one(db, "id = ?", run_id)

    def reopen(self, run_id: str, why: str) -> Run:
        """Resume a run that failed or was cancelled.

        Raises:
            Busy: another run of the corpus is active, or this one is or has succeeded.
        """
        with self._change() as db:
            run = self._one(db, "id = ?", run_id)
            assert run
            if run.state not in ("failed", "cancelled"):
                raise Busy(f"{run.id} is {run.state}: there is nothing to resume", None)
            active = self._one(db, f"dataset = ? AND state NOT IN {ENDED}", run.dataset)
            if active:
                raise Busy(f"{run.dataset} has an active run: {active.id} ({active.state})", active.id)
            db.execute(
                "UPDATE runs SET ended = NULL, wanted = NULL, runner = NULL, started = NULL, restarts = 0, "
                "last_error = NULL, final = NULL WHERE id = ?",
                (run.id,),
            )
            self._move(db, run.id, "queued", why)
            found = self._one(db, "id = ?", run_id)
            assert found
            return found

    # What supervisors do, as the keeper sees it

    def claim(self, run_id: str, me: str, before: str | None, progress: int) -> Run | None:
        """Make `me` the supervisor of an active run in place of `before`; None if another one was first."""
        with self._change() as db:
            run = self._one(db, "id = ?", run_id)
            if run is None or not run.is_active or run.runner != before:
                return None
            restarts = 0 if before is None else 1 if progress > run.progress else run.restarts + 1
            db.execute(
                "UPDATE runs SET runner = ?, progress = ?, restarts = ?, started = coalesce(started, ?) WHERE id = ?",
                (me, progress, restarts, utc_now(), run_id),
            )
            if not run.wanted:
                self._move(db, run_id, "starting", None if before is None else "taken over from a supervisor that died")
            return self._one(db, "id = ?", run_id)

    def move(self, run_id: str, me: str, state: str, why: str | None = None) -> None:
        """Change the state of a run, unless it was asked to stop."""
        with self._change() as db:
            run = self._one(db, "id = ? AND runner = ?", run_id, me)
            if run and run.is_active and not run.wanted and run.state != state:
                self._move(db, run_id, state, why)

    def end(
        self,
        run_id: str,
        me: str | None,
        state: str,
        why: str | None,
        error: str | None,
        final: Mapping[str, Any],
        at: str | None = None,
    ) -> bool:
        """End a run; False if it is no longer this supervisor's. `at`: when it ended (default: now)."""
        with self._change() as db:
            run = self._one(db, "id = ? AND runner IS ?", run_id, me)
            if not run or not run.is_active:
                return False
            db.execute(
                "UPDATE runs SET runner = NULL, ended = ?, last_error = ?, final = ? WHERE id = ?",
                (at or utc_now(), error and error[:KEPT_WORDS], json.dumps(final, default=str), run_id),
            )
            self._move(db, run_id, state, why, at)
            return True

    def mark_lost(self, run_id: str, before: str | None, why: str, for_good: str | None = None) -> None:
        """Record that the supervisor `before` is dead; `for_good`: no other one takes over, the run ends in that state."""
        with self._change() as db:
            run = self._one(db, "id = ?", run_id)
            if run is None or not run.is_active or run.runner != before:
                return
            if for_good:
                db.execute(
                    "UPDATE runs SET runner = NULL, ended = ?, last_error = ? WHERE id = ?", (utc_now(), why, run_id)
                )
                self._move(db, run_id, for_good, why)
            elif not run.wanted and run.state != "lost":
                self._move(db, run_id, "lost", why)

    # Schedules

    def add_schedule(self, dataset: str, cron: str, config: str, caller: str, next_due: float) -> dict[str, Any]:
        """Insert a schedule, and return its row.

        Raises:
            SpeechmillError: there are too many schedules.
        """
        name = new_id()
        with self._change() as db:
            if db.execute("SELECT count(*) FROM schedules").fetchone()[0] >= MOST_SCHEDULES:
                raise SpeechmillError(f"there are {MOST_SCHEDULES} schedules: delete one that is not needed")
            values = (name, dataset, cron, config, caller, utc_now(), next_due)
            db.execute("INSERT INTO schedules VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL)", values)
            return dict(db.execute("SELECT * FROM schedules WHERE id = ?", (name,)).fetchone())

    def schedules(self, due_at: float | None = None) -> list[dict[str, Any]]:
        """All schedules, or those that are due."""
        with self._connect() as db:
            more, values = ("WHERE next_due <= ?", [due_at]) if due_at is not None else ("", [])
            return [dict(row) for row in db.execute(f"SELECT * FROM schedules {more} ORDER BY id", values)]

    def advance_schedule(self, schedule: Mapping[str, Any], next_due: float) -> bool:
        """Set the next time of a due schedule; False if it was advanced or deleted meanwhile."""
        with self._change() as db:
            done = db.execute(
                "UPDATE schedules SET next_due = ?, last_due = ? WHERE id = ? AND next_due = ?",
                (next_due, utc_now(), schedule["id"], schedule["next_due"]),
            )
            return done.rowcount == 1

    def note_schedule(self, schedule_id: str, outcome: str) -> None:
        with self._change() as db:
            db.execute("UPDATE schedules SET last_outcome = ? WHERE id = ?", (outcome[:KEPT_WORDS], schedule_id))

    def delete_schedule(self, schedule_id: str) -> bool:
        with self._change() as db:
            return db.execute("DELETE FROM schedules WHERE id = ?", (schedule_id,)).rowcount == 1

    def check(self) -> None:
        """Raises sqlite3.Error if the data base cannot be written."""
        with self._change() as db:
            db.execute("PRAGMA user_version = 1")

    def _one(self, db: sqlite3.Connection, where: str, *values: Any) -> Run | None:
        row = db.execute(f"SELECT {COLUMNS} FROM runs WHERE {where}", values).fetchone()
        return Run(**dict(row)) if row else None

    def _insert(self, db: sqlite3.Connection, run: Run, why: str) -> None:
        marks = ", ".join("?" for _ in NAMES)
        db.execute(f"INSERT INTO runs ({COLUMNS}) VALUES ({marks})", [getattr(run, name) for name in NAMES])
        self._note(db, run.id, run.state, why)

    def _move(self, db: sqlite3.Connection, run_id: str, state: str, why: str | None, at: str | None = None) -> None:
        db.execute("UPDATE runs SET state = ? WHERE id = ?", (state, run_id))
        self._note(db, run_id, state, why, at)

    def _note(self, db: sqlite3.Connection, run_id: str, state: str, why: str | None, at: str | None = None) -> None:
        values = (run_id, at or utc_now(), state, why)
        db.execute("INSERT INTO transitions (run, time, state, why) VALUES (?, ?, ?, ?)", values)


def same_request(earlier: Run, body: str | None) -> Run:
    """Return the run of a key that is used again.

    Raises:
        KeyReused: the request is another one.
    """
    if earlier.body != body:
        raise KeyReused(
            f"this Idempotency-Key began {earlier.id} with another request: take a new key for a new request"
        )
    return earlier
