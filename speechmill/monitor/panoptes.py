"""Panoptes, the web page that shows the jobs of a run. A server that is away or wrong never stops or fails a run.

A thread sends what happens, in order, and keeps it while the server does not answer: it tries again after growing
pauses. What does not fit into memory is dropped. At the end the run waits for it for at most 5 s. `logs/panoptes.json`
says under which number the server knows this start, and what it was not told.

Panoptes answers errors with status 200 and a web page: only the answers that it is known to give count as success.
"""

from __future__ import annotations

import base64
import json
import logging
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import requests

from speechmill.errors import ConfigError, SpeechmillError
from speechmill.monitor.panoptes_messages import Message, Messages
from speechmill.runlog.snakemake_events import Start
from speechmill.storage.files import read_json, write_json
from speechmill.utils.retry import pause_after

FILE = Path("logs") / "panoptes.json"
ROOM = 10_000  # messages that wait: 20 MB at most
TIMEOUT = 10.0  # seconds for one request
PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds between attempts; the last one is repeated
PATIENCE = 5.0  # seconds at the end of the run, in all
LAST = 2.0  # of these, for the message that says how it ended
ANSWER_BYTES = 2**23
NAME = 50  # letters
STRANGER = "what answers there is not Panoptes"
FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")


class PanoptesError(SpeechmillError):
    """The server gave no answer, or not one of Panoptes. Asking again may help."""


class NotTakenError(SpeechmillError):
    """The server will never take this message."""


@dataclass(frozen=True)
class Server:
    """Where Panoptes is. The address may be shown, the headers may not."""

    address: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def ask(
        self, method: str, path: str, timeout: float, query: Message | None = None, form: Message | None = None
    ) -> tuple[int, str]:
        """Status and text of the answer.

        Raises:
            PanoptesError: there is none, or none from Panoptes.
        """
        try:
            with requests.request(
                method,
                self.address + path,
                params=query,
                data=form,
                auth=self._authorize,
                timeout=timeout,
                allow_redirects=False,  # the header is for this server alone
                stream=True,
            ) as answer:
                body = b""
                for part in answer.iter_content(65536):
                    body += part
                    if len(body) > ANSWER_BYTES:
                        raise PanoptesError("its answer has no end")
        except requests.Timeout:
            raise PanoptesError("no answer in time") from None
        except (requests.RequestException, OSError) as error:
            raise PanoptesError(_reason(error)) from None
        if answer.is_redirect:
            raise PanoptesError(f"it sends to another address (status {answer.status_code}), which is not followed")
        if answer.status_code in (401, 403, 407):
            raise PanoptesError(f"access is refused (status {answer.status_code}); see SPEECHMILL_PANOPTES_HEADER")
        if answer.status_code not in (200, 400, 404):
            raise PanoptesError(f"status {answer.status_code}")
        return answer.status_code, body.decode("utf-8", "replace")

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As `auth`, and not as `headers`: those a ~/.netrc would replace.
        request.headers.update(self.headers)
        return request


def find_server(address: str, header: str = "") -> Server:
    """The server of an address, which may hold user and password, with a header "Name: value" for a proxy before it.

    Raises:
        ConfigError: one of them is not valid; neither is repeated, since both may hold secrets.
    """
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if (
        url.scheme not in ("http", "https")
        or not url.hostname
        or url.query
        or url.fragment
        or not address.isprintable()
    ):
        raise ConfigError(
            "the address of Panoptes is not valid: expected one such as http://127.0.0.1:5000; nothing is sent"
        )
    headers = {}
    if url.username is not None:
        user = f"{unquote(url.username)}:{unquote(url.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    if header:
        words = FIELD.fullmatch(header.strip())
        if not words:
            raise ConfigError(
                "SPEECHMILL_PANOPTES_HEADER is not valid: expected Name: value; nothing is sent to Panoptes"
            )
        headers[words[1]] = words[2]
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    place = host if port is None else f"{host}:{port}"
    return Server(f"{url.scheme}://{place}{quote(url.path, safe='/%').rstrip('/')}", headers)


class Panoptes:
    """One start of a run as a workflow of Panoptes: `tell` it every record, and `close` it."""

    def __init__(self, server: Server, start: Start, log: logging.Logger, **limits: Any):
        self.messages = Messages(start)
        self.client = Client(server, start, log, **limits)

    def tell(self, record: logging.LogRecord) -> None:
        for message in self.messages.read(record):
            self.client.put(message)

    def close(self) -> None:
        for message in self.messages.left():
            self.client.put(message)
        self.client.close(self.messages.outcome(), self.messages.last())


class Client:
    """Sends messages about one workflow, in a thread of its own: `put` never waits."""

    def __init__(
        self,
        server: Server,
        start: Start,
        log: logging.Logger,
        room: int = ROOM,
        timeout: float = TIMEOUT,
        pauses: tuple[float, ...] = PAUSES,
    ):
        self.server, self.start, self.log = server, start, log
        self.room, self.timeout, self.pauses = room, timeout, pauses
        self.file = start.run_dir / FILE
        self.workflow: int | None = None
        self.name = workflow_name(start)
        self.asked = False  # to make the workflow: it may be there, though the answer was lost
        self.unended = unended_workflows(self.file, server.address)
        self.given = self.sent = self.dropped = 0
        self.error: str | None = None
        self.outcome: str | None = None  # once the server knows it
        self.final: tuple[str, Message] | None = None
        self.deadline = 0.0
        self.kept = LAST  # seconds before the deadline
        self.closing = threading.Event()
        self.left = False  # the run goes, with or without the thread
        self.lock = threading.Lock()
        self.queue: queue.Queue[Message | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, name="panoptes", daemon=True)
        self.thread.start()

    def put(self, message: Message) -> None:
        self.given += 1
        if self.queue.qsize() >= self.room:
            self.dropped += 1
        else:
            self.queue.put(message)

    def close(self, outcome: str, last: Message) -> None:
        """Say how the run ended, and wait for what is on its way: for 5 s, whatever the server does."""
        self.given += 1
        self.final = (outcome, last)
        self.deadline = time.monotonic() + PATIENCE
        self.closing.set()
        self.queue.put(None)
        self.thread.join(PATIENCE)
        self._save(leave=True)
        lost = self.given - self.sent
        if lost:
            self.log.warning(
                f"Panoptes at {self.server.address} was not told all of this run: of {self.given} messages "
                f"{self.dropped} were dropped and {lost - self.dropped} not delivered: {self.error or 'no time left'}"
            )

    def _work(self) -> None:
        if self._until_done(self._register):
            self.log.info(f"Panoptes shows this run: {self.server.address}/workflow/{self.workflow}")
            self._save()
            while (message := self.queue.get()) is not None and self._time_left() > 0:
                self.sent += self._until_done(partial(self._post, message))
            self.kept = 0.0
            self.closing.wait()
            self.sent += self._until_done(self._end)

    def _until_done(self, call: Callable[[], None]) -> bool:
        """Once the run has ended there is one attempt; before, as many as it takes."""
        failures = 0
        while True:
            last = self.closing.is_set()
            try:
                call()
                if failures:
                    self._save()
                return True
            except NotTakenError as error:
                self._trouble(error)
                return False
            except PanoptesError as error:
                self._trouble(error)
                if last:
                    return False
            failures += 1
            self.closing.wait(pause_after(failures, self.pauses))

    def _trouble(self, error: SpeechmillError) -> None:
        first, self.error = self.error is None, str(error)
        if self.closing.is_set():
            return
        if first:
            self.log.warning(
                f"Panoptes at {self.server.address}: {error}. The run goes on; it is shown there once that works"
            )
        self._save()

    def _register(self) -> None:
        """End what an earlier start left, and make a workflow."""
        for row in self.unended:
            self._cancel_earlier(row)
        found = None
        if self.asked:
            rows = self._json("GET", "/api/workflows").get("workflows")
            rows = rows if isinstance(rows, list) else []
            found = next((row for row in rows if isinstance(row, dict) and row.get("name") == self.name), None)
        self.asked = True
        found = found or self._json("GET", "/create_workflow", query={"workflow_id": self.name})
        number, name = found.get("id"), found.get("name")
        if type(number) is not int or not isinstance(name, str) or not name.isprintable() or len(name) > 2 * NAME:
            raise PanoptesError(STRANGER)
        self.workflow, self.name, self.unended = number, name, []

    def _cancel_earlier(self, row: Mapping[str, Any]) -> None:
        # The server may have begun a new data base: its number then is another's.
        path = f"/api/workflow/{row['workflow']}"
        found = self._json("GET", path).get("workflow")
        if isinstance(found, dict) and found.get("name") == row["name"] and found.get("status") in ("Running", "Stale"):
            self._json("POST", f"{path}/cancel")

    def _post(self, message: Message) -> None:
        form = {"msg": json.dumps(message, allow_nan=False), "timestamp": time.asctime(), "id": self.workflow}
        status, text = self._ask("POST", "/update_workflow_status", form=form)
        if status == 400:
            raise NotTakenError("it does not take a message of this kind")
        if (status, text) != (200, "ok"):
            raise PanoptesError(STRANGER)

    def _end(self) -> None:
        assert self.final
        outcome, last = self.final
        if outcome == "Cancelled":
            self._json("POST", f"/api/workflow/{self.workflow}/cancel")
        else:
            self._post(last)
        self.outcome = outcome

    def _json(self, method: str, path: str, query: Message | None = None) -> dict[str, Any]:
        """The object that it answers; empty where it knows no such workflow."""
        answer = self._ask(method, path, query=query)
        if answer == (404, ""):
            return {}
        with suppress(ValueError, RecursionError):
            value = json.loads(answer[1])
            if answer[0] == 200 and isinstance(value, dict):
                return value
        raise PanoptesError(STRANGER)

    def _ask(self, method: str, path: str, **what: Any) -> tuple[int, str]:
        left = self._time_left()
        if left <= 0:
            raise PanoptesError(self.error or "no time left")
        return self.server.ask(method, path, min(self.timeout, left), **what)

    def _time_left(self) -> float:
        return self.deadline - self.kept - time.monotonic() if self.closing.is_set() else self.timeout

    def _save(self, leave: bool = False) -> None:
        """Write logs/panoptes.json; a full disk costs this file, never the run."""
        with self.lock, suppress(OSError):
            if self.left:
                return
            self.left = leave
            write_json(
                self.file,
                {
                    "address": self.server.address,
                    "workflow": self.workflow,
                    "name": self.name,
                    "start": self.start.time,
                    "outcome": self.outcome,
                    "sent": self.sent,
                    "dropped": self.dropped,
                    "undelivered": self.given - self.sent - self.dropped if leave else self.queue.qsize(),
                    "last_error": self.error,
                    "unended": self.unended,
                },
            )


def workflow_name(start: Start) -> str:
    """A name that no other start has: the server forgets all of an earlier workflow of the same name."""
    when = datetime.fromisoformat(start.time).strftime("%Y%m%dT%H%M%SZ")
    rest = f"-{when}-{secrets.token_hex(2)}"
    return start.dataset[: NAME - len(rest)] + rest


def unended_workflows(file: Path, address: str) -> list[dict[str, Any]]:
    """Of the same server: workflows of earlier starts that were killed before they could say how they ended."""
    try:
        state = read_json(file)
        if state["address"] != address:
            return []
        rows = [*state["unended"], *([state] if state["workflow"] and not state["outcome"] else [])]
        return [{"workflow": int(row["workflow"]), "name": str(row["name"])} for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _reason(error: BaseException) -> str:
    """What the system said, such as "Connection refused"; never the whole text, which may hold more than it should."""
    found, seen = "the connection was cut", error
    for _ in range(10):  # causes
        if isinstance(seen, OSError) and seen.strerror:
            found = seen.strerror
        inner = [seen.__cause__, seen.__context__, *seen.args]
        seen = next((cause for cause in inner if isinstance(cause, BaseException)), seen)
    return found
