"""The calls about a real run, while it works and after it."""

import json
import subprocess
import sys
from datetime import datetime

import httpx
import pytest

from speechmill.api.store import ENDED
from speechmill.storage.files import read_json

from ..patience import seconds
from ..runs import RESULTS, wait_for

KEY = {"Idempotency-Key": "test-of-the-calls"}
BODY = {"dataset_name": "demo"}
STATUS = set(
    "run_id dataset state created started ended state_history run_dir estimated_duration_hours seconds_left stages rules "
    "retries last_error clips hours published alerts restarts".split()
)
TASK = set("task batch status start end duration retries host device slurm_job".split())
BATCHES = {"clips-00000", "clips-00001", "clips-00002"}


def events_of(server, run_id, last_id=None):
    """The stream of events, to its end."""
    headers = {"Authorization": f"Bearer {server.token}"} | ({"Last-Event-ID": last_id} if last_id else {})
    found = []
    place = f"{server.url}/pipeline/runs/{run_id}/events"
    with httpx.stream("GET", place, headers=headers, timeout=seconds(900)) as answer:
        if answer.status_code == 204:
            return None
        assert answer.headers["content-type"].startswith("text/event-stream")
        event = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if line and not line.startswith(":"):
                event[name] = value
            elif "data" in event:
                found.append((event["id"], event["event"], json.loads(event["data"])))
                event = {}
            else:
                event = {}
    return found


@pytest.fixture(scope="module")
def followed(server):
    """A run from its trigger to its end, what the calls said meanwhile, and its events."""
    answer = server.post("/pipeline/trigger", BODY, headers=KEY)
    again = server.post("/pipeline/trigger", BODY, headers=KEY)
    other = server.post("/pipeline/trigger", BODY | {"config": {"batch_size": 3}}, headers=KEY)
    busy = server.post("/pipeline/trigger", BODY)
    run_id = answer.json()["run_id"]
    corpora = server.get("/pipeline/corpora").json()
    wait_for(lambda: server.get(f"/pipeline/runs/{run_id}/tasks?stage=enhance&status=running").json()["tasks"])
    meanwhile = {name: server.get(f"/pipeline/{name}/{run_id}").json() for name in ("status", "metrics")}
    resumed = server.post(f"/pipeline/runs/{run_id}/resume")
    events = events_of(server, run_id)
    return {
        "answer": answer,
        "again": again,
        "other": other,
        "busy": busy,
        "run_id": run_id,
        "corpora": corpora,
        "meanwhile": meanwhile,
        "resumed": resumed,
        "events": events,
        "status": server.wait(run_id),
    }


def test_a_trigger_is_answered_with_exactly_four_things(followed):
    body = followed["answer"].json()
    assert list(body) == ["status", "run_id", "dataset", "estimated_duration_hours"]
    assert (body["status"], body["dataset"]) == ("triggered", "demo")
    hours = body["estimated_duration_hours"]
    assert hours is None or 0 < hours < 10


def test_the_same_key_begins_one_run(followed):
    assert followed["again"].status_code == 200
    assert followed["again"].json() == followed["answer"].json()
    assert followed["other"].status_code == 422
    assert "Idempotency-Key" in followed["other"].json()["detail"]


def test_a_busy_corpus_is_refused_with_the_run_that_works_on_it(followed):
    assert followed["busy"].status_code == 409
    assert followed["busy"].json()["active_run_id"] == followed["run_id"]
    active = {corpus["name"]: corpus["active_run_id"] for corpus in followed["corpora"]}
    assert active.pop("demo") == followed["run_id"]
    assert set(active.values()) == {None}
    assert followed["resumed"].status_code == 409


def test_the_status_while_it_works(followed):
    found = followed["meanwhile"]["status"]
    assert set(found) == STATUS
    assert found["state"] == "running"
    assert found["ended"] is None
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert stages["enhance"]["total"] == len(BATCHES)
    assert found["clips"] == 10


def test_the_status_when_it_has_succeeded(server, followed, finished):
    found = followed["status"]
    assert set(found) == STATUS
    assert found["state"] == "succeeded"
    assert [change["state"] for change in found["state_history"]] == ["queued", "starting", "running", "succeeded"]
    times = [found["created"], found["started"], found["ended"]]
    assert [datetime.fromisoformat(time) for time in times] == sorted(datetime.fromisoformat(time) for time in times)
    assert (found["retries"], found["restarts"], found["last_error"]) == (0, 0, None)
    sentinel = read_json(server.run.results / "published" / "UPLOADED.json")
    assert found["published"]["rows"] == sentinel["rows"]
    assert found["run_dir"] == str(server.run.results)
    assert server.run.hashes(*RESULTS) == finished.hashes(*RESULTS)


def test_the_metrics_have_every_task_with_its_times(server, followed):
    found = server.get(f"/pipeline/metrics/{followed['run_id']}").json()
    assert {"run_id", "dataset", "tasks", "throughput", "clips", "hours"} <= found.keys()
    assert all(task.keys() >= TASK for task in found["tasks"])
    done = {(task["task"], task["batch"]) for task in found["tasks"] if task["status"] == "finished"}
    assert done >= {(stage, batch) for stage in ("enhance", "score") for batch in BATCHES} | {("rank", None)}
    assert len(done) == len(found["tasks"])
    for task in found["tasks"]:
        assert task["retries"] == 0
        if task["task"] != "all":
            assert task["start"] <= task["end"]
            assert task["duration"] > 0
    summary = read_json(server.run.results / "report" / "summary.json")
    assert sum(found["clips"]["enhance"].values()) == summary["clips"]["input"]
    assert found["clips"]["rank"]["accepted"] == summary["clips"]["accepted"]
    assert found["throughput"]["enhance"]["audio_hours_per_hour"] > 0


def test_a_task_at_work_is_told_as_such(followed):
    tasks = followed["meanwhile"]["metrics"]["tasks"]
    at_work = [task for task in tasks if task["task"] == "enhance" and task["status"] == "running"]
    assert at_work
    assert all(task["end"] is None for task in at_work)


def test_tasks_are_paged_and_filtered(server, followed):
    place = f"/pipeline/runs/{followed['run_id']}/tasks"
    every = server.get(place).json()["tasks"]
    found, cursor = [], None
    while True:
        page = server.get(place, params={"limit": 4} | ({"cursor": cursor} if cursor else {})).json()
        found += page["tasks"]
        assert len(page["tasks"]) <= 4
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert found == every
    scores = server.get(place, params={"stage": "score"}).json()["tasks"]
    assert {task["batch"] for task in scores} == BATCHES
    assert server.get(place, params={"status": "failed"}).json()["tasks"] == []


def test_events_tell_the_whole_run_once_and_in_order(followed):
    events = followed["events"]
    states = [data["state"] for _, kind, data in events if kind == "state"]
    assert states == ["queued", "starting", "running", "succeeded"]
    jobs = [(data["stage"], data.get("batch"), data["event"]) for _, kind, data in events if kind == "job"]
    assert len(jobs) == len(set(jobs))
    for stage, batches in {"enhance": BATCHES, "score": BATCHES, "rank": {None}}.items():
        for batch in batches:
            assert jobs.index((stage, batch, "submitted")) < jobs.index((stage, batch, "finished"))
    assert any(kind == "progress" for _, kind, _ in events)
    assert events[-1][1] == "state"


def test_whoever_comes_back_hears_what_was_missed_and_nothing_twice(server, followed):
    events = [event for event in followed["events"] if event[1] != "progress"]
    for position in (0, len(events) // 2, len(events) - 2):
        rest = events_of(server, followed["run_id"], events[position][0])
        for kind in ("state", "job"):
            missed = [data for _, each, data in events[position + 1 :] if each == kind]
            assert [data for _, each, data in rest if each == kind] == missed
    assert events_of(server, followed["run_id"], events[-1][0]) is None


def test_logs_of_the_run_of_a_batch_and_of_problems(server, followed):
    place = f"/pipeline/runs/{followed['run_id']}/logs"
    assert "Job stats" in json.dumps(server.get(place, params={"tail": 5000}).json())
    assert len(server.get(place, params={"tail": 3}).json()["lines"]) == 3
    batch = server.get(place, params={"name": "clips-00000"}).json()["lines"]
    assert {line["stage"] for line in batch if line.get("event") == "begin"} == {"enhance", "score"}
    problems = [server.get(place, params={"name": name, "problems": True}).json()["lines"] for name in sorted(BATCHES)]
    named = {line.get("file") for lines in problems for line in lines}
    assert any("text.wav" in str(file) for file in named)
    assert server.get(place, params={"name": "nobody"}).status_code == 404


def test_a_dry_run_says_that_nothing_is_left_or_what_a_change_would_cost(server, followed):
    found = server.post("/pipeline/validate", BODY).json()
    assert found == {"valid": True, "problems": [], "jobs": {}}
    found = server.post("/pipeline/validate", BODY | {"config": {"rank": {"threshold": 1.0}}}).json()
    assert found["valid"]
    assert found["jobs"]["rank"] == 1
    assert "enhance" not in found["jobs"]
    found = server.post("/pipeline/validate", BODY | {"config": {"rank": {"threshold": 2}}}).json()
    assert (found["valid"], found["jobs"]) == (False, {})
    assert "rank.threshold" in "".join(found["problems"])


def test_a_plan_says_what_each_number_rests_on(server, followed):
    answer = server.post("/pipeline/plan", BODY)
    assert answer.status_code == 200, answer.text
    assert answer.json()["clips"]["value"] == 10
    assert answer.json()["clips"]["basis"]


def test_prometheus_reads_runs_and_their_states(server, followed):
    text = server.get("/metrics").text
    assert 'speechmill_api_runs{state="succeeded"} ' in text
    assert f'speechmill_run_info{{dataset="demo",run="{server.run.results}"' in text


def test_reranking_makes_nothing_anew_that_does_not_depend_on_it(server, followed):
    before = server.run.hashes("enhanced", "scores")
    answer = server.post(f"/pipeline/runs/{followed['run_id']}/rerank", {"threshold": 1.0})
    assert answer.status_code == 200, answer.text
    run_id = answer.json()["run_id"]
    found = server.wait(run_id)
    assert found["state"] == "succeeded", found
    assert {"rank"} <= found["rules"].keys()
    assert not {"enhance", "score"} & found["rules"].keys()
    assert server.run.hashes("enhanced", "scores") == before
    assert found["published"]["rows"] == 0 or found["published"]["rows"] < followed["status"]["published"]["rows"]
    # The earlier run is told as it was.
    assert server.status(followed["run_id"]) == followed["status"]
    listed = server.get("/pipeline/runs", params={"dataset": "demo"}).json()["runs"]
    assert [run["run_id"] for run in listed if run["run_id"] in (run_id, followed["run_id"])] == [
        run_id,
        followed["run_id"],
    ]


def test_a_person_at_a_terminal_sees_the_run_too(server, followed):
    command = [sys.executable, "-m", "speechmill", "status", str(server.run.results)]
    done = subprocess.run(command, env=server.environment, capture_output=True, text=True, check=True)
    assert "finished, 10 clips" in done.stdout


def test_runs_are_listed_by_state_with_a_cursor(server, followed):
    every = server.get("/pipeline/runs").json()["runs"]
    assert all(run["state"] in ENDED for run in every)
    first = server.get("/pipeline/runs", params={"limit": 1}).json()
    assert first["runs"] == every[:1]
    assert server.get("/pipeline/runs", params={"state": "running"}).json()["runs"] == []
