"""Check every call before the application sees it: token, rate limits, size and JSON of the body.

The audit log, `audit.jsonl` in the state directory, records each change: the caller, the address and the outcome.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import math
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speechmill.api.auth import Caller, Tokens
from speechmill.api.problems import Problem
from speechmill.utils.times import utc_now

OPEN = ("/healthz", "/readyz")  # to everybody
READING = ("GET", "HEAD", "OPTIONS")
BODY_SECONDS = 30.0
LONGEST_NUMBER = 300  # digits: floating-point numbers hold larger ones no more
MOST_NAMES = 10_000  # that the rate limits remember
AUDIT_BYTES, AUDIT_FILES = 10_000_000, 5


class Buckets:
    """A token bucket per name: `burst` calls at once, then `rate` per second."""

    def __init__(self, rate: float, burst: float):
        self.rate, self.burst = rate, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str, now: float | None = None) -> float:
        """Take one call; 0, or the seconds until one is available."""
        now = time.monotonic() if now is None else now
        left, then = self._left.pop(name, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.rate)
        allowed = left >= 1
        self._left[name] = (left - allowed, now)
        while len(self._left) > MOST_NAMES:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.rate


def open_audit_log(path: Path) -> logging.Logger:
    """For one process, and all its threads."""
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    log = logging.Logger("speechmill.audit")
    log.addHandler(
        logging.handlers.RotatingFileHandler(path, maxBytes=AUDIT_BYTES, backupCount=AUDIT_FILES, encoding="ascii")
    )
    return log


def note_change(log: logging.Logger, who: str | None, origin: str | None, what: str, **about: Any) -> None:
    line = {"time": utc_now(), "who": who, "from": origin, "what": _cut(what)}
    line |= {name: _cut(value) if isinstance(value, str) else value for name, value in about.items()}
    log.info(json.dumps(line))  # ASCII escapes: line breaks in a value cannot forge another line


def _cut(text: str) -> str:
    """Limit the length, also of text where each character becomes a six-character escape."""
    return text[: 300 if text.isascii() and text.isprintable() else 50]


class Guard:
    """ASGI middleware. The caller is in `request.state.caller`."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        audit: logging.Logger,
        body_bytes: int,
        requests_per_second: float,
        changes_per_minute: float,
        failures_per_minute: float,
    ):
        self.app, self.tokens, self.audit, self.body_bytes = app, tokens, audit, body_bytes
        self.requests = Buckets(requests_per_second, max(3 * requests_per_second, 1))
        self.changes = Buckets(changes_per_minute / 60, max(changes_per_minute, 1))
        self.failures = Buckets(failures_per_minute / 60, 10)  # of an address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        status: int | None = None
        caller: Caller | None = None

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._note(scope, caller, status)  # before whoever asked knows of it
            await send(message)

        try:
            caller = self._caller(scope)
            self._count(scope, caller)
            body = await asyncio.wait_for(self._body(scope, receive), BODY_SECONDS)
            scope.setdefault("state", {})["caller"] = caller
            await self.app(scope, _replay(body, receive), note)
        except Problem as problem:
            await problem.response(scope["path"])(scope, receive, note)
        except TimeoutError:
            late = Problem(408, f"the body of the request did not come within {BODY_SECONDS:.0f} s: send it again")
            await late.response(scope["path"])(scope, receive, note)
        finally:
            if status is None:
                self._note(scope, caller, 500)

    def _caller(self, scope: Scope) -> Caller:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        caller = self.tokens.caller(given[0].decode("latin-1")) if len(given) == 1 else None
        if caller:  # whoever else shares the address and guesses: on a login node all users have the same one
            return caller
        address = _address(scope) or ""
        wait = self.failures.wait("loopback" if address.startswith("127.") else address)  # who is here has all of these
        if wait:
            raise _too_often(wait, "too many calls without a valid token came from this address")
        detail = "no valid token: send Authorization: Bearer TOKEN; speechmill serve --new-token makes one"
        raise Problem(401, detail, {"WWW-Authenticate": "Bearer"})

    def _count(self, scope: Scope, caller: Caller) -> None:
        wait = self.requests.wait(caller.name)
        if not wait and scope["method"] not in READING:
            wait = self.changes.wait(caller.name)
        if wait:
            raise _too_often(wait, "too many calls with this token")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        too_large = Problem(413, f"the body is larger than {self.body_bytes} bytes: no request needs as much")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self.body_bytes:
            raise too_large
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            if sum(map(len, parts)) > self.body_bytes:
                raise too_large
            if not message.get("more_body"):
                break
        body = b"".join(parts)
        kinds = [value.lower() for name, value in scope["headers"] if name == b"content-type"]
        if body and (not kinds or b"json" in kinds[0]):  # the first one counts, for the application, too
            check_json(body)
        return body

    def _note(self, scope: Scope, caller: Caller | None, status: int) -> None:
        # 429 changes nothing, and whoever asks that often would push all else out of the log.
        if status == 429 or (scope["method"] in READING and status not in (401, 403)):
            return
        who, what = caller.name if caller else None, f"{scope['method']} {scope['path']}"
        query = scope["query_string"].decode("latin-1")
        note_change(self.audit, who, _address(scope), what, query=query, status=status)


def _address(scope: Scope) -> str | None:
    return scope["client"][0] if scope["client"] else None


def check_json(body: bytes) -> Any:
    """The value of a body that is strict JSON.

    Raises:
        Problem: it is not.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_short)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # no halves of characters
        return value
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise Problem(400, f"the body is no valid JSON: {what}") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _short(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _too_often(wait: float, detail: str) -> Problem:
    seconds = math.ceil(wait)
    return Problem(429, f"{detail}: try again in {seconds} s", {"Retry-After": str(seconds)})


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
