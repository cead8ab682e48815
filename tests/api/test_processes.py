"""The processes of a run, its runner, and who starts that."""

import json
import os
import subprocess
import sys
import time

from speechmill.api import journal, processes
from speechmill.api.keeper import MOST_RESTARTS, Keeper


def test_the_processes_of_a_run_are_found_whoever_their_parents_are():
    environment = os.environ | {processes.MARK: "20260101000000-0000000a"}
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env=environment, start_new_session=True
    )
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env=os.environ | {processes.MARK: "20260101000000-0000000b"},
    )
    of_slurm = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env=environment | {"SLURM_JOB_ID": "77"}
    )
    try:
        assert processes.of_run("20260101000000-0000000a") == [child.pid]
        assert processes.leaders("20260101000000-0000000a") == [child.pid]
        assert processes.kill("20260101000000-0000000a") == []
        assert child.wait(10) == -9
        assert (other.poll(), of_slurm.poll()) == (None, None)
    finally:
        for each in (child, other, of_slurm):
            each.kill()
            each.wait()


def test_a_runner_is_alive_by_its_start_not_by_its_number():
    me = json.loads(processes.identity())
    assert processes.is_alive(json.dumps(me), time.time())
    assert not processes.is_alive(json.dumps(me | {"ticks": me["ticks"] + 1}), time.time())
    assert not processes.is_alive(json.dumps(me | {"boot": "another"}), time.time())
    assert not processes.is_alive(None, time.time())
    elsewhere = json.dumps(me | {"host": "another"})
    assert processes.is_alive(elsewhere, time.time())
    assert not processes.is_alive(elsewhere, time.time() - 3600)


def test_a_run_whose_runners_die_without_end_is_failed_and_says_so(service, monkeypatch):
    run = service.trigger("tester", "demo", {})
    keeper = Keeper(service)
    dead = None
    for number in range(MOST_RESTARTS + 1):
        me = json.dumps(json.loads(processes.identity()) | {"boot": f"earlier {number}"})
        assert service.store.take(run.id, me, dead, 0, 0.0)
        dead = me
    begun = []
    monkeypatch.setattr("speechmill.api.keeper.subprocess.Popen", lambda command, **about: begun.append(command[-1]))
    keeper.look()
    assert run.id not in begun
    found = service.store.get(run.id)
    assert found.state == "failed"
    assert "died" in found.last_error
    assert journal.runs_of(service.settings.directory / "results" / "demo")[0].state == "failed"
