"""The client and `speechmill --api` against a real server with real runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from speechmill.client import ApiError, Client, Task

from ..patience import seconds
from ..runs import ROOT


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, server.token)


@pytest.fixture(scope="module")
def done(client):
    """A run that succeeded, and all that was told of it."""
    run = client.trigger("demo", key="the-first")
    return run, list(client.events(run.run_id)), client.wait(run.run_id, poll_seconds=0.5)


def speechmill(server, tmp_path, *arguments, token=None):
    file = tmp_path / "token"
    file.write_text(token or server.token)
    file.chmod(0o600)
    environment = server.environment | {"SPEECHMILL_API_TOKEN_FILE": str(file), "COLUMNS": "120"}
    command = [sys.executable, "-m", "speechmill", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds(600))


def test_a_run_is_followed_from_trigger_to_the_end(client, done):
    run, events, status = done
    assert (run.status, run.dataset) == ("triggered", "demo")
    assert status.succeeded
    assert [event.data["state"] for event in events if event.kind == "state"] == [
        change["state"] for change in status.state_history
    ]
    finished = [event.data for event in events if event.kind == "job" and event.data["event"] == "finished"]
    assert len(finished) == len(list(client.tasks(run.run_id, status="finished"))) > 3
    assert client.trigger("demo", key="the-first") == run


def test_events_taken_up_in_the_middle_are_the_rest(client, done):
    run, events, _ = done
    told = [event for event in events if event.kind != "progress"]
    middle = told[len(told) // 2]
    rest = [event for event in client.events(run.run_id, last_id=middle.id) if event.kind != "progress"]
    assert rest == told[len(told) // 2 + 1 :]
    assert list(client.events(run.run_id, last_id=told[-1].id)) == []


def test_pages_and_metrics_have_the_same_tasks(client, done):
    run, _, status = done
    tasks = list(client.tasks(run.run_id, limit=2))
    assert tasks == client.metrics(run.run_id).tasks
    assert all(isinstance(task, Task) and task.status == "finished" for task in tasks)
    assert {stage["stage"] for stage in status.stages} >= {"enhance", "score", "rank"}
    assert run.run_id in [found.run_id for found in client.runs(dataset="demo", limit=1)]
    assert client.logs(run.run_id, "report", tail=3)


def test_corpora_schedules_plan_and_validation(client):
    assert "demo" in [corpus["name"] for corpus in client.corpora()]
    made = client.add_schedule("demo", "@daily")
    assert made["id"] in [schedule["id"] for schedule in client.schedules()]
    client.remove_schedule(made["id"])
    assert made["id"] not in [schedule["id"] for schedule in client.schedules()]
    assert client.validate("demo")["valid"]
    assert not client.validate("demo", {"outdir": "/tmp"})["valid"]
    assert client.plan("demo")
    assert client.ready() == {"status": "ready"}


def test_refusals_say_what_to_do(server, client):
    with pytest.raises(ApiError, match="outdir") as error:
        client.trigger("demo", {"outdir": "/tmp"})
    assert error.value.status == 422
    with pytest.raises(ApiError, match="no run"):
        client.status("20000101000000-00000000")
    with pytest.raises(ApiError, match="new-token") as error:
        Client(server.url, "wrong").status("20000101000000-00000000")
    assert error.value.status == 401


def test_the_commands_run_show_and_read(server, client, done, tmp_path):
    made = speechmill(server, tmp_path, "--api", server.url, "run", "demo", "--config", "report={examples: 2}")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("run 2")
    assert "succeeded" in made.stdout
    run_id = made.stdout.split()[1]
    shown = speechmill(server, tmp_path, f"--api={server.url}", "status", run_id)
    assert f"demo {run_id}: succeeded, 10 clips" in shown.stdout, shown.stderr
    told = json.loads(speechmill(server, tmp_path, "--api", server.url, "status", run_id, "--json").stdout)
    assert told["run_id"] == run_id
    assert run_id in speechmill(server, tmp_path, "--api", server.url, "status").stdout.splitlines()[0]
    assert speechmill(server, tmp_path, "--api", server.url, "logs", run_id, "report", "--tail", "2").stdout
    again = speechmill(server, tmp_path, "--api", server.url, "cancel", run_id)
    assert (again.returncode, "has ended already" in again.stderr) == (1, True)


def test_commands_go_to_the_server_of_the_environment_but_folders_stay_here(server, done, tmp_path):
    environment = {"SPEECHMILL_API": server.url}
    server.environment |= environment
    try:
        run_id = done[0].run_id
        assert f"demo {run_id}: succeeded" in speechmill(server, tmp_path, "status", run_id).stdout
        here = speechmill(server, tmp_path, "status", str(server.run.results))
        assert f"{server.run.results}: finished" in here.stdout
        wrong = speechmill(server, tmp_path, "status", "results/none")
        assert (wrong.returncode, "is not the id of a run" in wrong.stderr) == (2, True)
    finally:
        del server.environment["SPEECHMILL_API"]


def test_a_run_is_cancelled_and_resumed_by_command(own_server, tmp_path):
    begun = speechmill(own_server, tmp_path, "--api", own_server.url, "run", "demo", "--background")
    run_id = begun.stdout.split()[1]
    busy = speechmill(own_server, tmp_path, "--api", own_server.url, "run", "demo")
    assert (busy.returncode, run_id in busy.stderr) == (1, True)
    ended = speechmill(own_server, tmp_path, "--api", own_server.url, "cancel", run_id)
    assert f"run {run_id}: cancelled" in ended.stdout, ended.stderr
    assert own_server.of_runs() == []
    resumed = speechmill(own_server, tmp_path, "--api", own_server.url, "resume", run_id)
    assert (resumed.returncode, "succeeded" in resumed.stdout) == (0, True), resumed.stderr
