"""Runners and their keeper where something fails that nobody foresaw; with processes that live, and a Slurm of scripts."""

import json
import os
import subprocess
import sys
import types

import pytest

from speechmill.api import journal, keeper, processes, runner
from speechmill.api.keeper import MOST_RESTARTS, PAUSE_SECONDS, Keeper
from speechmill.api.runner import Runner
from speechmill.errors import SpeechmillError
from speechmill.files import write_json
from speechmill.owner import FILE, this_process
from speechmill.supervise import LOG

from .quiet import EXAMPLE

QUEUED = "7|RUNNING|speechmill-demo-0_1|n2|None|rule_enhance_wildcards_b7"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A queue with one running job, which scancel takes out of it; what Slurm was told."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "queue").write_text(QUEUED + "\n")
    (folder / "told").touch()
    for name, text in {
        "squeue": f"cat {folder}/queue",
        "scancel": f'echo scancel "$@" >> {folder}/told; : > {folder}/queue',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def run(service, monkeypatch):
    """A run on Slurm, with a process of it at work."""
    monkeypatch.setenv(processes.MARK, "")  # and not what a runner in this process leaves
    monkeypatch.setattr(runner, "unlock", lambda plan: None)
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.05)
    service.stop(service.store.get(EXAMPLE), "cancel")
    made = service.trigger("tester", "demo", {})
    plan = json.loads(made.plan) | {"on_slurm": True, "prefix": "speechmill-demo-0", "poll_seconds": 0.05}
    with service.store._change() as db:
        db.execute("UPDATE runs SET plan = ? WHERE id = ?", (json.dumps(plan), made.id))
    return service.store.get(made.id)


@pytest.fixture
def at_work(run):
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env=os.environ | {processes.MARK: run.id},
        start_new_session=True,
    )
    yield child
    child.kill()
    child.wait()


def a_runner(service, run, work, monkeypatch):
    """A runner that took the run and whose work is `work`."""
    me = processes.identity()
    taken = service.store.take(run.id, me, run.runner, 0, 0.0)
    made = Runner(service.store, taken, me, is_first=True)
    if work:
        monkeypatch.setattr(made, "_work", work)
    return made


def fails(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("error", [BlockingIOError(11, "no more processes"), RuntimeError("a mistake of ours")])
def test_what_nobody_foresaw_ends_the_runner_and_not_the_run(service, run, at_work, slurm, monkeypatch, error):
    with pytest.raises(type(error)):
        a_runner(service, run, fails(error), monkeypatch).work()
    assert service.store.get(run.id).is_active
    assert at_work.poll() is None  # the next runner waits for it
    assert (slurm / "told").read_text() == ""


def test_a_journal_that_cannot_be_written_ends_the_runner_and_not_the_run(service, run, monkeypatch):
    made = a_runner(service, run, lambda: ("succeeded", None), monkeypatch)
    (made.run_dir / journal.FILE).unlink()
    (made.run_dir / journal.FILE).mkdir()
    with pytest.raises(OSError, match=journal.FILE):
        made.work()
    assert service.store.get(run.id).is_active


def test_a_run_ends_once_nothing_of_it_is_at_work(service, run, at_work, slurm, monkeypatch):
    a_runner(service, run, fails(SpeechmillError("owner.json cannot be read")), monkeypatch).work()
    found = service.store.get(run.id)
    assert (found.state, found.last_error) == ("failed", "owner.json cannot be read")
    assert at_work.wait(10) == -9
    assert (slurm / "told").read_text() == "scancel --quiet 7\n"


def test_a_slurm_that_does_not_answer_is_waited_for_before_a_run_ends(service, run, slurm, monkeypatch):
    (slurm / "squeue").write_text(
        f"#!/bin/sh\ntest -e {slurm}/asked && exec cat {slurm}/queue; touch {slurm}/asked; exit 1\n"
    )
    (service.result_folder("demo") / LOG).parent.mkdir()
    a_runner(service, run, fails(SpeechmillError("no")), monkeypatch).work()
    assert (slurm / "told").read_text() == "scancel --quiet 7\n"
    assert "before the run ends: squeue failed" in (service.result_folder("demo") / LOG).read_text()


def test_jobs_of_somebody_elses_snakemake_in_the_folder_are_left_alone(service, run, slurm, monkeypatch):
    other = vars(this_process()) | {"host": "another"}
    write_json(service.result_folder("demo") / FILE, other)
    a_runner(service, run, None, monkeypatch).work()
    found = service.store.get(run.id)
    assert (found.state, "end it on another" in found.last_error) == ("failed", True)
    assert (slurm / "told").read_text() == ""


def test_jobs_of_a_drained_run_end_by_themselves_though_its_runner_died(service, run, slurm, monkeypatch):
    service.store.take(run.id, "dead", None, 0, 0.0)
    service.store.want(run.id, "drain")
    (slurm / "squeue").write_text(
        f"#!/bin/sh\necho x >> {slurm}/asked; test $(wc -l < {slurm}/asked) -gt 3 && : > {slurm}/queue; cat {slurm}/queue\n"
    )
    a_runner(service, service.store.get(run.id), None, monkeypatch).work()
    assert service.store.get(run.id).state == "cancelled"
    assert (slurm / "told").read_text() == ""


def test_a_run_says_what_its_own_snakemake_said_last_and_nobody_elses(service, run, slurm, monkeypatch):
    log = service.result_folder("demo") / LOG
    log.parent.mkdir(parents=True)
    log.write_text("a mistake in somebody's Snakefile\n")
    a_runner(service, run, fails(SpeechmillError("owner.json cannot be read")), monkeypatch).work()
    assert service.store.get(run.id).last_error == "owner.json cannot be read"

    again = service.store.reopen(run.id, "resumed")
    script = "import sys; '--unlock' in sys.argv and sys.exit(); print('no such rule'); sys.exit(1)"
    plan = json.loads(again.plan) | {"program": [sys.executable, "-c", script], "on_slurm": False}
    with service.store._change() as db:
        db.execute("UPDATE runs SET plan = ? WHERE id = ?", (json.dumps(plan), run.id))
    made = a_runner(service, service.store.get(run.id), None, monkeypatch)
    monkeypatch.setattr("speechmill.supervise.signal.signal", lambda *_: None)  # this process's own stay
    made.work()
    assert service.store.get(run.id).last_error == "no such rule"


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(keeper, "time", types.SimpleNamespace(monotonic=lambda: self.now))


def looks(made, clock, seconds):
    """What a keeper does within some seconds: how many runners it starts."""
    begun = 0
    for _ in range(round(seconds)):
        made.look()
        for child, since in made._begun.values():
            if child:
                child.wait()
                begun += since == clock.now
        clock.now += 1
    return begun


@pytest.fixture
def false(monkeypatch):
    monkeypatch.setattr(keeper, "sys", types.SimpleNamespace(executable="/bin/false", stderr=sys.stderr))


def test_runners_that_cannot_start_are_tried_ever_less_often_and_then_nothing_is_left(
    service, run, at_work, slurm, false, monkeypatch
):
    clock, made = Clock(monkeypatch), Keeper(service)
    assert looks(made, clock, PAUSE_SECONDS * 10) == 3  # at 0, 5 and 25 s
    assert service.store.get(run.id).is_active
    assert at_work.poll() is None
    looks(made, clock, PAUSE_SECONDS * sum(4**n for n in range(MOST_RESTARTS)))
    looks(made, clock, 3)
    found = service.store.get(run.id)
    assert (found.state, "died" in found.last_error) == ("failed", True)
    assert at_work.wait(10) == -9
    assert (slurm / "told").read_text() == "scancel --quiet 7\n"
    assert journal.runs_of(service.result_folder("demo"))[0].state == "failed"


def test_a_cancelled_run_whose_runners_cannot_start_is_cancelled(service, run, at_work, slurm, false, monkeypatch):
    dead = json.dumps(json.loads(processes.identity()) | {"boot": "earlier"})
    service.store.take(run.id, dead, None, 0, 0.0)
    service.stop(service.store.get(run.id), "cancel")
    looks(Keeper(service), Clock(monkeypatch), 20)
    assert service.store.get(run.id).state == "cancelled"
    assert at_work.wait(10) == -9
    assert (slurm / "queue").read_text() == ""


def test_a_run_whose_folder_could_not_tell_of_it_is_told_of_by_its_runner(service, monkeypatch, capsys):
    folder = service.result_folder("demo")
    (folder / journal.FILE).mkdir(parents=True)
    run = service.trigger("tester", "demo", {})
    assert service.store.get(run.id).is_active
    assert f"{run.id} was created, which" in capsys.readouterr().err
    (folder / journal.FILE).rmdir()
    monkeypatch.setenv(processes.MARK, "")
    a_runner(service, run, lambda: ("failed", "why"), monkeypatch).work()
    assert [(each.id, each.state) for each in journal.runs_of(folder)] == [(run.id, "failed")]

    (folder / journal.FILE).rename(folder / "aside")
    (folder / journal.FILE).mkdir()
    assert service.resume(run, "tester").state == "queued"
    assert f"{run.id} was resumed, which" in capsys.readouterr().err
    (folder / journal.FILE).rmdir()
    (folder / "aside").rename(folder / journal.FILE)
    journal.note(folder, "taken", run.id, runner="{}")
    (told,) = journal.runs_of(folder)
    assert (told.state, told.ended, told.last_error, told.final) == ("lost", None, None, None)
