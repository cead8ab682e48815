"""Looks at a run every few seconds while it works, and tells its channels what a person should know."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from speechmill.errors import SpeechmillError
from speechmill.monitor.alerts import Outbox
from speechmill.monitor.channels import Channel, channels
from speechmill.monitor.conditions import LINES, Disk, causes, last_move
from speechmill.utils.times import utc_now

LOOK_SECONDS = 15.0
END_SECONDS = 5.0  # for the last delivery
TAIL_BYTES = 8192


def watch_run(
    run_dir: Path,
    config: Callable[[], Mapping[str, Any]],
    say: Callable[[str], None],
    look_seconds: float = LOOK_SECONDS,
    quotes: Path | None = None,
) -> Watch | None:
    """A watch at work, or None where no channel is configured. Trouble with the channels is said and keeps no run.

    `quotes` is where Snakemake's output goes; a run that fails of no job is told with its end.
    """
    try:
        found, problems = channels()
        for problem in problems:
            say(problem)
        if not found:
            return None
        watch = Watch(run_dir, config(), found, say, look_seconds, quotes)
    except SpeechmillError as error:
        say(f"nobody is told of this run: {error}")
        return None
    watch.start()
    return watch


class Watch:
    """The thread that looks. One process watches a run; another one that tries takes over when it ends."""

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        to: list[Channel],
        say: Callable[[str], None],
        look_seconds: float = LOOK_SECONDS,
        quotes: Path | None = None,
    ):
        self.run_dir = run_dir.resolve()
        self.quotes = quotes
        self.settings = config["alerts"]
        self.to, self.say, self.look_seconds = to, say, look_seconds
        self.since = utc_now()
        self.begun = False  # Snakemake has, after this watch
        self.moved: float | None = None
        self.outbox: Outbox | None = None
        self._held: TextIO | None = None
        self._said: set[str] = set()
        self._ended = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, outcome: str) -> None:
        """The run is finished, failed or stopped: the last look, and the last delivery as far as it comes."""
        self._ended.set()
        self._thread.join(END_SECONDS)
        self._best_effort(lambda: self._end(outcome))
        if self._held:
            self._held.close()

    def _end(self, outcome: str) -> None:
        self._look(outcome)
        if self.outbox is None:  # another process has it
            return
        self.outbox.hurry = True
        self.outbox.deliver()
        self.outbox.wait(END_SECONDS)
        if left := self.outbox.waiting():
            self.say(
                f"{left} alerts are not delivered; the next start of the run sends them: "
                f"speechmill alerts {self.run_dir}"
            )

    def _run(self) -> None:
        while True:
            self._best_effort(self._look)
            if self._ended.wait(self.look_seconds):
                return

    def _look(self, outcome: str | None = None) -> None:
        from speechmill.monitor.record import record

        if self.outbox is None:
            if not self._hold():
                return
            self.outbox = Outbox(self.run_dir, self.to, self.say)
        self.outbox.deliver()  # what is left of an earlier start, whatever comes of this look
        found = record(self.run_dir, ask_slurm=outcome is None)  # at the end there is no time to wait for it
        self.begun = self.begun or (found["this_start"] or "") >= self.since
        self.moved = max((each for each in (self.moved, last_move(found)) if each is not None), default=None)
        state = outcome or ("running" if self.begun else "beginning")
        if outcome == "finished" and (not self.begun or found["state"] == "stopped"):
            state = "stopped"  # nothing was to be done, or a part was asked for
        lines = _last_lines(self.quotes) if self.quotes and state == "failed" else []
        holding = causes(found | {"state": state}, self.settings, time.time(), _disk(self.run_dir), self.moved, lines)
        with self._looking:
            if outcome or not self._ended.is_set():  # a look that was under way has nothing to add to the last one
                self.outbox.take(holding, time.time(), state if outcome else None)
        self.outbox.deliver()

    def _hold(self) -> bool:
        """Take the run's alerts for this process; True where the file system knows no locks."""
        path = self.run_dir / "logs" / "alerts.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._held = open(path, "a", encoding="utf-8")  # noqa: SIM115 (held until the watch ends)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._held.close()
            return False
        except OSError:
            pass
        return True

    def _best_effort(self, work: Callable[[], None]) -> None:
        """No error of alerts reaches the run; each is said once."""
        try:
            work()
        except Exception as error:
            words = f"alerts: {type(error).__name__}: {error}"
            if words not in self._said:
                self._said.add(words)
                self.say(words)


def _disk(path: Path) -> Disk:
    free = os.statvfs(path)
    return Disk(free.f_bavail * free.f_frsize, free.f_favail if free.f_files else None)


def _last_lines(path: Path) -> list[str]:
    """The end of a log; none where there is none."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace").splitlines()[-LINES:]
    return []
