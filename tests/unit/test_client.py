"""The client against a server that fails in every way that servers do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from speechmill import client as module
from speechmill.cli import remote
from speechmill.client import ApiError, Client, NoAnswer, read_token

from ..patience import seconds

RUN = "20261128120000-0123abcd"
TIMEOUT = seconds(3)  # of a request: only servers that keep silent take as long
TRIGGERED = {"status": "triggered", "run_id": RUN, "dataset": "thai", "estimated_duration_hours": None}


def status(state: str, **more: Any) -> dict[str, Any]:
    times = {"created": "2026-11-28T12:00:00Z", "started": None, "ended": None}
    return {"run_id": RUN, "dataset": "thai", "state": state, "state_history": [], **times, **more}


class Server(ThreadingHTTPServer):
    """Answers one request after the other with what its script says: (status, body, headers), or a function."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Any] = []
        self.asked: list[tuple[str, str, Message, bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.client = Client(self.url, "secret-token", timeout=TIMEOUT, patience=seconds(60))

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # connections that a test cuts


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.asked.append((self.command, self.path, self.headers, body))
        step = self.server.script.pop(0)
        if callable(step):
            step(self)
            return
        code, answer, headers = step
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *arguments: Any) -> None:
        pass


def stream(text: str) -> Callable[[Handler], None]:
    """Events, and then the connection ends."""

    def send(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(text.encode())

    return send


def silence(handler: Handler) -> None:
    handler.rfile.read(1)  # until the client has had enough


def cut(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut_in_answer(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"run_id": ')


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def problem(code: int, **more: Any) -> dict[str, Any]:
    return {"type": "about:blank", "title": "no", "status": code, "detail": f"what to do about {code}", **more}


@pytest.mark.parametrize("fault", [silence, cut, cut_in_answer, (502, b"<html>", {}), (504, b"", {})])
def test_a_trigger_whose_answer_is_lost_is_sent_again_under_the_same_key(server, fault):
    server.script = [fault, (200, TRIGGERED, {})]
    run = server.client.trigger("thai", {"rank": {"threshold": 0.6}})
    assert run == module.Triggered(**TRIGGERED)
    first, second = server.asked
    assert first[2]["Idempotency-Key"] == second[2]["Idempotency-Key"]
    assert json.loads(second[3]) == {"dataset_name": "thai", "config": {"rank": {"threshold": 0.6}}}
    assert second[2]["Authorization"] == "Bearer secret-token"


def test_two_triggers_have_two_keys_unless_one_is_given(server):
    server.script = [(200, TRIGGERED, {})] * 3
    server.client.trigger("thai")
    server.client.trigger("thai")
    server.client.trigger("thai", key="mine")
    keys = [headers["Idempotency-Key"] for _, _, headers, _ in server.asked]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


@pytest.mark.parametrize("fault", [silence, cut, cut_in_answer, (502, b"", {})])
def test_what_may_not_be_done_twice_is_not_sent_again(server, fault):
    server.script = [fault, (202, {"run_id": RUN, "state": "queued"}, {})]
    with pytest.raises(ApiError):
        server.client.resume(RUN)
    assert len(server.asked) == 1


def test_a_server_that_says_to_wait_is_waited_for_as_long_as_it_says(server):
    server.script = [(429, problem(429), {"Retry-After": "2"}), (202, {"run_id": RUN, "state": "queued"}, {})]
    begin = time.monotonic()
    assert server.client.resume(RUN) == "queued"
    assert time.monotonic() - begin >= 2


def test_a_wait_beyond_patience_is_an_error_at_once(server):
    server.script = [(429, problem(429), {"Retry-After": "3000"})]
    with pytest.raises(ApiError, match="what to do about 429") as error:
        server.client.status(RUN)
    assert error.value.status == 429


def test_a_busy_corpus_names_the_run_that_works_on_it(server):
    server.script = [(409, problem(409, active_run_id=RUN), {"Content-Type": "application/problem+json"})]
    with pytest.raises(ApiError, match="what to do about 409") as error:
        server.client.trigger("thai")
    assert (error.value.status, error.value.active_run_id) == (409, RUN)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422, 500])
def test_problem_details_are_the_message_and_are_not_tried_again(server, code):
    server.script = [(code, problem(code, errors=["rank.thresh"]), {})]
    with pytest.raises(ApiError, match=f"what to do about {code}") as error:
        server.client.trigger("thai")
    assert error.value.status == code
    assert error.value.problem["errors"] == ["rank.thresh"]
    assert len(server.asked) == 1


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b'"text"', b"{", b"[1]", b"{}", b'{"run_id": 1}'])
def test_an_answer_of_something_else_is_one_clear_error(server, answer):
    server.script = [(200, answer, {})]
    with pytest.raises(ApiError, match=r"is the address right|of another version"):
        server.client.status(RUN)


def test_the_token_goes_nowhere_else(server):
    with Server() as other:
        server.script = [(307, b"", {"Location": f"{other.url}/pipeline/status/{RUN}"})]
        with pytest.raises(ApiError, match="redirects") as error:
            server.client.status(RUN)
        assert other.asked == []
    assert "secret-token" not in f"{error.value!r} {error.value.problem} {vars(error.value)}"


def test_a_proxy_of_the_site_is_not_asked_for_this_machine(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.script = [(200, status("running"), {})]
    assert Client(server.url, "t").status(RUN).state == "running"


def test_ids_and_names_cannot_leave_their_place_in_the_address(server):
    server.script = [(404, problem(404), {}), (200, {"lines": []}, {})]
    with pytest.raises(ApiError):
        server.client.status("../../metrics?x=1")
    server.client.logs(RUN, "a&tail=9", tail=5)
    assert server.asked[0][1] == "/pipeline/status/..%2F..%2Fmetrics%3Fx%3D1"
    assert server.asked[1][1] == f"/pipeline/runs/{RUN}/logs?name=a%26tail%3D9&tail=5"


def test_no_server_is_waited_for_and_then_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    begin = time.monotonic()
    with pytest.raises(NoAnswer, match="is the server running"):
        Client(url, "t", patience=1.5).resume(RUN)
    assert time.monotonic() - begin > 0.3  # it was tried again: nothing had arrived


def test_waiting_goes_through_every_state_and_through_a_restart_of_the_server(server):
    away = [cut] * 2
    answers = [(200, status(state), {}) for state in ("queued", "running", "running", "lost", "running", "failed")]
    server.script = [*answers[:2], *away, *answers[2:]]
    states = []
    done = server.client.wait(RUN, poll_seconds=0.01, on_state=lambda found: states.append(found.state))
    assert states == ["queued", "running", "lost", "running", "failed"]
    assert done.is_over
    assert not done.succeeded


def test_waiting_ends_with_its_time_though_the_run_goes_on(server):
    server.script = [(200, status("running"), {})] * 100
    with pytest.raises(TimeoutError, match="running; it continues"):
        server.client.wait(RUN, poll_seconds=0.05, timeout=0.3)


def test_waiting_does_not_bear_a_server_that_refuses(server):
    server.script = [(401, problem(401), {})]
    with pytest.raises(ApiError, match="what to do about 401"):
        server.client.wait(RUN)


def test_a_cut_stream_of_events_goes_on_after_the_last_event_that_was_whole(server):
    server.script = [
        stream(
            ': hello\nretry: 10\n\nid: 1\nevent: state\ndata: {"state": "running"}\n\nid: 2\nevent: job\ndata: {"a"'
        ),
        cut,
        (200, status("running"), {}),  # after a stream without any event the client looks
        stream('id: 2\r\nevent: job\r\ndata: {"a":\r\ndata: 1}\r\n\r\n'),
        stream('id: 3\nevent: state\ndata: {"state": "succeeded"}\n\n'),
        (204, b"", {}),
    ]
    events = list(server.client.events(RUN))
    assert [(event.id, event.kind, event.data) for event in events] == [
        ("1", "state", {"state": "running"}),
        ("2", "job", {"a": 1}),
        ("3", "state", {"state": "succeeded"}),
    ]
    streams = [headers for _, path, headers, _ in server.asked if path.endswith("/events")]
    assert [headers.get("Last-Event-ID") for headers in streams] == [None, "1", "1", "2", "3"]


def test_the_events_of_a_run_that_was_resumed_go_on_after_its_first_end(server):
    history = "".join(
        f'id: {n}\nevent: state\ndata: {{"state": "{state}"}}\n\n'
        for n, state in enumerate(["queued", "running", "failed", "queued", "running"])
    )
    server.script = [stream(history), stream('id: 5\nevent: state\ndata: {"state": "succeeded"}\n\n'), (204, b"", {})]
    assert [event.data["state"] for event in server.client.events(RUN)] == [
        *("queued", "running", "failed", "queued", "running", "succeeded")
    ]
    assert server.script == []


def test_a_stream_that_goes_silent_is_taken_up_again(server):
    def silent(handler: Handler) -> None:
        stream('id: 7\nevent: progress\ndata: {"done": 1}\n\n')(handler)
        silence(handler)

    server.script = [silent, stream('id: 8\nevent: state\ndata: {"state": "cancelled"}\n\n'), (204, b"", {})]
    assert [event.id for event in server.client.events(RUN, last_id="6")] == ["7", "8"]
    assert [headers["Last-Event-ID"] for _, _, headers, _ in server.asked] == ["6", "7", "8"]


def test_a_stream_of_a_run_that_is_over_ends(server):
    server.script = [stream(""), (200, status("failed"), {}), (204, b"", {})]
    assert list(server.client.events(RUN)) == []
    assert list(server.client.events(RUN)) == []
    assert server.script == []


def test_a_stream_of_an_unknown_run_is_an_error(server):
    server.script = [(404, problem(404), {})]
    with pytest.raises(ApiError, match="what to do about 404"):
        list(server.client.events(RUN))


def test_lists_are_read_to_their_end_page_by_page(server):
    def page(numbers: range, cursor: str | None) -> tuple[int, dict[str, Any], dict[str, str]]:
        runs = [{"run_id": str(n), "dataset": "thai", "state": "failed", "created": "t", "new": n} for n in numbers]
        return 200, {"runs": runs, "next_cursor": cursor}, {}

    server.script = [page(range(2), "a/b="), page(range(2, 4), "c"), page(range(4, 5), None)]
    runs = list(server.client.runs(state="failed", limit=2))
    assert [run.run_id for run in runs] == ["0", "1", "2", "3", "4"]
    assert runs[3].raw["new"] == 3
    assert [path for _, path, _, _ in server.asked] == [
        "/pipeline/runs?state=failed&limit=2",
        "/pipeline/runs?cursor=a%2Fb%3D&state=failed&limit=2",
        "/pipeline/runs?cursor=c&state=failed&limit=2",
    ]


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("127.0.0.1:8571", "t"),
        ("ftp://x", "t"),
        ("http://u:p@x", "t"),
        ("http://x?a=b", "t"),
        ("http://x", ""),
        ("http://x", "a b"),
        ("http://x", "a\nX-Other: b"),
        ("http://x", "กข"),
    ],
)
def test_addresses_and_tokens_that_cannot_be_right_are_refused(url, token):
    with pytest.raises(ApiError) as error:
        Client(url, token)
    assert "u:p" not in str(error.value)


@pytest.mark.parametrize(("mode", "fine"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False)])
def test_a_token_that_others_can_read_is_not_used(tmp_path, mode, fine):
    file = tmp_path / "token"
    file.write_text("abc\n")
    file.chmod(mode)
    if fine:
        assert read_token(file) == "abc"
    else:
        with pytest.raises(ApiError, match="chmod 600"):
            read_token(file)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["logs", RUN, "demo"], True),
        (["logs", "demo"], False),
        (["status", "--watch", "demo"], False),
        (["run", "demo"], True),
        (["status"], True),
        (["report", RUN], False),
    ],
)
def test_a_run_that_is_named_by_its_id_is_one_of_the_server(tmp_path, monkeypatch, given, meant):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not remote.is_meant(given)
    monkeypatch.setenv("SPEECHMILL_API", "http://127.0.0.1:1")
    assert remote.is_meant(given) == meant


def test_the_environment_names_server_and_token(tmp_path, monkeypatch):
    monkeypatch.delenv("SPEECHMILL_API", raising=False)
    monkeypatch.delenv("SPEECHMILL_API_TOKEN_FILE", raising=False)
    with pytest.raises(ApiError, match="SPEECHMILL_API "):
        Client.from_environment()
    monkeypatch.setenv("SPEECHMILL_API", "http://a:1/")
    with pytest.raises(ApiError, match="SPEECHMILL_API_TOKEN_FILE"):
        Client.from_environment()
    monkeypatch.setenv("SPEECHMILL_API_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ApiError, match="cannot be read"):
        Client.from_environment()
    (tmp_path / "token").write_text("abc")
    (tmp_path / "token").chmod(0o600)
    assert Client.from_environment().url == "http://a:1"
    assert Client.from_environment("http://b:2").url == "http://b:2"


def test_the_file_works_alone_without_any_package(tmp_path, server):
    shutil.copy(module.__file__, tmp_path / "speechmill_client.py")
    server.script = [(200, status("running", seconds_left=60), {})]
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import speechmill_client as c; "
    code += f"print(c.Client({server.url!r}, 'secret-token').status({RUN!r}).seconds_left)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert (done.stdout, done.stderr) == ("60\n", "")
