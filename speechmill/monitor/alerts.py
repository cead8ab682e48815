"""The outbox of a run, `{run}/logs/alerts.json`: which causes are open, what was said of them, and what still waits.

A cause is told once while it holds, and once when it no longer does. Messages are written down before they are sent,
and marked after: one that was on its way as the process was killed is sent again, none is lost. One process at a time
has the outbox (watch.py). No URL stands in it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.monitor.channels import Channel, channels
from speechmill.monitor.conditions import EVENTS, NOT_RESOLVED, Cause
from speechmill.storage.files import read_json, write_json
from speechmill.utils.retry import pause_after
from speechmill.utils.times import clock

FILE = Path("logs") / "alerts.json"
PAUSES = (30, 60, 120, 300, 600, 1800, 3600)  # seconds between tries; the last one is repeated
MAX_TRIES = 30  # about a day
HOLD_SECONDS = 60.0  # what is measured counts once it has held for so long
CLEAR_SECONDS = 300.0  # no longer holds, if for so long; twice as long every time that it comes again ...
MAX_CLEAR_SECONDS = 3600.0  # ... up to this
MAX_MESSAGES = 200
BODY_LETTERS = 4000
SHOWN = 20  # messages, to a person


class Outbox:
    """The state of the file. Threads may share it; each channel is served by one of its own."""

    def __init__(
        self,
        run_dir: Path,
        to: Sequence[Channel],
        say: Callable[[str], None],
        pauses: Sequence[float] = PAUSES,
        hold_seconds: float = HOLD_SECONDS,
        clear_seconds: float = CLEAR_SECONDS,
    ):
        self.path = run_dir / FILE
        self.to, self.say, self.pauses = to, say, pauses
        self.hold_seconds, self.clear_seconds = hold_seconds, clear_seconds
        self.hurry = False  # pauses are over: the process ends
        self._lock = threading.Lock()
        self._workers: dict[str, threading.Thread] = {}
        self._said: set[str] = set()
        try:
            self.state = _read(self.path)
        except SpeechmillError as error:
            self.say_once(f"{error}; it is begun anew")
            self.state = _empty()
        self.state["channels"] = {channel.key: {"scheme": channel.scheme} for channel in to}
        for message in self.state["messages"]:
            for told in message["channels"].values():
                told["next"] = 0.0  # a new start waits for no pause
        for name in EVENTS & self.state["causes"].keys():  # of an earlier start
            self.state["causes"][name] |= {"open": False, "since": None}

    def take(self, found: Sequence[Cause], now: float, outcome: str | None = None) -> None:
        """Note which causes hold, and write the messages that follow from it.

        `outcome` ends the run: a finished one has nothing open any more; of another one, what was open stays so.
        """
        with self._lock:
            causes, before = self.state["causes"], len(self.state["messages"])
            for cause in found:
                known = causes.setdefault(cause.cause, {"open": False, "since": None, "gone": None, "times": 0})
                known |= {"since": known["since"] or now, "gone": None}
                if not known["open"] and (not cause.measured or now - known["since"] >= self.hold_seconds):
                    known |= {"open": True, "times": known["times"] + 1, "title": cause.title}
                    self._add(cause.cause, cause.severity, cause.title, cause.body, now)
            if outcome in (None, "finished"):
                for name in sorted(causes.keys() - {cause.cause for cause in found}):
                    self._end(name, now, at_once=outcome is not None)
            if len(self.state["messages"]) != before:
                self.save()

    def deliver(self) -> None:
        """Let every channel be served for which something is due; does not wait for that."""
        for channel in self.to:
            worker = self._workers.get(channel.key)
            if (worker is None or not worker.is_alive()) and self._next(channel):
                self._workers[channel.key] = threading.Thread(target=self._serve, args=(channel,), daemon=True)
                self._workers[channel.key].start()

    def wait(self, seconds: float) -> None:
        """Until no delivery is at work, or so long."""
        end = time.monotonic() + seconds
        for worker in self._workers.values():
            worker.join(max(0.0, end - time.monotonic()))

    def waiting(self) -> int:
        """Messages that some channel has not got yet."""
        with self._lock:
            return sum(_waits(message) for message in self.state["messages"])

    def save(self) -> None:
        """Write the file; what cannot be written, since the disk is full, is sent all the same."""
        try:
            write_json(self.path, self.state)
        except OSError as error:
            self.say_once(f"{self.path} cannot be written ({error.strerror}): alerts are sent, but not noted")

    def say_once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            self.say(words)

    def _end(self, name: str, now: float, at_once: bool) -> None:
        known = self.state["causes"][name]
        if known["since"] is None:
            return
        known["gone"] = known["gone"] or now
        clear = min(self.clear_seconds * 2 ** (known["times"] - 1), MAX_CLEAR_SECONDS) if known["open"] else 0.0
        if at_once or name in EVENTS or now - known["gone"] >= clear:
            if known["open"] and name not in NOT_RESOLVED:
                text = f"This no longer holds; it was so from {clock(known['since'])} to {clock(known['gone'])}."
                self._add(name, "info", f"resolved: {known['title']}", text, now)
            known |= {"open": False, "since": None, "gone": None}

    def _add(self, cause: str, severity: str, title: str, body: str, now: float) -> None:
        messages = self.state["messages"]
        self.state["last"] += 1
        messages.append(
            {
                "id": self.state["last"],
                "time": now,
                "cause": cause,
                "severity": severity,
                "title": title,
                "body": f"{body[:BODY_LETTERS]}\nSaid: {clock(now)}",
                "channels": {c.key: {"state": "waiting", "tries": 0, "next": 0.0, "error": None} for c in self.to},
            }
        )
        while len(messages) > MAX_MESSAGES:
            messages.remove(next((message for message in messages if not _waits(message)), messages[0]))

    def _next(self, channel: Channel) -> dict[str, Any] | None:
        """The message that is due. One that failed comes after the others: it may be the reason why."""
        with self._lock:
            due = [
                message
                for message in self.state["messages"]
                if (told := message["channels"].get(channel.key))
                and told["state"] == "waiting"
                and (self.hurry or told["next"] <= time.time())
            ]
            return min(due, key=lambda message: (message["channels"][channel.key]["next"], message["id"]), default=None)

    def _serve(self, channel: Channel) -> None:
        """Send what is due, until one fails."""
        error = None
        while error is None and (message := self._next(channel)):
            error = channel.send(message["title"], message["body"], message["severity"])
            with self._lock:
                told = message["channels"][channel.key]
                told |= {"tries": told["tries"] + 1, "error": error, "state": "waiting" if error else "sent"}
                trouble = self.state["channels"][channel.key]
                if error is None:
                    trouble.pop("error", None)
                else:
                    trouble |= {"error": error, "time": time.time()}
                    told["next"] = time.time() + pause_after(told["tries"], self.pauses)
                    if told["tries"] >= MAX_TRIES:
                        told["state"] = "given up"
                        self.say(f'{channel}: "{message["title"]}" given up after {MAX_TRIES} tries: {error}')
                    else:
                        self.say_once(f"{channel}: an alert did not arrive: {error}; it is tried again")
                self.save()


def alerts_state(run_dir: Path) -> dict[str, Any] | None:
    """Open causes, the number of undelivered messages, and channels with trouble; None where nothing was raised.

    Raises:
        SpeechmillError: the outbox is damaged.
    """
    if not (run_dir / FILE).exists():
        return None
    state = _read(run_dir / FILE)
    return {
        "open": [
            {"cause": name, "since": known["since"], "title": known["title"]}
            for name, known in sorted(state["causes"].items())
            if known["open"] and name not in EVENTS
        ],
        "undelivered": sum(_waits(message) for message in state["messages"]),
        "trouble": [
            {"channel": f"channel {key} ({channel['scheme']})", "error": channel["error"], "time": channel["time"]}
            for key, channel in sorted(state["channels"].items())
            if channel.get("error")
        ],
    }


def alerts_text(run_dir: Path) -> str:
    """Open causes, the last messages and where they arrived, for a person.

    Raises:
        SpeechmillError: there is no run here, or its outbox is damaged.
    """
    if not run_dir.is_dir():
        raise SpeechmillError(f"{run_dir}: there is no run here")
    found = alerts_state(run_dir)
    if found is None:
        return f"{run_dir}: nothing was told; speechmill alerts --test tries the channels"
    state = _read(run_dir / FILE)
    lines = [f"{run_dir}: {len(found['open'])} open, {found['undelivered']} not delivered yet"]
    lines += [f"  open since {clock(cause['since'])}: {cause['title']}" for cause in found["open"]]
    for message in state["messages"][-SHOWN:]:
        lines.append(f"  {clock(message['time'])} {message['severity']}: {message['title']}")
        for key, told in sorted(message["channels"].items()):
            scheme = state["channels"].get(key, {}).get("scheme", "not configured any more")
            tries = f" after {told['tries']} tries: {told['error']}" if told["error"] else ""
            lines.append(f"    channel {key} ({scheme}): {told['state']}{tries}")
    lines += [f"  {trouble['channel']}, {clock(trouble['time'])}: {trouble['error']}" for trouble in found["trouble"]]
    return "\n".join(lines)


def try_channels() -> int:
    """Send a test message through every channel and print what came of it; 0 if all arrived.

    Raises:
        ConfigError: the channels cannot be read.
        SpeechmillError: there are none.
    """
    found, problems = channels()
    if not found and not problems:
        raise SpeechmillError(
            "no alert channel is configured: put Apprise URLs into ~/.config/speechmill/alerts, one per line, and say "
            "chmod 600, or name another file in SPEECHMILL_ALERTS_FILE"
        )
    failed = bool(problems)
    for channel in found:
        error = channel.send("speechmill: a test", "This channel gets the alerts of runs.", "info")
        print(f"alert {channel}: {f'did not arrive: {error}' if error else 'arrived'}", flush=True)
        failed |= error is not None
    print("".join(f"{problem}\n" for problem in problems), end="")
    return int(failed)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = read_json(path)
        if state.keys() != _empty().keys():
            raise ValueError("other content")
        return state
    except FileNotFoundError:
        return _empty()
    except (OSError, ValueError, AttributeError) as error:
        raise SpeechmillError(f"{path} cannot be read ({error})") from error


def _empty() -> dict[str, Any]:
    return {"causes": {}, "messages": [], "channels": {}, "last": 0}


def _waits(message: dict[str, Any]) -> bool:
    return any(told["state"] == "waiting" for told in message["channels"].values())
