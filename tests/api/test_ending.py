"""Runs that are cancelled, drained, go on, or fail; and a data base that is lost."""

import subprocess
import sys

from speechmill.runlog.attempts import read_attempts

from ..patience import seconds
from ..runs import RESULTS, wait_for


def at_work(server):
    """Wait until an enhance job is at work: beside the supervisor and Snakemake it is a process of its own."""
    lines = lambda: list(read_attempts(server.run.results))  # noqa: E731
    wait_for(lambda: any(line["stage"] == "enhance" and line["event"] == "submitted" for line in lines()))
    wait_for(lambda: len(server.of_runs()) >= 3)


def test_cancel_leaves_no_process_and_the_run_goes_on_where_it_ended(own_server, finished):
    run_id = own_server.trigger()
    at_work(own_server)
    answer = own_server.post(f"/pipeline/runs/{run_id}/cancel")
    assert (answer.status_code, answer.json()) == (202, {"run_id": run_id, "state": "cancelling"})
    assert own_server.post(f"/pipeline/runs/{run_id}/cancel").status_code == 202
    assert own_server.wait(run_id)["state"] == "cancelled"
    wait_for(lambda: own_server.supervisor() is None)  # which has written the end of the run
    assert own_server.of_runs() == []
    assert own_server.post(f"/pipeline/runs/{run_id}/cancel").status_code == 409

    done = {line["batch"] for line in read_attempts(own_server.run.results) if line["event"] == "finished"}
    assert own_server.post(f"/pipeline/runs/{run_id}/resume").json() == {"run_id": run_id, "state": "queued"}
    found = own_server.wait(run_id)
    assert found["state"] == "succeeded", found
    assert done <= {line["batch"] for line in read_attempts(own_server.run.results)}
    assert own_server.run.hashes(*RESULTS) == finished.hashes(*RESULTS)

    # The data base is lost; the backup that the server made when it ended is enough.
    before = own_server.status(run_id)
    schedule = own_server.post("/pipeline/schedules", {"dataset_name": "demo", "cron": "0 0 1 1 *"}).json()
    own_server.stop()
    for suffix in ("", "-wal", "-shm"):
        (own_server.state_dir / f"runs.db{suffix}").unlink(missing_ok=True)
    own_server.start()
    assert "restored the backup of" in own_server.log.read_text()
    assert own_server.get("/pipeline/schedules").json()["schedules"] == [schedule]
    assert own_server.status(run_id) == before


def test_drain_ends_with_the_jobs_that_run(own_server):
    run_id = own_server.trigger()
    at_work(own_server)
    answer = own_server.post(f"/pipeline/runs/{run_id}/cancel?mode=drain")
    assert answer.json()["state"] == "draining"
    found = own_server.wait(run_id)
    assert found["state"] == "cancelled"
    attempts = [line for line in read_attempts(own_server.run.results) if line["stage"] == "enhance"]
    submitted = {line["batch"] for line in attempts if line["event"] == "submitted"}
    finished = {line["batch"] for line in attempts if line["event"] == "finished"}
    assert submitted == finished
    assert not (own_server.run.results / "published").exists()
    wait_for(lambda: own_server.supervisor() is None)
    assert own_server.of_runs() == []


def test_a_person_beside_the_server_drains_a_run_of_it(own_server):
    run_id = own_server.trigger()
    at_work(own_server)
    command = [sys.executable, "-m", "speechmill", "drain", str(own_server.run.results)]
    subprocess.run(command, cwd=own_server.run.directory, env=own_server.environment, check=True)
    found = own_server.wait(run_id)
    assert (found["state"], found["state_history"][-1]["why"]) == ("cancelled", "asked to drain")
    wait_for(lambda: own_server.supervisor() is None)
    assert own_server.of_runs() == []


def test_a_run_that_nobody_looks_after_is_cancelled_all_the_same(own_server):
    run_id = own_server.trigger()
    at_work(own_server)
    own_server.kill()
    subprocess.run(["kill", "-KILL", str(own_server.supervisor())], check=True)
    assert own_server.snakemakes()
    own_server.start()
    own_server.post(f"/pipeline/runs/{run_id}/cancel")
    assert own_server.wait(run_id)["state"] == "cancelled"
    wait_for(lambda: own_server.supervisor() is None)
    assert own_server.of_runs() == []


def test_a_run_that_cannot_begin_says_why(own_server):
    (own_server.run.directory / "corpus").rename(own_server.run.directory / "corpse")
    found = own_server.wait(own_server.trigger())
    assert found["state"] == "failed"
    assert "source.path: corpus does not exist" in found["last_error"]
    (own_server.run.directory / "corpse").rename(own_server.run.directory / "corpus")


def test_a_run_that_a_person_started_is_not_begun_again(own_server):
    command = ["speechmill", "run", "demo", "--profile", "local", "--", "--configfile", "config.yaml", "--cores", "1"]
    person = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=own_server.run.directory,
        env=own_server.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: (own_server.run.results / "owner.json").exists())
        answer = own_server.post("/pipeline/trigger", {"dataset_name": "demo"})
        assert answer.status_code == 409
        assert answer.json()["active_run_id"] is None
        assert "this server did not start" in answer.json()["detail"]
    finally:
        person.send_signal(2)
        person.wait(seconds(600))
