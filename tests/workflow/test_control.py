"""run, resume, drain and cancel of a real run, in the moments in which they are hard: no job starts after them."""

import os
import signal
import subprocess
import sys

import pytest

from speechmill.runlog import run_lock
from speechmill.runlog.attempts import read_attempts
from speechmill.runs.leftovers import of_run
from speechmill.storage.files import read_json

from ..patience import seconds
from ..runs import Run, make_corpus, wait_for

SMALL = {"batch_size": 16, "enhance": {"enhancer": "none"}}  # one batch


class Controlled(Run):
    """A run under `speechmill run`."""

    process: subprocess.Popen

    def speechmill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "speechmill", *arguments]
        about = {"cwd": self.directory, "env": self.environment(), "capture_output": True, "text": True}
        return subprocess.run(command, timeout=seconds(300), check=False, **about)

    def begin(self, *arguments: str) -> None:
        arguments = arguments or ("run", "demo", "--profile", "local", "--poll-seconds", "0.5", "--", *OPTIONS)
        about = {"cwd": self.directory, "env": self.environment(), "start_new_session": True}
        with open(self.directory / "output", "ab") as output:
            command = [sys.executable, "-m", "speechmill", *arguments]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, **about)

    def await_state(self, *states: str) -> None:
        def reached() -> bool:
            found = run_lock.read_supervisor(self.results)
            assert self.process.poll() is None, (self.directory / "output").read_text()[-6000:]
            return found is not None and found.pid == self.process.pid and found.state in states

        wait_for(reached)

    def starts(self) -> int:
        return len([line for line in read_attempts(self.results) if line["event"] == "began"])

    def has_ended(self) -> None:
        """Nothing of the run is at work, and no lock or request is left."""
        assert of_run(self.results) == []
        left = [name for name in (run_lock.FILE, run_lock.SUPERVISED, run_lock.STOP) if (self.results / name).exists()]
        assert left == []


OPTIONS = ("--configfile", "config.yaml", "--cores", "2")


@pytest.fixture
def run(tmp_path):
    found = Controlled(tmp_path / "run", **SMALL)
    make_corpus(found.directory / "corpus")
    yield found
    for pid in (*of_run(found.results), *([found.process.pid] if found.process.poll() is None else [])):
        os.kill(pid, signal.SIGKILL)
    found.process.wait()


@pytest.mark.everyday
@pytest.mark.parametrize(("command", "status"), [("cancel", 130), ("drain", 0)])
def test_a_run_that_is_still_being_planned_is_stopped_before_its_first_job(run, command, status):
    run.begin()
    run.await_state("planning")
    assert not (run.results / run_lock.FILE).exists()
    done = run.speechmill(command, "results/demo")
    assert done.returncode == 0, done.stderr
    assert run.process.wait(seconds(60)) == status
    run.has_ended()
    assert run.starts() == 0
    assert f"asked to {command} the run" in (run.results / "logs" / "run.log").read_text()


def test_between_two_snakemakes_there_is_one_supervisor_and_cancel_starts_no_other(run):
    run.begin()
    run.await_state("running")
    os.kill(read_json(run.results / run_lock.FILE)["pid"], signal.SIGKILL)
    run.await_state("between")
    for command in (["resume", "results/demo"], ["run", "demo", "--profile", "local", "--", *OPTIONS]):
        refused = run.speechmill(*command)
        assert (refused.returncode, "is being worked on by" in refused.stderr) == (1, True), refused.stderr
    done = run.speechmill("cancel", "results/demo")
    assert done.returncode == 0, done.stderr
    assert run.process.wait(seconds(60)) == 130
    run.has_ended()
    assert "stopped" in run.speechmill("status", "results/demo").stdout


def jobs_of(run, event):
    return {line["stage"] for line in read_attempts(run.results) if line["event"] == event}


def test_drain_lets_running_jobs_end_though_the_supervisor_is_dead_and_resume_waits_for_them(run):
    run.begin()
    run.await_state("running")
    wait_for(lambda: "enhance" in jobs_of(run, "submitted"))
    run.process.kill()
    run.process.wait()
    snakemake = read_json(run.results / run_lock.FILE)["pid"]
    refused = run.speechmill("run", "demo", "--profile", "local", "--", *OPTIONS)
    assert (refused.returncode, "is dead; continue with: speechmill resume" in refused.stderr) == (1, True)

    run.begin("resume", "results/demo")
    run.await_state("waiting")
    assert (run.starts(), of_run(run.results).count(snakemake)) == (1, 1)
    run.process.kill()
    run.process.wait()

    done = run.speechmill("drain", "results/demo")
    assert done.returncode == 0, done.stderr
    assert f"waiting for Snakemake, process {snakemake}, to end" in done.stdout
    run.has_ended()
    assert run.starts() == 1
    assert jobs_of(run, "submitted") == jobs_of(run, "finished")
    assert not (run.results / "published").exists()
