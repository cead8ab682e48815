"""The REST API on a real Slurm: cancel leaves nothing in its queue, and whoever is killed, jobs run once."""

import os
import signal

import pytest

from speechmill.cluster import slurm

from ..api.servers import Server
from ..runs import wait_for
from .test_faults import no_two_at_once, settled


class SlurmServer(Server):
    profile = "slurm"

    @property
    def snakemake(self):
        return tuple(self.run.options())


@pytest.fixture
def server(run, tmp_path):
    found = SlurmServer(tmp_path, run=run)
    yield found
    found.stop()


def alive(run):
    return [job for job in slurm.jobs(run.prefix) if job.state in slurm.WAITING | slurm.RUNNING]


def test_cancel_leaves_neither_a_process_nor_a_slurm_job(server, run):
    run_id = server.trigger()
    run.freeze("enhance", 2)
    assert server.post(f"/pipeline/runs/{run_id}/cancel").status_code == 202
    assert server.wait(run_id)["state"] == "cancelled"
    assert not alive(run)
    wait_for(lambda: not server.of_runs())  # linuxproc loses sight of processes whose parent has ended


def test_server_supervisor_and_snakemake_are_killed_and_slurms_jobs_are_not_repeated(server, run, finished):
    run_id = server.trigger()
    frozen = run.freeze("enhance", 3)
    server.kill()
    for pid in (server.supervisor(), *server.snakemakes()):
        os.kill(pid, signal.SIGKILL)
    server.start()
    wait_for(lambda: "lost" in [change["state"] for change in server.status(run_id)["state_history"]])
    for pid in frozen.values():
        os.kill(pid, signal.SIGCONT)
    assert server.wait(run_id)["state"] == "succeeded"
    assert all(run.states(f"enhance {batch}") == ["COMPLETED"] for batch in frozen)
    no_two_at_once(run)
    settled(run, finished)
