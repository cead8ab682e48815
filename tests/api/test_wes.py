"""The GA4GH WES façade: what its specification says of requests, answers and states."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib.metadata import version

import pytest

from speechmill.api import models, wes
from speechmill.api.store import Run
from speechmill.api.wes_models import State

WES = "/ga4gh/wes/v1"
MAJOR = version("snakemake").split(".")[0]
ASKED = {"workflow_url": "speechmill/Snakefile", "workflow_type": "SMK", "workflow_type_version": MAJOR}
OVER = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED", "PREEMPTED")
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
UNKNOWN = "20000101000000-00000000"


@pytest.fixture(scope="module")
def run_id(server):
    """A run that was begun as a form and has succeeded."""
    params = json.dumps({"dataset_name": "demo", "config": {"rank": {"threshold": 0.37}}})
    form = {name: (None, value) for name, value in {**ASKED, "workflow_params": params, "tags": "{}"}.items()}
    answer = server.call("POST", f"{WES}/runs", files=form)
    assert answer.status_code == 200, answer.text
    server.wait(answer.json()["run_id"], "succeeded")
    return answer.json()["run_id"]


def test_every_state_has_one_of_the_standard_and_only_ended_runs_look_ended():
    known = {state: dataclasses.replace(blank(), state=state) for state in models.State.__args__}
    shown = {state: wes.state_of(run) for state, run in known.items()}
    assert set(shown.values()) <= set(State.__args__)
    assert {state for state, name in shown.items() if name in OVER} == {"succeeded", "failed", "cancelled"}


def blank() -> Run:
    return Run(id="x", dataset="demo", run_dir="/", config="{}", plan="{}", caller="me", created="t")


def test_a_failed_run_says_whether_a_job_failed_or_the_system():
    failed = dataclasses.replace(blank(), state="failed")
    assert wes.state_of(failed) == "SYSTEM_ERROR"
    for given_up, state in ((0, "SYSTEM_ERROR"), (2, "EXECUTOR_ERROR")):
        final = json.dumps({"stages": [{"stage": "enhance", "given_up": given_up}]})
        assert wes.state_of(dataclasses.replace(failed, final=final)) == state


def test_the_service_says_what_it_runs(server, run_id):
    about = server.get(f"{WES}/service-info").json()
    assert about["type"] == {"group": "org.ga4gh", "artifact": "wes", "version": "1.1.0"}
    assert about["supported_wes_versions"] == ["1.1.0"]
    assert about["workflow_type_versions"] == {"SMK": {"workflow_type_version": [MAJOR]}}
    assert about["system_state_counts"]["COMPLETE"] >= 1
    assert about["tags"]["workflow_url"] == ASKED["workflow_url"]


def test_a_run_is_told_as_the_standard_has_it(server, run_id):
    assert server.get(f"{WES}/runs/{run_id}/status").json() == {"run_id": run_id, "state": "COMPLETE"}
    log = server.get(f"{WES}/runs/{run_id}").json()
    assert log["request"]["workflow_params"] == {"dataset_name": "demo", "config": {"rank": {"threshold": 0.37}}}
    assert {name: log["request"][name] for name in ASKED} == ASKED
    assert log["run_log"]["exit_code"] == 0
    assert re.fullmatch(TIME, log["run_log"]["start_time"])
    assert log["run_log"]["start_time"] <= log["run_log"]["end_time"]
    assert log["outputs"]["published"]["kind"] == "folder"
    for url in (log["task_logs_url"], log["run_log"]["stdout"]):
        assert server.get(url.removeprefix(server.url)).status_code == 200


def test_tasks_are_paged_named_and_found(server, run_id):
    found, token = [], ""
    while True:
        page = server.get(f"{WES}/runs/{run_id}/tasks", params={"page_size": 2, "page_token": token}).json()
        assert len(page["task_logs"]) <= 2
        found += page["task_logs"]
        token = page["next_page_token"]
        if not token:
            break
    all_tasks = server.get(f"{WES}/runs/{run_id}/tasks").json()
    assert all_tasks == {"task_logs": found, "next_page_token": ""}
    assert (
        len({task["id"] for task in found})
        == len(found)
        == len(server.get(f"/pipeline/metrics/{run_id}").json()["tasks"])
    )
    assert {task["exit_code"] for task in found} == {0}
    assert server.get(f"{WES}/runs/{run_id}/tasks/{found[0]['id']}").json() == found[0]
    assert server.get(f"{WES}/runs/{run_id}/tasks/none").status_code == 404


def test_runs_are_paged_to_the_last(server, run_id):
    asked = server.post(f"{WES}/runs", ASKED | {"workflow_params": {"dataset_name": "demo"}})  # JSON does as well
    other = asked.json()["run_id"]
    server.wait(other, "succeeded")
    ids, token = [], ""
    while True:
        page = server.get(f"{WES}/runs", params={"page_size": 1, "page_token": token}).json()
        ids += [run["run_id"] for run in page["runs"]]
        assert page["runs"][0]["tags"] == {}
        token = page["next_page_token"]
        if not token:
            break
    assert ids == [run["run_id"] for run in server.get("/pipeline/runs").json()["runs"]]
    assert ids[0] == other
    assert run_id in ids


def test_a_cancelled_run_is_canceled(own_server):
    asked = own_server.post(f"{WES}/runs", ASKED | {"workflow_params": {"dataset_name": "demo"}})
    made = asked.json()["run_id"]
    busy = own_server.post(f"{WES}/runs", ASKED | {"workflow_params": {"dataset_name": "demo"}})
    assert (busy.status_code, busy.json()["status_code"], busy.json()["active_run_id"]) == (409, 409, made)
    assert own_server.post(f"{WES}/runs/{made}/cancel").json() == {"run_id": made}
    own_server.wait(made, "cancelled", seconds=120)
    assert own_server.get(f"{WES}/runs/{made}/status").json()["state"] == "CANCELED"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workflow_url": "https://example.org/evil.smk"}, "workflow_url"),
        ({"workflow_type": "CWL"}, "workflow_type"),
        ({"workflow_type_version": "1"}, "workflow_type_version"),
        ({"workflow_engine": "toil"}, "workflow_engine"),
        ({"workflow_engine_version": "1"}, "workflow_engine_version"),
        ({"workflow_engine_parameters": {"--jobs": "9"}}, "workflow_engine_parameters"),
        ({"tags": {"a": "b"}}, "tags"),
        ({"workflow_params": {"dataset_name": "../demo"}}, "dataset_name"),
        ({"workflow_params": {"dataset_name": "demo", "config": {"outdir": "/tmp"}}}, "outdir"),
        ({"workflow_params": {"dataset_name": "demo", "config": {"source": {"path": "http://10.0.0.1/"}}}}, "source"),
        ({"workflow_params": None}, "workflow_params"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_not_registered_or_allowed_is_refused(server, change, said):
    answer = server.post(f"{WES}/runs", ASKED | {"workflow_params": {"dataset_name": "demo"}} | change)
    assert answer.status_code == 400
    assert said in answer.json()["msg"]
    assert answer.json()["status_code"] == 400


@pytest.mark.parametrize(
    "about",
    [
        {"files": {"workflow_attachment": ("../../x.smk", b"rule all:")}},
        {"data": {"workflow_params": "{"}},
        {"data": {"workflow_params": "[" * 5000}},
        {"content": b"\xff", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"not json"},
        {"content": b'{"workflow_params": NaN}', "headers": {"Content-Type": "text/plain"}},
        {"json": []},
    ],
)
def test_a_request_that_is_no_run_request_is_malformed(server, about):
    answer = server.call("POST", f"{WES}/runs", **about)
    assert (answer.status_code, answer.json()["status"]) == (400, 400)


def test_who_may_not_and_what_is_not_there(server):
    reader = server.new_token("looks", "read")
    body = ASKED | {"workflow_params": {"dataset_name": "demo"}}
    assert server.post(f"{WES}/runs", body, token=reader).status_code == 403
    assert server.get(f"{WES}/runs", token="wrong").status_code == 401
    for path in ("", "/status", "/tasks", "/tasks/x"):
        answer = server.get(f"{WES}/runs/{UNKNOWN}{path}")
        assert (answer.status_code, answer.json()["status_code"]) == (404, 404)
