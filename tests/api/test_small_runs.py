"""Two small runs: docs/api.md as it is written, and one that lives through all that may happen to it.

`make test` has the first; test_kills.py has what happens by itself, at other moments, to larger runs.
"""

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from speechmill.runlog.attempts import read_attempts

from ..patience import seconds
from ..runs import RESULTS, ROOT, wait_for
from .servers import Server
from .test_kills import Watch, finished_jobs, starts

BLOCK = r"<!-- a test runs this block as it stands -->\n```sh\n(.*?)```"
REQUEST = {"rank": {"threshold": 0.4}}  # of that block
SMALL = {"batch_size": 16, "enhance": {"enhancer": "none"}}  # one batch


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A server after the walk-through, what that said, and the home directory that it was in."""
    home = tmp_path_factory.mktemp("home")
    server = Server(tmp_path_factory.mktemp("small"), **SMALL)
    try:
        (script,) = re.findall(BLOCK, (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
        (home / "token").write_text(server.token + "\n")
        environment = {"HOME": str(home), "SPEECHMILL_API": server.url, "PATH": os.environ["PATH"]}
        environment["SPEECHMILL_API_TOKEN_FILE"] = str(home / "token")
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds(900))
        yield server, done, home
    finally:
        server.stop()


@pytest.fixture
def small(tmp_path):
    found = Server(tmp_path, **SMALL)
    yield found
    found.stop()


@pytest.fixture
def watch(small):
    found = Watch(small)
    yield found
    found.stop()


@pytest.mark.everyday
def test_the_walk_through_ends_with_a_published_corpus(walked):
    server, done, home = walked
    assert done.returncode == 0, done.stdout + done.stderr
    (run_id,) = re.findall(r"^.*run (\S+): succeeded$", done.stdout, re.MULTILINE)
    status = server.status(run_id)
    assert done.stdout.endswith(f"{status['published']}\n")
    assert status["published"]["kind"] == "folder"
    assert status["published"]["rows"] > 0
    assert (server.run.results / "published" / "UPLOADED.json").exists()
    assert (home / ".speechmill.header").stat().st_mode & 0o077 == 0


def jobs_of(server):
    """Processes of jobs: neither the supervisor nor Snakemake."""
    return set(server.of_runs()) - {server.supervisor(), *server.snakemakes()}


def hold_enhance(server, attempts):
    """Stop the enhance job in the middle of this many attempts, so that the run waits; its processes."""

    def is_held():
        lines = [line for line in read_attempts(server.run.results) if line["stage"] == "enhance"]
        if len([line for line in lines if line["event"] == "submitted"]) < attempts:
            return None
        held = jobs_of(server)
        for pid in held:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return held if held and held == jobs_of(server) and all(map(is_stopped, held)) else None

    return wait_for(is_held)


def is_stopped(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def states_of(server, run_id):
    return [change["state"] for change in server.status(run_id)["state_history"]]


def test_a_run_outlives_whoever_works_on_it_is_cancelled_and_goes_on_to_the_same_end(small, watch, walked):
    server = small
    run_id = server.trigger(config=REQUEST, **{"Idempotency-Key": "small"})
    held = hold_enhance(server, 1)
    supervisor, (snakemake,) = server.supervisor(), server.snakemakes()

    server.kill()
    server.start()
    assert server.trigger(config=REQUEST, **{"Idempotency-Key": "small"}) == run_id
    assert (server.supervisor(), server.snakemakes()) == (supervisor, [snakemake])

    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: server.supervisor() not in (None, supervisor))
    wait_for(lambda: server.status(run_id)["state"] == "running")
    assert "lost" in states_of(server, run_id)
    assert server.snakemakes() == [snakemake]

    os.kill(snakemake, signal.SIGKILL)
    wait_for(lambda: len(starts(server)) == 2)
    assert not held & set(server.of_runs())  # the job that nobody looked after
    held = hold_enhance(server, 2)
    found = server.wait(run_id, "running", "retrying")
    (stage,) = (each for each in found["stages"] if each["stage"] == "enhance")
    assert (stage["total"], stage["done"], found["clips"]) == (1, 0, 10)
    tasks = server.get(f"/pipeline/metrics/{run_id}").json()["tasks"]
    (task,) = (each for each in tasks if each["task"] == "enhance")
    assert (task["status"], task["retries"], task["end"]) == ("running", 1, None)

    assert server.post(f"/pipeline/runs/{run_id}/cancel").json()["state"] == "cancelling"
    for pid in held:  # what is stopped would be waited for, and killed a minute later
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert server.wait(run_id)["state"] == "cancelled"
    wait_for(lambda: server.supervisor() is None)
    assert server.of_runs() == []

    server.post(f"/pipeline/runs/{run_id}/resume")
    found = server.wait(run_id)
    assert found["state"] == "succeeded", found
    assert (len(starts(server)), watch.most) == (3, 1)
    assert len(finished_jobs(server)) == len(set(finished_jobs(server)))
    assert server.run.hashes(*RESULTS) == walked[0].run.hashes(*RESULTS)
