"""Panoptes: what the real server makes of what it is told, and servers that are away, slow, wrong or hostile."""

import json
import logging
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from speechmill.errors import ConfigError
from speechmill.monitor import panoptes
from speechmill.monitor.panoptes import Client, Server, find_server
from speechmill.monitor.panoptes_messages import fitting, fitting_values
from speechmill.runlog.snakemake_events import Start
from speechmill.storage.files import read_json

from ..panoptes import Panoptes as RealPanoptes
from ..patience import seconds
from ..runs import wait_for

LOG = logging.getLogger("test_panoptes")
SECRET = "kSa7-geheim"
QUICK = (0.01,)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    server = RealPanoptes(tmp_path_factory.mktemp("panoptes"))
    yield server
    server.close()


class Snakemake:
    """Says to a hook what Snakemake says of its jobs."""

    def __init__(self, run_dir, address, retries=0, header="", **limits):
        rules = dict.fromkeys(("enhance", "report"), retries)
        self.start = Start(run_dir, "demo", rules)
        self.hook = panoptes.Panoptes(find_server(address, header), self.start, LOG, **limits)

    def say(self, event=None, words="", **fields):
        record = logging.LogRecord("snakemake", logging.INFO, "", 0, words, (), None)
        vars(record).update(fields | ({"event": event} if event else {}))
        self.hook.tell(record)

    def begin(self, job, rule="enhance", **fields):
        given = {
            "input": ["in"],
            "output": ["out"],
            "log": ["logs/x.log"],
            "wildcards": {"batch": "b1"},
            "local": False,
        }
        self.say(LogEvent.JOB_INFO, jobid=job, rule_name=rule, is_checkpoint=False, **(given | fields))

    def finish(self, job):
        self.say(LogEvent.JOB_FINISHED, job_id=job)

    def fail(self, job):
        self.say(LogEvent.JOB_ERROR, jobid=job)

    def progress(self, done, total):
        self.say(LogEvent.PROGRESS, done=done, total=total)

    def end(self, outcome):
        self.start.end(outcome)
        self.hook.close()

    def settle(self):
        """Wait until the server has all that was said."""
        client = self.hook.client
        wait_for(lambda: client.sent == client.given and client.workflow)
        return client.workflow

    @property
    def state(self):
        return read_json(self.start.run_dir / "logs" / "panoptes.json")


def shown(real, number):
    return real.get(f"/api/workflow/{number}")["workflow"]


def test_a_run_that_succeeds_is_done_at_its_end_and_not_before(real, tmp_path):
    run = Snakemake(tmp_path, real.address)
    run.say(LogEvent.RUN_INFO, stats={"manifest": 1, "total": 2})
    run.begin(1)
    run.finish(1)
    run.progress(2, 2)  # the checkpoint: there will be more
    number = run.settle()
    assert (shown(real, number)["status"], shown(real, number)["jobs_done"]) == ("Running", 1)
    run.begin(2)
    assert real.jobs(run.settle())[2]["status"] == "Running"
    run.finish(2)
    run.progress(3, 7)  # --until: no more than these
    run.end("succeeded")
    last = shown(real, number)
    assert (last["status"], last["jobs_done"], last["jobs_total"]) == ("Done", 3, 3)
    assert [job["status"] for job in real.jobs(number).values()] == ["Done", "Done"]
    assert run.state["outcome"] == "Done"
    assert (run.state["workflow"], run.state["name"]) == (number, last["name"])
    assert (run.state["sent"], run.state["dropped"], run.state["undelivered"]) == (8, 0, 0)


def test_a_failed_attempt_that_is_repeated_does_not_paint_the_run_red(real, tmp_path):
    run = Snakemake(tmp_path, real.address, retries=1)
    run.begin(1)
    run.fail(1)
    number = run.settle()
    assert shown(real, number)["status"] == "Running"
    run.begin(1)
    run.settle()
    (job,) = real.jobs(number).values()
    assert (job["name"], job["status"]) == ("enhance, attempt 2", "Running")
    run.fail(1)
    run.settle()
    assert real.jobs(number)[1]["status"] == "Error"
    assert shown(real, number)["status"] == "Error"
    run.end("failed")
    assert shown(real, number)["status"] == "Error"
    assert run.state["outcome"] == "Error"


def test_a_run_that_is_stopped_is_cancelled_and_none_of_its_jobs_seems_to_run(real, tmp_path):
    run = Snakemake(tmp_path, real.address, retries=1)
    run.begin(1)
    run.fail(1)  # would be repeated
    run.begin(2)
    run.say(words="Terminating processes on user request, this might take some time.")
    run.say(LogEvent.ERROR, words="At least one job did not complete successfully.", exception="WorkflowError")
    run.end("failed")  # so Snakemake calls it
    number = run.state["workflow"]
    assert shown(real, number)["status"] == "Cancelled"
    assert {job["status"] for job in real.jobs(number).values()} == {"Error"}


def test_a_run_that_an_error_of_the_workflow_ends_has_failed(real, tmp_path):
    run = Snakemake(tmp_path, real.address)
    run.say(LogEvent.ERROR, words="the batches do not balance", exception="WorkflowError")
    run.end(None)
    assert shown(real, run.state["workflow"])["status"] == "Error"


def test_a_start_cancels_an_earlier_one_that_was_killed_and_no_other(real, tmp_path):
    killed = Snakemake(tmp_path, real.address)
    killed.begin(1)
    number = killed.settle()
    wait_for(lambda: killed.state["workflow"])
    other = Snakemake(tmp_path / "other", real.address)
    other.begin(1)
    others = other.settle()
    again = Snakemake(tmp_path, real.address)
    again.begin(1)
    again.end("succeeded")
    assert shown(real, number)["status"] == "Cancelled"
    assert real.jobs(number)  # its history stays
    assert again.state["workflow"] not in (number, others)
    # A data base that was begun anew: the number is another's now.
    file = tmp_path / "logs" / "panoptes.json"
    file.write_text(json.dumps(again.state | {"workflow": others, "outcome": None}))
    Snakemake(tmp_path, real.address).end("succeeded")
    assert shown(real, others)["status"] == "Running"
    other.end("succeeded")
    assert shown(real, others)["status"] == "Done"


def test_slurms_number_stands_on_the_page_of_the_job(real, tmp_path):
    run = Snakemake(tmp_path, real.address)
    run.begin(7)
    run.say(words="Job 7 has been submitted with SLURM jobid 4711 (log: /x/4711.log).")
    (job,) = real.jobs(run.settle()).values()
    assert job["log"] == ["Slurm job 4711", "logs/x.log"]
    run.end("succeeded")


def test_rows_fit_the_servers_columns_and_can_be_read_back(real, tmp_path):
    run = Snakemake(tmp_path, real.address)
    names = [f"results/demo/ตัวอย่าง/{number:05d}.parquet" for number in range(10_000)]
    hostile = ["'\"\\\n<script>alert(1)</script>{{7*7}}\x00\udce9", "x" * 3000, "", "__import__('os').abort()"]
    run.begin(1, input=names, output=hostile, log=["/very/long" * 30 + "/end.log"], wildcards={"a": "w" * 99, "b": "1"})
    run.begin(2, rule="a_rule_with_a_name_that_is_much_too_long_for_it", input=[], output=["\\'\"" * 400], log=[])
    jobs = real.jobs(run.settle())
    assert jobs[1]["input"][:2] == names[:2]
    assert jobs[1]["input"][-1] == f"... and {10_000 - len(jobs[1]['input']) + 1} more"
    assert jobs[1]["output"][0].startswith("'\"\\\n<script>")
    assert jobs[1]["log"][0].endswith("/end.log")
    assert jobs[1]["wildcards"] == {"b": "1"}
    assert jobs[1]["shell_command"] is None
    for table in ("workflows", "workflow_jobs"):
        for column, (used, most) in real.column_lengths(table).items():
            assert used <= most, (table, column)
    page = real.address + f"/workflow/{run.hook.client.workflow}/job/1"
    with panoptes.requests.get(page, timeout=seconds(30)) as answer:
        assert "<script>alert" not in answer.text
        assert "&lt;script&gt;" in answer.text
    run.end("succeeded")


@pytest.mark.parametrize("length", [60, 100, 500])
def test_what_fits_is_shown_whole_and_what_does_not_is_counted(length):
    texts = [f"a/{number}" for number in range(200)]
    for count in (0, 1, 2, 3, 7, 8, 9, 50, 51, 199):
        kept = fitting(texts[:count], length)
        assert len(repr(kept)) <= length
        if len(repr(texts[:count])) <= length - 20:
            assert kept == texts[:count]
        elif kept != texts[:count]:
            assert kept[:-1] == texts[: len(kept) - 1]
            assert kept[-1] == f"... and {count - len(kept) + 1} more"
    assert fitting_values({"a": "x" * length, "b": 3}, length) == {"b": "3"}


class Loopback:
    """A server that answers as Panoptes does, or as `fault` says: it gets the handler, and returns whether that was all."""

    def __init__(self, fault=lambda handler: False):
        self.fault, self.seen, self.headers, self.created = fault, [], [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                length = int(self.headers.get("Content-Length") or 0)
                self.form = {name: values[0] for name, values in parse_qs(self.rfile.read(length).decode()).items()}
                outer.seen.append((self.command, urlsplit(self.path).path))
                outer.headers.append(self.headers)
                if outer.fault(self):
                    return
                if self.path.startswith("/create_workflow"):
                    self.answer(json.dumps(outer.create(self)))
                elif self.path == "/api/workflows":
                    self.answer(json.dumps({"workflows": outer.created}))
                elif self.path == "/update_workflow_status":
                    outer.messages.append(json.loads(self.form["msg"]))
                    self.answer("ok", kind="text/html")
                else:
                    self.answer("{}")

            do_POST = do_GET

            def answer(self, text, status=200, kind="application/json", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                with suppress(OSError):  # the client no longer waits
                    self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.messages = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def create(self, handler):
        name = parse_qs(urlsplit(handler.path).query)["workflow_id"][0]
        self.created.append({"id": len(self.created) + 1, "name": name, "status": "Running"})
        return self.created[-1]


@pytest.fixture
def loopback():
    servers = []

    def start(fault=lambda handler: False):
        servers.append(Loopback(fault))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def whole_run(run):
    run.say(LogEvent.RUN_INFO, stats={"total": 2})
    run.begin(1)
    run.finish(1)
    run.progress(1, 1)
    run.end("succeeded")


def cut(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def answers(text, status=200, kind="text/html", **headers):
    def fault(handler):
        handler.answer(text, status, kind, **headers)
        return True

    return fault


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"[" * 65536)
    except OSError:
        return True


WRONG = {
    "its errors are web pages with status 200": (answers("<html>not found</html>"), "not Panoptes"),
    "status 500": (answers("", 500), "status 500"),
    "cut connections": (cut, "Connection reset|cut"),
    "another address": (answers("", 302, Location="http://127.0.0.1:1/"), "another address"),
    "a proxy that wants to know who asks": (answers("", 401), "SPEECHMILL_PANOPTES_HEADER"),
    "no JSON": (answers("[" * 100_000, kind="application/json"), "not Panoptes"),
    "errors as web pages, once there is a workflow": (
        lambda handler: handler.command == "POST" and answers("<html>not found</html>")(handler),
        "not Panoptes",
    ),
    "JSON of something else": (answers('{"id": true, "name": null}', kind="application/json"), "not Panoptes"),
    "an answer without end": (endless, "no end"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_server_is_told_once_and_costs_the_run_nothing(what, loopback, tmp_path, caplog):
    fault, words = WRONG[what]
    run = Snakemake(tmp_path, loopback(fault).address, pauses=QUICK)
    run.begin(0)
    wait_for(lambda: caplog.records)
    whole_run(run)
    first, last = (record.getMessage() for record in caplog.records if record.levelname != "INFO")
    assert "The run goes on" in first
    assert panoptes.re.search(words, first), first
    assert "of 7 messages 0 were dropped and 7 not delivered" in last
    assert run.state["outcome"] is None
    assert (run.state["sent"], run.state["dropped"], run.state["undelivered"]) == (0, 0, 7)
    assert panoptes.re.search(words, run.state["last_error"])


def test_a_server_that_is_away_is_no_trouble(tmp_path, caplog):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        run = Snakemake(tmp_path, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        whole_run(run)
    assert "Connection refused" in caplog.text


def test_a_server_that_never_answers_costs_5_seconds_at_the_end_and_nothing_before(loopback, tmp_path, caplog):
    over = threading.Event()
    run = Snakemake(tmp_path, loopback(lambda handler: over.wait(seconds(600))).address, room=1000)
    for job in range(5000):
        run.begin(job)  # the server answers none of them before `over`
    run.start.asked_to_stop = True
    begin = time.monotonic()
    run.hook.close()
    assert time.monotonic() - begin > 4
    over.set()
    assert run.state["dropped"] >= 4000
    assert "were dropped" in caplog.text
    assert run.hook.client.queue.qsize() <= 1001


def test_at_the_end_a_slow_server_is_told_first_of_all_how_it_ended(loopback, tmp_path):
    server = loopback(lambda handler: time.sleep(0.3))
    run = Snakemake(tmp_path, server.address)
    for job in range(30):
        run.begin(job)
        run.finish(job)
    run.progress(30, 30)
    run.end("succeeded")
    assert server.messages[-1] == {"level": "progress", "done": 30, "total": 30}
    assert run.state["outcome"] == "Done"
    assert 0 < run.state["undelivered"] < 60
    assert 0 <= len(server.messages) - run.state["sent"] <= 1  # one took effect too late to be known


def test_what_happened_while_the_server_was_away_is_told_once_it_is_back(loopback, tmp_path, caplog):
    faults = iter([False, False, True, True, False, True])
    server = loopback(lambda handler: next(faults, False) and answers("", 503)(handler))
    run = Snakemake(tmp_path, server.address, pauses=QUICK)
    for job in range(5):
        run.begin(job)
        run.finish(job)
    run.settle()
    run.progress(5, 5)
    run.end("succeeded")
    told = [(message["level"], message.get("jobid")) for message in server.messages]
    assert told[:-2] == [(kind, job) for job in range(5) for kind in ("job_info", "job_finished")]
    assert run.state["undelivered"] == 0
    assert run.state["outcome"] == "Done"
    assert [record.levelname for record in caplog.records if record.levelname != "INFO"] == ["WARNING"]


def test_a_lost_answer_leaves_no_second_workflow(loopback, tmp_path):
    server = loopback()

    def lose_the_first(handler):
        if handler.path.startswith("/create") and not server.created:
            server.create(handler)
            return cut(handler)
        return False

    server.fault = lose_the_first
    run = Snakemake(tmp_path, server.address, pauses=QUICK)
    run.begin(1)
    run.settle()
    run.end("succeeded")
    assert [row["id"] for row in server.created] == [1]
    assert run.state["workflow"] == 1


def test_a_message_that_the_server_does_not_take_is_not_repeated(loopback, tmp_path):
    def refuse(handler):
        taken = "job_finished" not in handler.form.get("msg", "")
        return not taken and answers('{"errors": {}}', 400)(handler)

    server = loopback(refuse)
    run = Snakemake(tmp_path, server.address)
    run.begin(1)
    run.finish(1)
    run.begin(2)
    wait_for(lambda: len(server.messages) == 2)
    run.end("succeeded")
    assert [message["level"] for message in server.messages] == ["job_info", "job_info", "job_error", "progress"]
    assert run.state["undelivered"] == 1


def test_the_header_goes_to_this_server_alone_and_is_shown_nowhere(loopback, tmp_path, monkeypatch, caplog, capfd):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    elsewhere = loopback()
    faults = iter([answers("", 307, Location=elsewhere.address + "/create_workflow"), answers("", 403)])
    server = loopback(lambda handler: next(faults, lambda handler: False)(handler))
    run = Snakemake(
        tmp_path / "run",
        server.address.replace("//", f"//someone:{SECRET}@"),
        header=f"Authorization: Bearer {SECRET}",
        pauses=QUICK,
    )
    run.begin(1)
    run.settle()
    run.end("succeeded")
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
    assert elsewhere.seen == []
    shown = [*capfd.readouterr(), caplog.text, repr(run.hook.client.server), str(server.seen), str(server.messages)]
    written = [file.read_text() for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(written) == 1
    assert not [text for text in [*shown, *written] if SECRET in text or "someone" in text]


def test_user_and_password_of_the_address_are_sent_as_such(loopback, tmp_path):
    server = loopback()
    found = find_server(server.address.replace("//", "//som%40one:p%3Aw@") + "/panoptes/")
    assert found.address == server.address + "/panoptes"
    Client(found, Start(tmp_path, "demo"), LOG).close("Cancelled", {})
    assert server.headers[0]["Authorization"] == "Basic c29tQG9uZTpwOnc="
    assert server.seen[0] == ("GET", "/panoptes/create_workflow")


@pytest.mark.parametrize(
    ("address", "header"),
    [
        (f"ftp://{SECRET}", ""),
        (f"{SECRET}", ""),
        ("http://", ""),
        (f"http://a:{SECRET}", ""),
        (f"http://host/?{SECRET}", ""),
        (f"http://host/\n{SECRET}", ""),
        ("http://host", SECRET),
        ("http://host", f"X-Token: a\r\nHost: {SECRET}"),
        ("http://host", f"X Token: {SECRET}"),
        ("http://host", f"X-Token: é{SECRET}"),
        ("http://host", "X-Token:"),
    ],
)
def test_an_address_or_header_that_is_not_valid_is_not_repeated(address, header):
    with pytest.raises(ConfigError, match="not valid: expected") as error:
        find_server(address, header)
    assert SECRET not in str(error.value)


def test_names_differ_and_are_short_enough(tmp_path):
    start = Start(tmp_path, "d" * 64)
    names = {panoptes.workflow_name(start) for _ in range(20)}
    assert len(names) > 15
    assert {len(name) for name in names} == {50}


@pytest.mark.parametrize("left", ["", "[]", "{", '{"address": "http://a", "unended": 3}', '{"address": "http://a"}'])
def test_a_damaged_file_of_an_earlier_start_is_no_trouble(left, tmp_path):
    file = tmp_path / "panoptes.json"
    file.write_text(left)
    assert panoptes.unended_workflows(file, "http://a") == []


def test_what_could_not_be_cancelled_is_remembered(loopback, tmp_path):
    """Two starts while the server is away: the first one's workflow is still known."""
    file = tmp_path / "logs" / "panoptes.json"
    file.parent.mkdir()
    server = Server(loopback(answers("", 502)).address)
    row = {"workflow": 3, "name": "demo-1"}
    file.write_text(json.dumps({"address": server.address, "outcome": None, "unended": [], **row}))
    for _ in range(2):
        Client(server, Start(tmp_path, "demo"), LOG).close("Done", {})
        assert panoptes.unended_workflows(file, server.address) == [row]
    assert panoptes.unended_workflows(file, "http://other") == []
