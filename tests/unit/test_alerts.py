"""Alerts on their way: Apprise itself against a webhook and a mail server on loopback, which fail in all their ways."""

import email
import errno
import io
import json
import logging
import os
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from speechmill.cli.main import main
from speechmill.errors import ConfigError
from speechmill.monitor import alerts, channels, record, watch
from speechmill.monitor.alerts import MAX_TRIES, Outbox, alerts_state, alerts_text
from speechmill.monitor.conditions import Cause
from speechmill.runs.plan import Plan
from speechmill.runs.supervisor import Supervisor

from ..patience import seconds
from .test_alert_conditions import account, failure, settings

SECRET, TOKEN = "hunter2-secret", "T0k3nInThePath"
NOW = 1_772_366_400.0


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No channels but the test's."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(channels.FILE, raising=False)
    monkeypatch.setenv(channels.URLS, "")
    monkeypatch.setattr(socket, "getfqdn", lambda *_: "localhost")  # smtplib's greeting, seconds where DNS is away


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def webhook(*faults, port=0):
    """A server that takes JSON; `faults` are what it does with the first requests: a status, "silent" or "dies"."""
    arrived, ahead, over = [], list(faults), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = ahead.pop(0) if ahead else 200
            if fault == "silent":
                over.wait(seconds(600))
            elif fault == "dies":
                self.wfile.write(b"HTTP/1.1 20")
            else:
                if fault == 200:
                    arrived.append(content)
                self.send_response(fault)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(f"no: {SECRET}".encode())

        def do_GET(self):  # where a redirect leads
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    server.arrived = arrived
    server.url = f"json://user:{SECRET}@127.0.0.1:{server.server_port}/{TOKEN}?rto=3&cto=5"
    try:
        yield server
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def mail_server(*faults):
    """A server that takes mail from one user; `faults` are its first answers."""
    arrived, ahead = [], list(faults)

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            if ahead:
                return ahead.pop(0)
            arrived.append(email.message_from_bytes(envelope.content))
            return "250 OK"

    def authenticate(server, session, envelope, mechanism, data):
        return AuthResult(success=data.password == SECRET.encode(), handled=False)

    controller = Controller(
        Handler(), "127.0.0.1", free_port(), authenticator=authenticate, auth_require_tls=False, auth_required=True
    )
    controller.start()
    controller.arrived = arrived
    to = f"127.0.0.1:{controller.port}/?to=me@example.org&from=run@example.org&mode=insecure"
    controller.url, controller.wrong = f"mailto://me:{SECRET}@{to}", f"mailto://me:{SECRET}x@{to}"
    try:
        yield controller
    finally:
        controller.stop()


def outbox(run_dir, *urls, said=None, **changes):
    """An outbox whose channels are these, as after a start."""
    os.environ[channels.URLS] = " ".join(urls)
    found, problems = channels.channels()
    assert problems == []
    return Outbox(run_dir, found, (said if said is not None else []).append, **{"pauses": (0.05,)} | changes)


def deliver(box, until):
    """Serve the channels again and again, as the watch does."""
    end = time.monotonic() + seconds(60)
    while time.monotonic() < end and not until():
        box.deliver()
        time.sleep(0.02)
    box.wait(seconds(60))
    assert until()


def cause(name="failed:enhance", title="demo: enhance failed", **changes):
    return Cause(**{"cause": name, "severity": "failure", "title": title, "body": "why", "measured": False} | changes)


def titles(server):
    return [message["title"] for message in server.arrived]


def kept(run_dir):
    return json.loads((run_dir / "logs" / "alerts.json").read_text())


@pytest.mark.parametrize("fault", [500, 302, "silent", "dies"])
def test_what_a_webhook_does_not_take_is_sent_again_until_it_does_and_then_no_more(tmp_path, fault):
    said = []
    with webhook(fault, fault) as server:
        box = outbox(tmp_path, server.url, said=said)
        box.take([cause(title="first")], NOW)
        box.take([cause(title="first"), cause("disk", "second")], NOW)
        deliver(box, lambda: box.waiting() == 0)
        box.deliver()
        box.wait(seconds(60))
        assert sorted(titles(server)) == ["first", "second"]
        assert server.arrived[0]["type"] == "failure"
    assert said[0].startswith("channel 1 (json): an alert did not arrive: ")
    assert len(said) == 1
    assert alerts_state(tmp_path)["trouble"] == []


def test_a_webhook_that_is_away_gets_all_when_it_comes_back_even_from_the_next_start(tmp_path):
    port = free_port()
    url = f"json://127.0.0.1:{port}/?rto=1&cto=5"
    box = outbox(tmp_path, url)
    box.take([cause(title="first")], NOW)
    deliver(box, lambda: alerts_state(tmp_path)["trouble"])
    assert "connection refused" in alerts_state(tmp_path)["trouble"][0]["error"]
    assert box.waiting() == alerts_state(tmp_path)["undelivered"] == 1
    box.wait(seconds(60))
    with webhook(port=port) as server:
        for _ in range(2):  # starts
            box = outbox(tmp_path, url)
            deliver(box, lambda box=box: box.waiting() == 0)
            box.take([cause(title="first")], NOW)  # holds still
        box.deliver()
        box.wait(seconds(60))
        assert titles(server) == ["first"]


def test_a_mail_arrives_once_as_plain_text_whatever_it_quotes(tmp_path):
    body = "  | <b>ส้ม</b> & *x* [y](http://z) \\n"
    with mail_server("451 later", "552 full") as server:
        box = outbox(tmp_path, server.url)
        box.take([cause(title="demo: ก failed", body=body)], NOW)
        deliver(box, lambda: box.waiting() == 0)
        (message,) = server.arrived
        assert str(email.header.make_header(email.header.decode_header(message["Subject"]))) == "demo: ก failed"
        (part,) = [part for part in message.walk() if not part.is_multipart()]
        assert part.get_content_type() == "text/plain"
        assert body.strip() in part.get_payload(decode=True).decode()


def test_a_broken_channel_keeps_nothing_from_the_others(tmp_path):
    said = []
    with webhook(*["silent"] * 50) as broken, webhook() as fine, mail_server() as mail:
        box = outbox(tmp_path, broken.url, fine.url, mail.url, said=said)
        box.take([cause(title=f"number {n}", name=f"failed:{n}") for n in range(3)], NOW)
        deliver(box, lambda: len(fine.arrived) == len(mail.arrived) == 3)
        assert titles(fine) == ["number 0", "number 1", "number 2"]
        assert box.waiting() == 3
        assert broken.arrived == []
        text = alerts_text(tmp_path)
    assert "channel 1 (json): waiting after" in text
    assert "channel 3 (mailto): sent" in text


def test_a_cause_is_told_once_while_it_holds_and_once_when_it_ends(tmp_path):
    with webhook() as server:
        box = outbox(tmp_path, server.url, clear_seconds=300)
        times = [(0, True), (15, True), (30, False), (45, True), (60, False), (330, False), (375, False), (390, False)]
        for after, holds in times:
            box.take([cause()] if holds else [], NOW + after)
            deliver(box, lambda: box.waiting() == 0)
        assert titles(server) == ["demo: enhance failed", "resolved: demo: enhance failed"]
        assert alerts_state(tmp_path)["open"] == []
        box.take([cause()], NOW + 500)
        deliver(box, lambda: box.waiting() == 0)
        assert titles(server)[2:] == ["demo: enhance failed"]
        for after in (510, 1000):  # the second time, it must be gone for twice as long
            box.take([], NOW + after)
        assert alerts_state(tmp_path)["open"][0]["cause"] == "failed:enhance"


def test_what_is_measured_counts_once_it_has_held_for_a_while(tmp_path):
    box = outbox(tmp_path, "json://127.0.0.1:1")
    low = cause("disk", measured=True)
    for after, found in ((0, [low]), (59, [low]), (60, []), (61, [low]), (120, [low])):
        box.take(found, NOW + after)
    assert not (tmp_path / "logs").exists()
    box.take([low], NOW + 121)
    assert [message["cause"] for message in kept(tmp_path)["messages"]] == ["disk"]


def test_events_are_told_once_per_start_and_never_resolved(tmp_path):
    url = "json://127.0.0.1:1"
    for _ in range(2):
        box = outbox(tmp_path, url)
        box.take([cause("started")], NOW)
        box.take([cause("started")], NOW + 1)
    box.take([cause("finished"), cause("started")], NOW + 2, "finished")
    assert [message["cause"] for message in kept(tmp_path)["messages"]] == ["started", "started", "finished"]


def test_a_finished_run_resolves_at_once_and_a_failed_one_leaves_open(tmp_path):
    for outcome, left in (("finished", []), ("failed", ["deadline", "disk"])):
        box = outbox(tmp_path / outcome, "json://127.0.0.1:1")
        box.take([cause("disk"), cause("deadline")], NOW)
        box.take([cause(outcome)], NOW + 1, outcome)
        assert [found["cause"] for found in alerts_state(tmp_path / outcome)["open"]] == left
        resolved = [
            message["title"] for message in kept(tmp_path / outcome)["messages"] if message["severity"] == "info"
        ]
        assert len(resolved) == (outcome == "finished")  # a deadline that has passed is not undone


def test_it_is_given_up_one_day_and_said(tmp_path, monkeypatch):
    said = []
    box = outbox(tmp_path, f"json://127.0.0.1:{free_port()}", pauses=(0,), said=said)
    monkeypatch.setattr(channels.Channel, "send", lambda *_: "not accepted")
    box.take([cause()], NOW)
    deliver(box, lambda: box.waiting() == 0)
    assert said[-1] == f'channel 1 (json): "demo: enhance failed" given up after {MAX_TRIES} tries: not accepted'
    assert sum(alerts.PAUSES) + (MAX_TRIES - len(alerts.PAUSES) - 1) * alerts.PAUSES[-1] > 0.9 * 86400


def test_the_outbox_is_bounded_and_what_waits_stays_longest(tmp_path, monkeypatch):
    monkeypatch.setattr(alerts, "MAX_MESSAGES", 10)
    box = outbox(tmp_path, "json://127.0.0.1:1")
    box.take([cause("disk", "waits", body="x" * 10**6)], NOW)
    for number in range(15):
        box.take([cause(f"failed:{number}")], NOW)
        box.state["messages"][-1]["channels"]["1"]["state"] = "sent"
    messages = kept(tmp_path)["messages"]
    assert len(messages) == 10
    assert messages[0]["title"] == "waits"
    assert len(messages[0]["body"]) < 5000


def test_alerts_arrive_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    said = []
    monkeypatch.setattr(alerts, "write_json", full)
    with webhook(500) as server:
        box = outbox(tmp_path, server.url, said=said)
        box.take([cause("disk", "no room")], NOW)
        deliver(box, lambda: box.waiting() == 0)
        assert titles(server) == ["no room"]
    assert sum("alerts are sent, but not noted" in words for words in said) == 1


def test_a_damaged_outbox_is_begun_anew_and_said(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "alerts.json").write_text("[1")
    said = []
    outbox(tmp_path, "json://127.0.0.1:1", said=said).take([cause()], NOW)
    assert "alerts.json cannot be read" in said[0]
    assert len(kept(tmp_path)["messages"]) == 1


@pytest.fixture
def logged(monkeypatch):
    """All that reaches the root logger, of whatever level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", logging.NOTSET)
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)


def test_no_secret_of_a_url_is_written_or_said(tmp_path, capfd, logged):
    said = []
    refused = f"json://user:{SECRET}@127.0.0.1:{free_port()}/{TOKEN}"
    logging.getLogger("heard").debug("something")
    with webhook(401, 500) as server, mail_server() as mail:
        box = outbox(tmp_path, server.url, refused, mail.wrong, f"tgram://123456789:{TOKEN}/{SECRET}/", said=said)
        channel = box.to.pop()  # of the real Telegram: not to be asked
        assert str(channel) == "channel 4 (tgram)"
        assert channel.hide(f"x {TOKEN} {SECRET} y") == "x *** *** y"
        box.take([cause()], NOW)
        deliver(box, lambda: len(server.arrived) == 1 and len(alerts_state(tmp_path)["trouble"]) == 2)
        os.environ[channels.URLS] = f"jsn://user:{SECRET}@host/{TOKEN} {SECRET}"
        found, problems = channels.channels()
        assert found == []
        assert [words.partition(":")[0] for words in problems] == ["alert channel 1 (jsn)", "alert channel 2 (?)"]
        assert main(["alerts", "--test", str(tmp_path)]) == 1
    trouble = {found["channel"]: found["error"] for found in alerts_state(tmp_path)["trouble"]}
    assert "user or password not accepted" in trouble["channel 3 (mailto)"]
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    shown = capfd.readouterr()
    assert "something" in logged.getvalue()
    for text in (written, shown.out, shown.err, logged.getvalue(), "".join([*said, *problems]), repr(box.to)):
        assert SECRET not in text
        assert TOKEN not in text


def test_urls_come_from_a_file_that_only_its_owner_reads(tmp_path, monkeypatch):
    monkeypatch.delenv(channels.URLS)
    assert channels.channels() == ([], [])
    file = tmp_path / "home" / ".config" / "speechmill" / "alerts"
    file.parent.mkdir(parents=True)
    file.write_text("# mine\n\njson://127.0.0.1:1/a\n  mailto://me:x@example.org\n")
    file.chmod(0o600)
    assert [str(channel) for channel in channels.channels()[0]] == ["channel 1 (json)", "channel 2 (mailto)"]
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=f"chmod 600 {file}"):
        channels.channels()
    monkeypatch.setenv(channels.FILE, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="cannot be read"):
        channels.channels()
    monkeypatch.setenv(channels.URLS, "")  # set and empty: none
    assert channels.channels() == ([], [])


def test_the_command_tries_the_channels_and_shows_what_was_told(tmp_path, monkeypatch, capsys):
    assert main(["alerts", "--test"]) == 1
    assert "no alert channel is configured" in capsys.readouterr().err
    with webhook() as server:
        monkeypatch.setenv(channels.URLS, server.url)
        assert main(["alerts", "--test"]) == 0
        assert titles(server) == ["speechmill: a test"]
        assert capsys.readouterr().out == "alert channel 1 (json): arrived\n"
        monkeypatch.setenv(channels.URLS, f"{server.url} json://127.0.0.1:{free_port()}")
        assert main(["alerts", "--test"]) == 1
        assert "alert channel 2 (json): did not arrive: " in capsys.readouterr().out
        box = outbox(tmp_path, server.url)
        box.take([cause("disk", "demo: little room on disk")], NOW)
        deliver(box, lambda: box.waiting() == 0)
    assert main(["alerts", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 open, 0 not delivered yet" in out
    assert "2026-03-01 12:00 UTC failure: demo: little room on disk\n    channel 1 (json): sent" in out


@pytest.fixture
def told(monkeypatch):
    """The account of the run that is watched, to be changed."""
    state = account(this_start="2999-01-01T00:00:00.000+00:00")
    monkeypatch.setattr(record, "record", lambda run_dir, ask_slurm: dict(state))
    return state


def begin(run_dir, url, say, **changes):
    os.environ[channels.URLS] = url
    return watch.watch_run(run_dir, lambda: {"alerts": settings(**changes)}, say, look_seconds=0.05)


def wait_for(condition):
    end = time.monotonic() + seconds(60)
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_a_run_is_watched_from_its_start_to_its_end(tmp_path, told):
    said = []
    with webhook() as server:
        watching = begin(tmp_path, server.url, said.append, disk_free_gb=None, free_inodes=None)
        wait_for(lambda: len(server.arrived) == 1)
        told["given_up"] = [failure()]
        wait_for(lambda: len(server.arrived) == 2)
        watching.stop("failed")
        assert titles(server)[0] == "demo: the run has started"
        assert titles(server)[1:] == ["demo: enhance failed (enhance b0)", "demo: the run has failed"]
    assert said == []


def test_where_nothing_or_a_part_was_to_be_done_no_end_is_told(tmp_path, told):
    with webhook() as server:
        part = begin(tmp_path, server.url, print, disk_free_gb=None, free_inodes=None)
        wait_for(lambda: len(server.arrived) == 1)
        told["state"] = "stopped"  # without publication
        part.stop("finished")
        told |= {"state": "finished", "this_start": "2001-01-01T00:00:00.000+00:00"}  # an earlier one
        begin(tmp_path, server.url, print, disk_free_gb=None, free_inodes=None).stop("finished")
        assert titles(server) == ["demo: the run has started"]


def test_without_a_channel_there_is_neither_thread_nor_file(tmp_path):
    assert begin(tmp_path, "", print) is None
    assert list(tmp_path.iterdir()) == []


def test_one_process_watches_and_another_takes_over_when_it_ends(tmp_path, told):
    with webhook() as server:
        first = begin(tmp_path, server.url, print, disk_free_gb=None)
        wait_for(lambda: len(server.arrived) == 1)
        second = begin(tmp_path, server.url, print, disk_free_gb=None)
        time.sleep(0.3)
        assert len(server.arrived) == 1
        first.stop("stopped")
        wait_for(lambda: len(server.arrived) == 2)  # its own start
        second.stop("stopped")


def test_a_dead_channel_delays_the_end_by_seconds_and_the_next_start_sends(tmp_path, told, monkeypatch):
    monkeypatch.setattr(watch, "END_SECONDS", 0.5)
    said = []
    with webhook(*["silent"] * 9) as server:
        url = server.url.replace("rto=3", "rto=60")
        watching = begin(tmp_path, url, said.append, disk_free_gb=None)
        wait_for(lambda: (tmp_path / "logs" / "alerts.json").exists())
        watching.stop("finished")  # before the channel answers, which it does once the server stops
    assert any("2 alerts are not delivered; the next start of the run sends them" in words for words in said)
    with webhook(port=server.server_port) as server:
        again = outbox(tmp_path, server.url)
        deliver(again, lambda: again.waiting() == 0)
        assert titles(server) == ["demo: the run has started", "demo: the run has finished"]


def test_no_error_of_the_watch_reaches_the_run_and_each_is_said_once(tmp_path, monkeypatch):
    looks = []

    def broken(run_dir, ask_slurm):
        looks.append(run_dir)
        raise RuntimeError("no such thing")

    monkeypatch.setattr(record, "record", broken)
    said = []
    watching = begin(tmp_path, "json://127.0.0.1:1", said.append)
    wait_for(lambda: len(looks) > 3)
    watching.stop("failed")
    assert said == ["alerts: RuntimeError: no such thing"]


def test_speechmill_run_tells_that_snakemake_failed_and_what_it_said_last(tmp_path, monkeypatch):
    script = tmp_path / "snakemake.py"
    script.write_text("import sys; print('WorkflowError: no such profile'); sys.exit(3)")
    plan = Plan(["python", str(script)], [], ["dataset=demo"], str(tmp_path), str(tmp_path / "run"), "x", False)
    with webhook() as server:
        monkeypatch.setenv(channels.URLS, server.url)
        assert Supervisor(plan).run() == 3
        (message,) = [found for found in server.arrived if found["title"] == "run: the run has failed"]
    assert "  | WorkflowError: no such profile" in message["message"]


def test_a_file_that_others_read_is_said_and_keeps_no_run(tmp_path, monkeypatch):
    file = tmp_path / "alerts"
    file.write_text("json://127.0.0.1:1")
    file.chmod(0o644)
    monkeypatch.delenv(channels.URLS)
    monkeypatch.setenv(channels.FILE, str(file))
    said = []
    assert watch.watch_run(tmp_path / "run", dict, said.append) is None
    assert said == [
        f"nobody is told of this run: others on this machine can read the alert channels in {file}: chmod 600 {file}"
    ]
