"""What somebody may try who reaches the server, or has a token that may less."""

import gzip
import json
import socket
import time
from contextlib import ExitStack, suppress

import httpx
import pytest
import yaml

from speechmill.api import routes_runs, serve
from speechmill.api.service import CONFIG, DRY_RUNS
from speechmill.api.store import ACTIVE

from ..patience import seconds
from ..runs import wait_for
from .quiet import EXAMPLE, Quiet

HOSTILE_NAMES = [
    "../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%252f..%252fetc%252fpasswd",
    "/etc/passwd",
    f"{EXAMPLE}/../../../tokens",
    f"{EXAMPLE}%00.db",
    f"{EXAMPLE}%0a",
    f"{EXAMPLE}'%20OR%201=1--",
    "....//....//tokens",
]


@pytest.fixture
def secret(quiet):
    """Words that stand in files near the server's and must never be answered."""
    words = "words-of-a-secret-file"
    for folder in (quiet.state_dir, quiet.state_dir.parent, quiet.state_dir.parent / "results"):
        for name in ("passwd", "secret.log", "tokens.log"):
            (folder / name).write_text(words)
    return words


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_leads_out_of_the_folder_of_a_run(quiet, secret, name):
    paths = [f"/pipeline/status/{name}", f"/pipeline/metrics/{name}", f"/pipeline/runs/{name}/logs"]
    paths += [f"/pipeline/runs/{name}/tasks", f"/pipeline/runs/{name}/events"]
    paths += [f"/pipeline/runs/{EXAMPLE}/logs?name={name}", f"/pipeline/runs?dataset={name}"]
    for path in paths:
        with socket.create_connection(
            httpx.URL(quiet.url).netloc.decode().split(":")
        ) as raw:  # no client tidies the path
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {quiet.token}\r\n\r\n"
            raw.sendall(head.encode())
            answer = b"".join(iter(lambda raw=raw: raw.recv(65536), b""))
        status = int(answer.split(b" ")[1])
        assert status in (400, 404, 422), (path, answer)
        assert secret.encode() not in answer
        assert b"root:" not in answer


@pytest.mark.parametrize("name", ["../results/secret", "..", "secret.log", "a/b", "a\x00b", "a" * 300, ""])
def test_a_log_is_named_by_a_plain_name(quiet, secret, name):
    answer = quiet.call("GET", f"/pipeline/runs/{EXAMPLE}/logs", params={"name": name})
    assert answer.status_code in (404, 422)
    assert secret not in answer.text


@pytest.mark.parametrize(
    "name", ["../config/schema", "demo/../demo", "demo.yaml", "demo\n", "/demo", "", "ünï", "a" * 65]
)
def test_a_corpus_is_named_by_a_plain_name(quiet, name):
    for path in ("trigger", "validate", "plan", "schedules"):
        body = {"dataset_name": name} | ({"cron": "@daily"} if path == "schedules" else {})
        answer = quiet.call("POST", f"/pipeline/{path}", json=body)
        assert answer.status_code == 422, answer.text
    assert len(quiet.service.store.runs()) == 1


REFUSED = [
    {"source": {"kind": "hf_parquet", "repo": "attacker/data"}},
    {"source": {"path": "/etc"}},
    {"source": {"repo": "http://169.254.169.254/latest/meta-data"}},
    {"source.path": "/etc"},
    {"held_out": [{"path": "/etc/passwd"}]},
    {"compare_with": ["/"]},
    {"outdir": "/tmp/elsewhere"},
    {"dataset": "other"},
    {"device": "cpu"},
    {"cluster": {"account": "another"}},
    {"download": {"max_gb": 1e9}},
    {"without_batches": ["a"]},
    {"score": {"squim_weights": "/etc/passwd"}},
    {"score": {"metrics": ["__import__('os').system('id')"]}},
    {"rank": {"profile": "/etc/passwd"}},
    {"rank": {"profile": "../ranking/asr"}},
    {"rank": {"profile": "asr\n"}},
    {"publish": {"kind": "hub"}},
    {"publish": {"repo": "attacker/data"}},
    {"publish": {"path": "/tmp/elsewhere"}},
    {"publish": {"visibility": "public"}},
    {"publish": "none"},
    {"enhance": {"enhancer": "$(touch /tmp/owned)"}},
    {"enhance": {"unknown": 1}},
    {"enhance": [1]},
    {"batch_size": "10; rm -rf /"},
    {"batch_size": True},
    {"batch_size": 10**17},
    {"batch_size": "10"},
    {"batch_size": "1" * 5000},
    {"enhance": {"max_seconds": "2026-13-45"}},
    {"enhance": {"max_seconds": "30"}},
    {"score": {"batch_seconds": ".inf"}},
    {"rank": {"threshold": ".nan"}},
    {"rank": {"weights": {"signal": ".nan"}}},
    {"rank": {"weights": {"signal": -1}}},
    {"rank": {"weights": {"no such group": 1}}},
    {"rank": {"weights": [1]}},
    {"--config": "x"},
    {"": 1},
]


@pytest.mark.parametrize("config", REFUSED, ids=json.dumps)
def test_settings_of_sources_paths_executors_and_shells_are_refused_by_name(quiet, config):
    answer = quiet.call("POST", "/pipeline/trigger", json={"dataset_name": "demo", "config": config})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert str(next(iter(config))) in answer.json()["detail"]
    assert len(quiet.service.store.runs()) == 1
    assert not list(quiet.state_dir.parent.glob("results/demo/api/*"))


def test_what_a_request_sets_reaches_no_command_line(quiet):
    words = "2026-03-01T12:00+07:00"
    body = {"dataset_name": "demo", "config": {"alerts": {"deadline": words}, "rank": {"threshold": 1e-05}}}
    answer = quiet.call("POST", "/pipeline/trigger", json=body)
    assert answer.status_code == 200, answer.text
    plan = json.loads(quiet.service.store.get(answer.json()["run_id"]).plan)
    assert plan["config"] == ["dataset=demo"]
    assert words not in " ".join([*plan["program"], *plan["options"]])


def test_nobody_is_answered_without_a_token(quiet):
    openapi = quiet.call("GET", "/openapi.json").json()
    asked = 0
    for path, calls in openapi["paths"].items():
        for method in calls:
            if path in ("/healthz", "/readyz"):
                continue
            place = quiet.url + path.replace("{run_id}", EXAMPLE).replace("{schedule_id}", EXAMPLE)
            answer = httpx.request(method, place.replace("{task_id}", "x"))
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            asked += 1
    assert asked >= 16
    assert httpx.get(quiet.url + "/openapi.json").status_code == 401
    assert httpx.get(quiet.url + "/nothing").status_code == 401


def test_a_token_that_may_read_changes_nothing(quiet):
    before = quiet.service.store.runs()
    body = {"dataset_name": "demo"}
    calls = [("POST", "/pipeline/trigger", body), ("POST", "/pipeline/schedules", body | {"cron": "@daily"})]
    calls += [("POST", f"/pipeline/runs/{EXAMPLE}/{what}", {}) for what in ("cancel", "resume", "rerank")]
    calls += [("DELETE", f"/pipeline/schedules/{EXAMPLE}", None)]
    for method, path, given in calls:
        answer = quiet.call(method, path, quiet.reader, json=given)
        assert answer.status_code == 403, (path, answer.text)
        assert "trigger" in answer.json()["detail"]
    assert quiet.service.store.runs() == before
    assert quiet.call("GET", f"/pipeline/status/{EXAMPLE}", quiet.reader).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Basic dGVzdGVyOng=", "Bearer x y", "bearer null", "Bearer " + "a" * 5000, "Bearer ÿ"],
)
def test_what_is_no_token_is_none(quiet, header):
    answer = httpx.get(quiet.url + "/pipeline/runs", headers=[(b"Authorization", header.encode("latin-1"))])
    assert answer.status_code == 401


def test_two_tokens_at_once_are_none(quiet):
    headers = [("Authorization", f"Bearer {quiet.token}"), ("Authorization", "Bearer other")]
    assert httpx.get(quiet.url + "/pipeline/runs", headers=headers).status_code == 401


def test_a_token_in_the_address_is_none(quiet):
    assert httpx.get(f"{quiet.url}/pipeline/runs?access_token={quiet.token}&token={quiet.token}").status_code == 401


def test_who_guesses_tokens_is_slowed_down_and_shuts_nobody_else_out(tmp_path):
    with Quiet(tmp_path, failures_per_minute=1) as quiet:
        answers = [quiet.call("GET", "/pipeline/runs", f"guess-{number}") for number in range(40)]
        statuses = [answer.status_code for answer in answers]
        assert statuses == [401] * 10 + [429] * 30
        assert int(answers[-1].headers["retry-after"]) > 1
        assert quiet.call("GET", "/pipeline/runs").status_code == 200
        assert len(quiet.audit()) == 10  # the log does not grow with every guess
        assert not any("guess" in line for line in quiet.audit())


def test_a_token_that_asks_too_often_hears_when_to_come_back(tmp_path):
    with Quiet(tmp_path, requests_per_second=1, changes_per_minute=2) as quiet:
        changes = [quiet.call("POST", f"/pipeline/runs/{EXAMPLE}/resume") for _ in range(3)]
        assert [answer.status_code for answer in changes] == [409, 409, 429]
        assert int(changes[-1].headers["retry-after"]) >= 1
        assert quiet.call("GET", "/pipeline/runs", quiet.reader).status_code == 200


BODY = json.dumps({"dataset_name": "demo", "config": {}}).encode()


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (BODY + b" " * 70_000, {}),
        (iter([BODY, b" " * 70_000]), {}),  # chunked
        (b"x" * 70_000, {"Content-Type": "text/plain"}),
    ],
    ids=["length", "chunks", "another type"],
)
def test_a_large_body_is_refused(quiet, content, headers):
    headers = {"Content-Type": "application/json"} | headers
    try:
        answer = quiet.call("POST", "/pipeline/trigger", content=content, headers=headers)
    except httpx.RemoteProtocolError:
        return  # cut off while it is sent
    assert answer.status_code in (400, 413), answer.text
    assert len(quiet.service.store.runs()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"dataset_name": "demo", "config": {"batch_size": ' + b"9" * 5000 + b"}}",
        b'{"dataset_name": "demo", "config": {"rank": {"threshold": NaN}}}',
        b'{"dataset_name": "demo", "config": {"rank": {"threshold": 1e999}}}',
        b'{"dataset_name": "\\ud800"}',
        b'{"dataset_name": "demo"',
        b"\xff\xfe{}",
        gzip.compress(BODY),
    ],
    ids=["arrays", "objects", "digits", "NaN", "infinite", "half a character", "cut", "UTF-16", "gzip"],
)
def test_what_is_no_strict_json_is_refused(quiet, content):
    headers = {"Content-Type": "application/json"}
    answer = quiet.call("POST", "/pipeline/trigger", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert "JSON" in answer.json()["detail"]


@pytest.mark.parametrize(
    "kinds", [["Application/JSON"], ["application/JSON; charset=utf-8"], ["application/json", "text/plain"]]
)
def test_what_is_no_strict_json_is_refused_however_its_type_is_written(quiet, kinds):
    headers = [("Authorization", f"Bearer {quiet.token}"), *(("Content-Type", kind) for kind in kinds)]
    body = b'{"dataset_name": "demo", "config": {"\\ud800": 1}}'
    answer = httpx.post(quiet.url + "/pipeline/trigger", headers=headers, content=body)
    assert (answer.status_code, "JSON" in answer.json()["detail"]) == (400, True), answer.text


def test_weights_of_groups_are_numbers_of_groups_that_there_are(quiet):
    groups = yaml.safe_load((CONFIG / "ranking" / "asr.yaml").read_text())["groups"]
    first, second = list(groups)[:2]
    body = {"dataset_name": "demo", "config": {"rank": {"weights": {first: 2, second: 0.5}}}}
    answer = quiet.call("POST", "/pipeline/trigger", json=body)
    assert answer.status_code == 200, answer.text
    quiet.call("POST", f"/pipeline/runs/{answer.json()['run_id']}/cancel")
    place = f"/pipeline/runs/{answer.json()['run_id']}/rerank"
    ours, none = {first: 2, second: 0.5}, {first: None, second: None}
    for change, rank in (
        ({"weights": {first: 0}}, {"weights": ours | {first: 0}}),
        ({"threshold": 0.7}, {"threshold": 0.7, "weights": ours}),
        ({"profile": "tts"}, {"profile": "tts", "weights": none}),  # of another profile the groups are others
        ({"profile": "tts", "weights": {"level": 1e9}}, {"profile": "tts", "weights": none | {"level": 1e9}}),
    ):
        made = quiet.call("POST", place, json=change)
        assert made.status_code == 200, made.text
        assert json.loads(quiet.service.store.get(made.json()["run_id"]).config) == {"rank": rank}
        quiet.call("POST", f"/pipeline/runs/{made.json()['run_id']}/cancel")
    many = {f"g{n}": 1 for n in range(51)}
    for weights in ({first: -1}, {first: "1"}, {first: True}, {first: None}, {"x" * 101: 1}, {"x": 1}, many, [1]):
        assert quiet.call("POST", place, json={"weights": weights}).status_code == 422, weights
    content = json.dumps({"weights": {first: 1}}).replace(": 1}", ": 1e999}")
    headers = {"Content-Type": "application/json"}
    assert quiet.call("POST", place, content=content, headers=headers).status_code == 400
    assert quiet.service.store.active("demo") == []


def test_line_breaks_forge_neither_headers_nor_lines_of_the_log(quiet):
    hostile = "x%0d%0aSet-Cookie:%20a=b%0a{%22who%22:%20%22admin%22}"
    answer = quiet.call("POST", f"/pipeline/{hostile}?q={hostile}", headers={"Idempotency-Key": "k"})
    assert answer.status_code == 404
    assert "set-cookie" not in answer.headers
    lines = [json.loads(line) for line in quiet.audit()]
    assert [line["who"] for line in lines] == ["tester"]
    assert "\r\nSet-Cookie" in lines[0]["what"]


@pytest.mark.parametrize("key", ["", "a b", "ü", "k" * 201, "a\tb"])
def test_a_key_is_a_short_word(quiet, key):
    answer = quiet.call(
        "POST", "/pipeline/trigger", json={"dataset_name": "demo"}, headers={"Idempotency-Key": key.encode("utf-8")}
    )
    assert answer.status_code == 422
    assert len(quiet.service.store.runs()) == 1


def test_the_log_says_who_did_what_from_where_and_how_it_ended_and_has_no_token(quiet):
    quiet.call("POST", f"/pipeline/runs/{EXAMPLE}/cancel")
    quiet.call("GET", "/pipeline/runs")
    quiet.call("POST", f"/pipeline/runs/{EXAMPLE}/cancel", quiet.reader)
    quiet.call("GET", "/pipeline/runs", "wrong")
    lines = [json.loads(line) for line in quiet.audit()]
    told = [(line["who"], line["from"], line["what"].split("/")[-1], line["status"]) for line in lines]
    here = "127.0.0.1"
    assert told == [("tester", here, "cancel", 202), ("reader", here, "cancel", 403), (None, here, "runs", 401)]
    text = "\n".join(quiet.audit())
    assert quiet.token not in text
    assert quiet.reader not in text
    assert quiet.service.settings.audit.stat().st_mode & 0o077 == 0


def test_nobody_can_push_what_was_done_out_of_the_log(tmp_path):
    with Quiet(tmp_path, failures_per_minute=1, changes_per_minute=2) as quiet:
        quiet.call("POST", f"/pipeline/runs/{EXAMPLE}/cancel")
        long = "/%F0%9F%98%80" * 500
        for number in range(30):
            local = httpx.HTTPTransport(local_address=f"127.0.0.{2 + number}")
            with httpx.Client(transport=local) as client:
                client.post(quiet.url + long)
            quiet.call("POST", long, quiet.reader)
        lines = quiet.audit()
        assert json.loads(lines[0])["who"] == "tester"
        assert sum(json.loads(line)["who"] is None for line in lines) == 10
        assert sum(json.loads(line)["who"] == "reader" for line in lines) == 2
        assert max(map(len, lines)) < 1000


def test_tokens_are_kept_nowhere(quiet):
    for file in quiet.state_dir.rglob("*"):
        assert not file.is_file() or quiet.token.encode() not in file.read_bytes()


def test_a_connection_that_sends_nothing_more_holds_up_nobody(quiet):
    host, port = httpx.URL(quiet.url).netloc.decode().split(":")
    head = f"POST /pipeline/trigger HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {quiet.token}\r\nContent-Length: 50\r\n\r\n{{"
    slow = [socket.create_connection((host, int(port))) for _ in range(150)]
    try:
        for connection in slow:
            connection.sendall(head.encode())
        assert quiet.call("GET", "/pipeline/runs").status_code == 200  # which has a deadline, as every call
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: "])
def test_a_connection_that_sends_no_request_is_closed(quiet, monkeypatch, sent):
    monkeypatch.setattr(serve, "HEAD_SECONDS", 1.0)
    host, port = httpx.URL(quiet.url).netloc.decode().split(":")
    with socket.create_connection((host, int(port)), timeout=seconds(60)) as idle, suppress(ConnectionError):
        for byte in sent:  # as slowly as one likes; on a busy machine it is closed before all is sent
            idle.sendall(bytes([byte]))
            time.sleep(0.01)
        assert idle.recv(100) == b""


def test_a_connection_that_asks_now_and_then_is_kept(quiet, monkeypatch):
    monkeypatch.setattr(serve, "HEAD_SECONDS", seconds(1))
    with httpx.Client(base_url=quiet.url) as client:
        addresses = set()
        for _ in range(3):
            addresses.add(client.get("/healthz").extensions["network_stream"].get_extra_info("client_addr"))
            time.sleep(seconds(1.5))  # longer than a head may take
        assert len(addresses) == 1


def test_a_token_has_so_many_streams_of_events_and_others_have_theirs(quiet, monkeypatch):
    monkeypatch.setattr(routes_runs, "MOST_STREAMS", 2)
    path = f"{quiet.url}/pipeline/runs/{EXAMPLE}/events"
    headers = {"Authorization": f"Bearer {quiet.token}"}
    with ExitStack() as streams:
        told = [
            streams.enter_context(httpx.stream("GET", path, headers=headers, timeout=seconds(30))).iter_lines()
            for _ in "ab"
        ]
        assert [next(lines) for lines in told] == ["retry: 2000"] * 2
        answer = quiet.call("GET", path.removeprefix(quiet.url))
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
        with httpx.stream(
            "GET", path, headers={"Authorization": f"Bearer {quiet.reader}"}, timeout=seconds(30)
        ) as other:
            assert other.status_code == 200
    wait_for(lambda: quiet.service.streams["tester"] == 0)


def test_dry_runs_that_are_too_many_are_refused_and_hold_up_nobody(quiet):
    for _ in range(DRY_RUNS):
        quiet.service._dry_runs.acquire()
    answer = quiet.call("POST", "/pipeline/validate", json={"dataset_name": "demo"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    quiet.service._dry_runs.release()
    for _ in range(2):  # each gives free what it took
        assert quiet.call("POST", "/pipeline/validate", json={"dataset_name": "dmo"}).status_code == 200


def test_who_asks_without_a_token_whether_runs_can_begin_does_not_make_the_disk_work(quiet, monkeypatch):
    asked = []
    monkeypatch.setattr(quiet.service.store, "check", lambda: asked.append(1))
    assert {httpx.get(quiet.url + "/readyz").status_code for _ in range(20)} == {200}
    assert len(asked) <= 2
    monkeypatch.setattr("speechmill.api.service.TROUBLES_SECONDS", 0.0)
    quiet.service.settings.tokens.unlink()
    assert "no valid token" in httpx.get(quiet.url + "/readyz").json()["detail"]


def test_every_call_has_an_example_of_what_it_takes_and_answers(quiet):
    openapi = quiet.call("GET", "/openapi.json").json()
    contents = []
    for calls in openapi["paths"].values():
        for call in calls.values():
            contents.append(call.get("requestBody", {}).get("content", {}))
            contents += [answer.get("content", {}) for answer in call["responses"].values()]
    asked = [about for content in contents for kind, about in content.items() if kind.endswith("json")]
    assert len(asked) > 100
    for about in asked:
        schema = about.get("schema", {})
        schema = schema.get("items", schema)
        named = schema.get("$ref", "").rpartition("/")[2]
        schema = openapi["components"]["schemas"][named] if named else schema
        assert schema.get("examples") or about.get("example"), about


def test_errors_are_problem_details_that_say_what_to_do(quiet):
    quiet.call("POST", "/pipeline/trigger", json={"dataset_name": "demo"})
    asked = [
        quiet.call("GET", "/pipeline/status/20260101000000-00000000"),
        quiet.call("GET", "/nothing"),
        quiet.call("PUT", "/pipeline/trigger"),
        quiet.call("POST", "/pipeline/trigger", json={"dataset_name": "demo"}),
        quiet.call("POST", "/pipeline/trigger", json={"dataset_name": "dmo"}),
        quiet.call("POST", "/pipeline/trigger", json={"dataset_name": "demo", "more": 1}),
        quiet.call("GET", "/pipeline/runs", "wrong"),
        quiet.call("GET", "/pipeline/runs?cursor=bm9uc2Vuc2U"),
    ]
    assert [answer.status_code for answer in asked] == [404, 404, 405, 409, 422, 422, 401, 422]
    for answer in asked:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert {"type", "title", "status", "detail", "instance"} <= problem.keys()
        assert problem["status"] == answer.status_code
        assert len(problem["detail"]) > 20
    assert quiet.service.store.get(asked[3].json()["active_run_id"]).state in ACTIVE
    assert 'did you mean "demo"' in asked[4].json()["detail"]
    assert "POST" in asked[2].headers["allow"]
