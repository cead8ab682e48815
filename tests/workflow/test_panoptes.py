"""The logger plugin in real Snakemake: what it tells, and when it tells nothing."""

import os
import signal
import socket
import subprocess

import pytest

from speechmill.storage.files import read_json

from ..panoptes import Panoptes
from ..patience import seconds
from ..runs import Run, make_corpus, wait_for

SECRET = "kSa7-geheim"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    server = Panoptes(tmp_path_factory.mktemp("panoptes"))
    yield server
    server.close()


@pytest.fixture
def run(tmp_path, monkeypatch, real):
    monkeypatch.setenv("SPEECHMILL_PANOPTES", real.address)
    run = Run(tmp_path / "run")
    make_corpus(run.directory / "corpus")
    return run


def of_run(real, run):
    state = run.results / "logs" / "panoptes.json"
    number = read_json(state)["workflow"] if state.exists() else None
    return real.get(f"/api/workflow/{number}")["workflow"] if number else None


def test_a_quiet_run_is_shown_and_one_that_does_nothing_is_not(run, real, monkeypatch):
    monkeypatch.setenv("SPEECHMILL_PANOPTES_HEADER", f"X-Token: {SECRET}")
    before = len(real.workflows())
    run.start("-n")
    assert len(real.workflows()) == before
    quiet = run.start("--until", "source", "--quiet", "all")
    assert not quiet.jobs
    found = of_run(real, run)
    assert (found["status"], found["jobs_done"], found["jobs_total"]) == ("Done", 2, 2)
    jobs = real.jobs(found["id"])
    assert {job["name"]: job["status"] for job in jobs.values()} == {"preflight": "Done", "source": "Done"}
    run.start("--until", "source")
    assert len(real.workflows()) == before + 1
    files = [file for file in run.directory.rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


def test_what_snakemake_says_is_still_on_the_terminal(run, real):
    done = run.start("--until", "preflight")
    assert done.jobs["preflight"] == 1
    assert f"Panoptes shows this run: {real.address}/workflow/{of_run(real, run)['id']}" in done.output


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_is_cancelled(how, run, real):
    process = subprocess.Popen(
        run.command(),
        env=run.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: (found := of_run(real, run)) and real.jobs(found["id"]))
    (process.send_signal if how == signal.SIGTERM else lambda number: os.killpg(process.pid, number))(how)
    assert process.wait(seconds(600)) == 1
    found = of_run(real, run)
    assert found["status"] == "Cancelled"
    assert {job["status"] for job in real.jobs(found["id"]).values()} == {"Done" if how == signal.SIGTERM else "Error"}


def test_a_server_that_never_answers_does_not_fail_the_run(run, monkeypatch):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(100)
        monkeypatch.setenv("SPEECHMILL_PANOPTES", f"http://someone:{SECRET}@127.0.0.1:{deaf.getsockname()[1]}")
        done = run.start("--until", "preflight")
    assert "was not told all of this run" in done.output
    assert SECRET not in done.output


def test_an_address_that_is_not_valid_is_said_and_does_not_fail_the_run(run, monkeypatch):
    monkeypatch.setenv("SPEECHMILL_PANOPTES", f"{SECRET}.example:5000")
    done = run.start("--until", "preflight")
    assert done.output.count("the address of Panoptes is not valid") == 1
    assert SECRET not in done.output
