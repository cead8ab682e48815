"""A client of speechmill's REST API: a single file that needs only Python, to be copied into other projects.

    with Client("http://127.0.0.1:8571", token) as client:
        run = client.trigger("thai", {"rank": {"threshold": 0.6}})
        print(client.wait(run.run_id).published)

Calls that can be repeated without harm are retried while the server is unreachable, slow or busy. All other failures
raise `ApiError`, whose message says what to do.
"""

from __future__ import annotations

import email.message
import http.client
import json
import os
import random
import ssl
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Self, TypeVar

FINISHED_STATES = ("succeeded", "failed", "cancelled")
TIMEOUT = 60.0  # seconds without data after which a call fails; the stream of events is never silent for that long
PATIENCE = 120.0  # seconds during which a call is retried
LONGEST_PAUSE = 30.0
MOST_BYTES = 256_000_000  # of a response
REFUSED = (429, 503)  # the server did not process the request
AWAY = (502, 504)  # a proxy does not know whether the server processed the request
Json = dict[str, Any]
T = TypeVar("T")


class ApiError(Exception):
    """The server refused or failed, or is not a speechmill server. The message is for the user.

    `status` is the HTTP status (None: no response), `problem` has the RFC 9457 problem details.
    """

    def __init__(self, message: str, status: int | None = None, problem: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.status = status
        self.problem: Json = dict(problem or {})

    @property
    def active_run_id(self) -> str | None:
        """The active run of the corpus, if that is why a run was refused (409)."""
        return self.problem.get("active_run_id")


class NoAnswer(ApiError):
    """The server was unreachable or silent for the whole retry time."""


@dataclass(frozen=True)
class Triggered:
    """A run that was started."""

    status: str
    run_id: str
    dataset: str
    estimated_duration_hours: float | None


@dataclass(frozen=True)
class Summary:
    """A run in the list of runs."""

    run_id: str
    dataset: str
    state: str
    created: str
    started: str | None = None
    ended: str | None = None
    raw: Json = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Status:
    """Progress of a run. Times are ISO 8601 in UTC, `hours` are hours of audio, `raw` is the whole response."""

    run_id: str
    dataset: str
    state: str
    created: str
    started: str | None
    ended: str | None
    state_history: list[Json]
    run_dir: str | None = None
    estimated_duration_hours: float | None = None
    seconds_left: float | None = None
    stages: list[Json] = field(default_factory=list)
    rules: Json = field(default_factory=dict)
    retries: int | None = None
    last_error: Any = None
    clips: Any = None
    hours: Any = None
    published: Json | None = None
    alerts: Json | None = None
    restarts: int | None = None
    raw: Json = field(default_factory=dict, repr=False)

    @property
    def is_over(self) -> bool:
        return self.state in FINISHED_STATES

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"


@dataclass(frozen=True)
class Task:
    """A task: its last attempt and the number of earlier ones; `raw` has all fields."""

    task: str
    batch: str | None
    status: str
    start: str | None
    end: str | None
    duration: float | None
    retries: int | None = None
    host: str | None = None
    device: str | None = None
    slurm_job: str | None = None
    raw: Json = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Metrics:
    """Durations of the tasks of a run, and clips and hours of audio by stage and state."""

    run_id: str
    dataset: str
    tasks: list[Task]
    throughput: Json
    clips: Json
    hours: Json
    raw: Json = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Event:
    """An event of a run: `kind` is state, progress or job."""

    id: str
    kind: str
    data: Json


class Client:
    """A client of one server. Thread-safe; also a context manager.

    Args:
        url: address of the server, such as http://127.0.0.1:8571. Certificates are checked against the system's, or
            those in SSL_CERT_FILE.
        token: a bearer token.
        timeout: seconds without data after which a call fails.
        patience: seconds during which a call is retried.
    """

    def __init__(self, url: str, token: str, timeout: float = TIMEOUT, patience: float = PATIENCE):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ApiError("the server's address must be like https://login1:8571 or http://127.0.0.1:8571")
        if parts.username or parts.password:
            raise ApiError("the server's address must not contain a password; write the token to a file of its own")
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ApiError("the token is empty, or has invalid characters")
        self.url = url.rstrip("/")
        self.timeout, self.patience = timeout, patience
        self._token = token
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if parts.hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy would connect to its own loopback
        if parts.scheme == "https":
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context()))
        self._opener = urllib.request.build_opener(*handlers)

    @classmethod
    def from_environment(cls, url: str | None = None) -> Self:
        """The server of SPEECHMILL_API, unless `url` names one, with the token in the file SPEECHMILL_API_TOKEN_FILE."""
        url = url or os.environ.get("SPEECHMILL_API")
        file = os.environ.get("SPEECHMILL_API_TOKEN_FILE")
        if not url:
            raise ApiError("no server: set SPEECHMILL_API to its address, such as http://127.0.0.1:8571")
        if not file:
            raise ApiError("no token: write it to a file that only you can read; set SPEECHMILL_API_TOKEN_FILE to it")
        return cls(url, read_token(Path(file)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client. No connection stays open between calls."""
        self._opener.close()

    # Runs

    def trigger(self, dataset: str, config: Mapping[str, Any] | None = None, key: str | None = None) -> Triggered:
        """Start a run of a corpus.

        Args:
            dataset: name of the corpus.
            config: settings that override those of the corpus; the server allows some.
            key: idempotency key; a key starts at most one run (default: a new key for this call).

        Raises:
            ApiError: 409, `active_run_id` works on the corpus; 422, a setting is not allowed, or the key was used with
                other settings.
        """
        body: Json = {"dataset_name": dataset} | ({"config": dict(config)} if config else {})
        return self._begin("/pipeline/trigger", body, key)

    def rerank(
        self,
        run_id: str,
        profile: str | None = None,
        threshold: float | None = None,
        key: str | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Triggered:
        """Start a run on the corpus of `run_id` with another profile, threshold or weights of the profile's groups.

        Nothing is enhanced or scored again.
        """
        given = {"profile": profile, "threshold": threshold, "weights": weights and dict(weights)}
        body: Json = {name: value for name, value in given.items() if value is not None}
        return self._begin(f"{_run(run_id)}/rerank", body, key)

    def status(self, run_id: str) -> Status:
        """Progress of a run."""
        return _read(Status, self._get(f"/pipeline/status/{_id(run_id)}"))

    def metrics(self, run_id: str) -> Metrics:
        """Tasks, rates, clips and hours of a run."""
        answer = self._get(f"/pipeline/metrics/{_id(run_id)}")
        return _read(Metrics, answer, tasks=[_read(Task, task) for task in _list(answer, "tasks")])

    def runs(self, state: str | None = None, dataset: str | None = None, limit: int = 100) -> Iterator[Summary]:
        """All runs, the newest first, `limit` per request."""
        return self._pages("/pipeline/runs", "runs", Summary, state=state, dataset=dataset, limit=limit)

    def tasks(
        self, run_id: str, status: str | None = None, stage: str | None = None, limit: int = 500
    ) -> Iterator[Task]:
        """The tasks of a run."""
        return self._pages(f"{_run(run_id)}/tasks", "tasks", Task, status=status, stage=stage, limit=limit)

    def logs(self, run_id: str, name: str | None = None, tail: int | None = None, problems: bool = False) -> list[Json]:
        """Lines of the log of a batch or a stage, or of the run if no name is given."""
        only = "true" if problems else None
        return _list(self._get(f"{_run(run_id)}/logs", name=name, tail=tail, problems=only), "lines")

    def cancel(self, run_id: str, mode: str = "now") -> str:
        """Stop a run `now`, or `drain` it: running jobs finish, no new ones start. Returns its state."""
        return str(self._call("POST", f"{_run(run_id)}/cancel", {"mode": mode}).get("state"))

    def resume(self, run_id: str) -> str:
        """Resume a run that failed or was cancelled. Returns its state."""
        return str(self._call("POST", f"{_run(run_id)}/resume", again=False).get("state"))

    def wait(
        self,
        run_id: str,
        poll_seconds: float = 15.0,
        timeout: float | None = None,
        patience: float = 3600.0,
        on_state: Callable[[Status], object] | None = None,
    ) -> Status:
        """Wait until a run has ended, successfully or not.

        Args:
            run_id: the run.
            poll_seconds: seconds between two requests.
            timeout: seconds after which to stop waiting (`TimeoutError`; the run continues).
            patience: seconds for which the server may be unreachable.
            on_state: called with the status whenever its state has changed.
        """
        end = None if timeout is None else time.monotonic() + timeout
        heard, state = time.monotonic(), None
        while True:
            try:
                status = self.status(run_id)
            except NoAnswer:
                if time.monotonic() - heard > patience:
                    raise
            else:
                heard = time.monotonic()
                if on_state and status.state != state:
                    on_state(status)
                state = status.state
                if status.is_over:
                    return status
            left = poll_seconds if end is None else min(poll_seconds, end - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"run {run_id} has not ended after {timeout:.0f} s: {state}; it continues")
            time.sleep(left)

    def events(self, run_id: str, last_id: str | None = None, patience: float = 3600.0) -> Iterator[Event]:
        """Events of a run as they happen, until it ends. Resumes after a broken connection without a gap.

        Args:
            run_id: the run.
            last_id: id of the last event that was already received.
            patience: seconds for which the server may be unreachable.
        """
        pause, heard = 1.0, time.monotonic()
        while True:
            count, opened, is_over = 0, False, False
            try:
                stream = _Stream(self._open("GET", f"{_run(run_id)}/events", last_id=last_id))
                opened = True
                with stream.answer:
                    if stream.answer.status == 204:  # there are no more events
                        return
                    for event in stream:
                        last_id, count = event.id or last_id, count + 1
                        if event.kind == "state":  # only the last one counts: a resumed run has ended before
                            is_over = event.data.get("state") in FINISHED_STATES
                        yield event
                pause = stream.pause
            except ApiError as error:
                passing = isinstance(error, NoAnswer) or error.status in REFUSED + AWAY
                if not passing or time.monotonic() - heard > patience:
                    raise
                pause = error.problem.get("retry_after") or pause
            except (OSError, http.client.HTTPException):
                pass  # the connection broke or timed out
            if opened:
                heard = time.monotonic()
            if not count:
                with suppress(NoAnswer):
                    if self.status(run_id).is_over:
                        return
            if not is_over:  # otherwise the next request returns 204
                time.sleep(pause)

    # Before a run, and beside runs

    def validate(self, dataset: str, config: Mapping[str, Any] | None = None) -> Json:
        """A dry run: whether it is `valid`, the `problems`, and how many `jobs` of each rule would run."""
        return self._call("POST", "/pipeline/validate", body={"dataset_name": dataset, "config": dict(config or {})})

    def plan(self, dataset: str, config: Mapping[str, Any] | None = None) -> Json:
        """Estimate a run: each figure with its basis."""
        return self._call("POST", "/pipeline/plan", body={"dataset_name": dataset, "config": dict(config or {})})

    def corpora(self) -> list[Json]:
        """The corpora of the server, each with its active run."""
        answer: Any = self._get("/pipeline/corpora")
        return answer if isinstance(answer, list) else _list(answer, "corpora")

    def schedules(self) -> list[Json]:
        """All schedules."""
        answer: Any = self._get("/pipeline/schedules")
        return answer if isinstance(answer, list) else _list(answer, "schedules")

    def add_schedule(self, dataset: str, cron: str, config: Mapping[str, Any] | None = None) -> Json:
        """Schedule runs of a corpus: `cron` has five fields, or is a name such as @daily."""
        body = {"dataset_name": dataset, "cron": cron, "config": dict(config or {})}
        return self._call("POST", "/pipeline/schedules", body=body, again=False)

    def remove_schedule(self, schedule_id: str) -> None:
        """Remove a schedule. Runs that it started continue."""
        self._call("DELETE", f"/pipeline/schedules/{_id(schedule_id)}")

    def ready(self) -> Json:
        """Whether the server can start runs, and if not, why."""
        try:
            return self._get("/readyz", patience=0)
        except ApiError as error:
            if error.status == 503:
                return error.problem
            raise

    # HTTP

    def _begin(self, path: str, body: Json, key: str | None) -> Triggered:
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return _read(Triggered, self._call("POST", path, body=body, headers=headers))

    def _get(self, path: str, patience: float | None = None, **query: Any) -> Json:
        return self._call("GET", path, query, patience=patience)

    def _pages(self, path: str, name: str, kind: type[T], **query: Any) -> Iterator[T]:
        cursor = None
        while True:
            answer = self._get(path, cursor=cursor, **query)
            for entry in _list(answer, name):
                yield _read(kind, entry)
            before, cursor = cursor, answer.get("next_cursor")
            if not cursor or cursor == before:
                return

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
        again: bool = True,
        patience: float | None = None,
    ) -> Json:
        """The response to a call. `again`: the call is idempotent, so it is retried if it is unknown whether it arrived."""
        end = time.monotonic() + (self.patience if patience is None else patience)
        pause = 0.5
        while True:
            try:
                with self._open(method, path, query, body, headers) as answer:
                    data = answer.read(MOST_BYTES + 1)
                    if answer.length and len(data) <= MOST_BYTES:
                        raise http.client.IncompleteRead(data, answer.length)
                    return _decoded(data)
            except ApiError as error:
                known = error.status in REFUSED or isinstance(error.__cause__, ConnectionRefusedError)
                if not known and not (again and (error.status in AWAY or isinstance(error, NoAnswer))):
                    raise
                trouble, wait = error, error.problem.get("retry_after")
            except (OSError, http.client.HTTPException) as error:  # in the middle of the response
                trouble, wait = NoAnswer(f"{self.url} sent an incomplete response: {error!r}"), None
                if not again:
                    raise trouble from error
            wait = wait if wait is not None else pause * random.uniform(0.8, 1.2)
            if time.monotonic() + wait > end:
                raise trouble
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
        last_id: str | None = None,
    ) -> http.client.HTTPResponse:
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        address = self.url + path + ("?" + urllib.parse.urlencode(asked) if asked else "")
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(address, data, {"Authorization": f"Bearer {self._token}"}, method=method)
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if path.endswith("/events"):
            request.add_header("Accept", "text/event-stream")
        if last_id is not None:
            request.add_header("Last-Event-ID", last_id)
        try:
            return self._opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            raise _refusal(error, method, path) from None
        except urllib.error.URLError as error:
            cause = error.reason if isinstance(error.reason, BaseException) else error
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise ApiError(f"the certificate of {self.url} is not trusted ({cause.verify_message})") from None
            raise NoAnswer(f"{self.url} does not answer ({cause}); is the server running?") from cause
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{self.url} does not answer ({error!r}); is the server running?") from error


def read_token(path: Path) -> str:
    """Read the token from a file that only its owner can read."""
    try:
        found = path.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ApiError(f"{path}: others can read this token; run chmod 600 {path}, and request a new token")
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ApiError(f"{path}: the token cannot be read ({error})") from None
    return token


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would send the token to another server."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


class _Stream:
    """Server-sent events of a response. Drops an incomplete event, which the next connection sends again."""

    def __init__(self, answer: http.client.HTTPResponse):
        self.answer = answer
        self.pause = 1.0

    def __iter__(self) -> Iterator[Event]:
        name, last_id, data = "message", "", list[str]()
        for raw in iter(lambda: self.answer.readline(MOST_BYTES), b""):
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            key, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    yield Event(last_id, name, _decoded("\n".join(data).encode()))
                name, data = "message", []
            elif key == "data":
                data.append(value)
            elif key == "event":
                name = value
            elif key == "id" and value.isascii() and value.isprintable():
                last_id = value
            elif key == "retry" and value.isdecimal():
                self.pause = min(int(value) / 1000, LONGEST_PAUSE)


def _refusal(error: urllib.error.HTTPError, method: str, path: str) -> ApiError:
    with error, suppress(OSError, http.client.HTTPException, ValueError):
        problem = json.loads(error.read(1_000_000))
        if isinstance(problem, dict):
            text = problem.get("detail") or problem.get("msg") or problem.get("title") or error.reason
            return ApiError(str(text), error.code, problem | _retry_after(error.headers))
    if 300 <= error.code < 400:
        return ApiError(f"{method} {path}: the server redirects ({error.code}); use its final address", error.code)
    return ApiError(f"{method} {path}: {error.code} {error.reason}", error.code, _retry_after(error.headers))


def _retry_after(headers: email.message.Message) -> Json:
    value = headers.get("Retry-After") or ""
    return {"retry_after": min(float(value), 3600.0)} if value.isdecimal() else {}


def _decoded(data: bytes) -> Json:
    if not data:
        return {}
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, (dict, list)) or len(data) > MOST_BYTES:
        raise ApiError("the response is not from a speechmill server; is the address right?")
    return answer  # type: ignore[return-value]


def _read(kind: type[T], answer: Any, **made: Any) -> T:
    """A dataclass from a response, which may have further fields."""
    if not isinstance(answer, dict):
        raise ApiError(f"the server's response is not a {kind.__name__.lower()}; is it of another version?")
    known: Json = {}
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.name in made:
            known[entry.name] = made[entry.name]
        elif entry.name == "raw":
            known["raw"] = answer
        elif entry.name in answer:
            known[entry.name] = answer[entry.name]
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ApiError(f"the server's response has no {entry.name!r}; is it of another version?")
    return kind(**known)


def _list(answer: Any, name: str) -> list[Any]:
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise ApiError(f"the server's response has no list of {name}; is it of another version?")
    return found


def _id(run_id: str) -> str:
    return urllib.parse.quote(run_id, safe="")


def _run(run_id: str) -> str:
    return f"/pipeline/runs/{_id(run_id)}"
