"""Whoever is killed, at whatever moment: no run is lost, and no two Snakemakes ever work on one."""

import os
import random
import signal
import sqlite3
import threading
import time
from contextlib import suppress

import pytest

from speechmill.api.store import ENDED
from speechmill.runlog.attempts import read_attempts

from ..patience import seconds
from ..runs import RESULTS, wait_for


class Watch:
    """Counts the Snakemakes of a server while a test goes on."""

    def __init__(self, server):
        self.server, self.most, self.seen = server, 0, set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self):
        while not self.over.wait(0.05):
            found = self.server.snakemakes()
            self.most = max(self.most, len(found))
            self.seen.update(found)

    def stop(self):
        self.over.set()
        self.thread.join()


@pytest.fixture
def watch(own_server):
    found = Watch(own_server)
    yield found
    found.stop()


def a_moment(server, seed, draw=0):
    """Wait for a moment of the run that the seed draws: after some number of events, and a little."""
    moment = random.Random(seed + 1000 * draw)
    lines, pause = moment.randrange(1, 20), moment.uniform(0, 2)
    wait_for(lambda: len(list(read_attempts(server.run.results))) >= lines)
    time.sleep(pause)


def starts(server):
    return [line for line in read_attempts(server.run.results) if line["event"] == "began"]


def finished_jobs(server):
    lines = [line for line in read_attempts(server.run.results) if line["event"] == "finished"]
    return [(line["stage"], line["batch"]) for line in lines]


def killed(find):
    """Kill the process that is found; its id."""
    pid = wait_for(find)
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_run_goes_on_without_the_server_and_is_known_to_the_next_one(own_server, watch, finished, draw):
    run_id = own_server.trigger()
    a_moment(own_server, 11, draw)
    supervisor = own_server.supervisor()
    own_server.kill()
    before = len(list(read_attempts(own_server.run.results)))
    wait_for(lambda: len(list(read_attempts(own_server.run.results))) > before)
    own_server.start()
    assert own_server.status(run_id)["state"] in ("starting", "running")
    assert own_server.supervisor() == supervisor
    assert own_server.wait(run_id)["state"] == "succeeded"
    assert (len(starts(own_server)), watch.most) == (1, 1)
    assert len(finished_jobs(own_server)) == len(set(finished_jobs(own_server)))
    assert own_server.run.hashes(*RESULTS) == finished.hashes(*RESULTS)


def test_a_run_that_was_accepted_just_before_the_server_died_is_begun_by_the_next_one(own_server, finished):
    run_id = own_server.trigger()
    own_server.kill()
    own_server.start()
    assert own_server.wait(run_id)["state"] == "succeeded"
    assert len(starts(own_server)) == 1
    assert own_server.run.hashes(*RESULTS) == finished.hashes(*RESULTS)


def test_another_supervisor_takes_over_and_waits_for_the_snakemake_that_is_at_work(own_server, watch, finished, draw):
    run_id = own_server.trigger()
    a_moment(own_server, 12, draw)
    killed(own_server.supervisor)
    found = own_server.wait(run_id)
    assert found["state"] == "succeeded", found
    assert "lost" in [change["state"] for change in found["state_history"]]
    assert watch.most == 1
    assert len(finished_jobs(own_server)) == len(set(finished_jobs(own_server)))
    assert own_server.run.hashes(*RESULTS) == finished.hashes(*RESULTS)


def test_snakemake_is_started_again(own_server, watch, finished, draw):
    run_id = own_server.trigger()
    a_moment(own_server, 13, draw)
    killed(lambda: next(iter(own_server.snakemakes()), None))
    found = own_server.wait(run_id)
    assert found["state"] == "succeeded", found
    assert "retrying" in [change["state"] for change in found["state_history"]]
    assert (len(starts(own_server)), watch.most) == (2, 1)
    assert own_server.run.hashes(*RESULTS) == finished.hashes(*RESULTS)


def test_a_run_goes_on_after_its_machine_was_shut_down(own_server, watch, finished, draw):
    run_id = own_server.trigger()
    a_moment(own_server, 15, draw)
    own_server.kill()
    for pid in own_server.of_runs():  # all at once, as the machine does
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_for(lambda: own_server.of_runs() == [])
    own_server.start()
    found = own_server.wait(run_id)
    assert found["state"] == "succeeded", found
    assert "lost" in [change["state"] for change in found["state_history"]]
    assert watch.most == 1
    assert own_server.run.hashes(*RESULTS) == finished.hashes(*RESULTS)


def test_a_supervisor_that_fails_in_a_way_nobody_foresaw_ends_no_run(own_server, watch, finished, draw):
    run_id = own_server.trigger()
    a_moment(own_server, 16, draw)
    data_base = sqlite3.connect(own_server.state_dir / "runs.db", timeout=seconds(30), isolation_level=None)
    ((plan,),) = data_base.execute("SELECT plan FROM runs WHERE id = ?", (run_id,)).fetchall()
    data_base.execute("UPDATE runs SET plan = '{}' WHERE id = ?", (run_id,))  # what the next supervisor reads first
    killed(own_server.supervisor)
    wait_for(lambda: b"TypeError" in (own_server.state_dir / "supervisors.log").read_bytes())
    assert own_server.snakemakes()
    assert own_server.status(run_id)["state"] not in ENDED
    data_base.execute("UPDATE runs SET plan = ? WHERE id = ?", (plan, run_id))
    data_base.close()
    found = own_server.wait(run_id)
    assert found["state"] == "succeeded", found
    assert watch.most == 1
    assert own_server.run.hashes(*RESULTS) == finished.hashes(*RESULTS)


def test_all_of_them_are_killed_at_once(own_server, watch, finished, draw):
    run_id = own_server.trigger()
    a_moment(own_server, 14, draw)
    own_server.kill()
    killed(own_server.supervisor)
    killed(lambda: next(iter(own_server.snakemakes()), None))
    jobs = set(own_server.of_runs())  # which nobody ended
    own_server.start()
    found = own_server.wait(run_id)
    assert found["state"] == "succeeded", found
    assert watch.most == 1
    assert not jobs & set(own_server.of_runs())
    assert own_server.run.hashes(*RESULTS) == finished.hashes(*RESULTS)
