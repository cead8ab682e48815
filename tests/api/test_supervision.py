"""Supervisors and their keeper where something fails that nobody foresaw; with processes that live, and a Slurm of scripts."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
import types
from contextlib import suppress
from pathlib import Path

import pytest

from speechmill.api import keeper
from speechmill.api.keeper import MOST_RESTARTS, PAUSE_SECONDS, Keeper
from speechmill.api.service import result_file
from speechmill.errors import SpeechmillError
from speechmill.runlog.run_lock import FILE, read_stop, read_supervisor, request_stop, this_process
from speechmill.runs import start, supervisor
from speechmill.runs.leftovers import MARK
from speechmill.runs.plan import LOG, plan_from
from speechmill.runs.supervisor import Supervisor
from speechmill.storage.files import write_json

from ..patience import seconds
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
def run(service):
    """A run on Slurm."""
    service.stop(service.store.get(EXAMPLE), "cancel")
    made = service.trigger("tester", "demo", {})
    change_plan(service, made, on_slurm=True, prefix="speechmill-demo-0", program=[sys.executable, "-c", ""])
    return service.store.get(made.id)


def change_plan(service, run, **changes):
    plan = json.loads(run.plan) | {"poll_seconds": 0.05} | changes
    with service.store._change() as db:
        db.execute("UPDATE runs SET plan = ? WHERE id = ?", (json.dumps(plan), run.id))


@pytest.fixture
def at_work(run):
    """A process of the run that is at work."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env=os.environ | {MARK: run.run_dir},
        start_new_session=True,
    )
    yield child
    child.kill()
    child.wait()


@pytest.fixture
def supervise(service, monkeypatch):
    """Runs the supervisor of a run, whose work may be given, in this process; the run after that."""

    def supervised(run, work=None):
        service.store.claim(run.id, "the supervisor", run.runner, 0)
        run = service.store.get(run.id)
        made = Supervisor(plan_from(json.loads(run.plan)), str(result_file(run)))
        if work:
            monkeypatch.setattr(made, "work", lambda was_left: work())
        with suppress(SpeechmillError):
            made.run()
        Keeper(service).look()
        return service.store.get(run.id)

    monkeypatch.setattr("speechmill.runs.supervisor.signal.signal", lambda *_: None)  # this process's own stay
    return supervised


def fails(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("error", [BlockingIOError(11, "no more processes"), RuntimeError("a mistake of ours")])
def test_what_nobody_foresaw_ends_the_supervisor_and_not_the_run(service, run, at_work, slurm, supervise, error):
    with pytest.raises(type(error)):
        supervise(run, fails(error))
    assert service.store.get(run.id).is_active
    assert at_work.poll() is None  # the next supervisor waits for it
    assert (slurm / "told").read_text() == ""
    assert read_supervisor(Path(run.run_dir))  # by which the next one knows that something may be left


def test_a_run_ends_once_nothing_of_it_is_at_work(run, at_work, slurm, supervise):
    found = supervise(run, fails(SpeechmillError("owner.json cannot be read")))
    assert (found.state, found.last_error) == ("failed", "owner.json cannot be read")
    assert at_work.wait(seconds(60)) == -9
    assert (slurm / "told").read_text() == "scancel --quiet 7\n"
    assert read_supervisor(Path(run.run_dir)) is None


def test_a_machine_that_shuts_down_ends_no_run_whatever_fails_meanwhile(run, at_work, slurm, supervise, monkeypatch):
    def work(self, was_left):
        self.stop("drain", by_user=False)
        raise SpeechmillError("snakemake --unlock failed")

    monkeypatch.setattr(Supervisor, "work", work)
    assert supervise(run).is_active
    assert (at_work.poll(), (slurm / "told").read_text()) == (None, "")
    assert read_supervisor(Path(run.run_dir))


def test_a_slurm_that_does_not_answer_is_waited_for_before_a_run_ends(run, slurm, supervise):
    (slurm / "squeue").write_text(
        f"#!/bin/sh\ntest -e {slurm}/asked && exec cat {slurm}/queue; touch {slurm}/asked; exit 1\n"
    )
    supervise(run, fails(SpeechmillError("no")))
    assert (slurm / "told").read_text() == "scancel --quiet 7\n"
    assert "before the run ends: squeue failed" in (Path(run.run_dir) / LOG).read_text()


def test_jobs_of_somebody_elses_snakemake_in_the_folder_are_left_alone(run, slurm, supervise):
    write_json(Path(run.run_dir) / FILE, vars(this_process()) | {"host": "another"})
    found = supervise(run)
    assert (found.state, "end it on another" in found.last_error) == ("failed", True)
    assert (slurm / "told").read_text() == ""


def test_jobs_of_a_drained_run_end_by_themselves_though_its_supervisor_died(service, run, slurm, supervise):
    service.store.claim(run.id, "dead", None, 0)
    service.store.request_stop(run.id, "drain")
    request_stop(Path(run.run_dir), "drain", by="the API")  # as the keeper does
    (slurm / "squeue").write_text(
        f"#!/bin/sh\necho x >> {slurm}/asked; test $(wc -l < {slurm}/asked) -gt 3 && : > {slurm}/queue; cat {slurm}/queue\n"
    )
    found = supervise(service.store.get(run.id))
    assert (found.state, service.store.history(run.id)[-1]["why"]) == ("cancelled", "asked to drain")
    assert (slurm / "told").read_text() == ""
    assert read_stop(Path(run.run_dir)) is None


def test_a_run_says_what_its_own_snakemake_said_last_and_nobody_elses(service, run, slurm, supervise):
    log = Path(run.run_dir) / LOG
    log.parent.mkdir(parents=True)
    log.write_text("a mistake in somebody's Snakefile\n")
    found = supervise(run, fails(SpeechmillError("owner.json cannot be read")))
    assert found.last_error == "owner.json cannot be read"

    again = service.store.reopen(run.id, "resumed")
    script = "import sys; '--unlock' in sys.argv and sys.exit(); print('no such rule'); sys.exit(1)"
    change_plan(service, again, program=[sys.executable, "-c", script], on_slurm=False)
    assert supervise(service.store.get(run.id)).last_error == "no such rule"


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(keeper, "time", types.SimpleNamespace(monotonic=lambda: self.now))


def looks(made, clock, seconds):
    """What a keeper does within some seconds: how many supervisors it starts."""
    begun = 0
    for _ in range(round(seconds)):
        made.look()
        for child, since in made._begun.values():
            child.wait()
            begun += since == clock.now
        clock.now += 1
    return begun


@pytest.fixture
def false(monkeypatch):
    monkeypatch.setattr(start, "sys", types.SimpleNamespace(executable="/bin/false"))


def test_supervisors_that_cannot_start_are_tried_ever_less_often_and_then_nothing_is_left(
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
    assert at_work.wait(seconds(60)) == -9
    assert (slurm / "told").read_text() == "scancel --quiet 7\n"


def test_a_cancelled_run_whose_supervisors_cannot_start_is_cancelled(service, run, at_work, slurm, false, monkeypatch):
    service.store.claim(run.id, "dead", None, 0)
    service.stop(service.store.get(run.id), "cancel")
    looks(Keeper(service), Clock(monkeypatch), 20)
    assert service.store.get(run.id).state == "cancelled"
    assert at_work.wait(seconds(60)) == -9
    assert (slurm / "queue").read_text() == ""


def test_the_end_of_a_run_is_recorded_once_disk_and_data_base_take_it(
    service, run, slurm, supervise, monkeypatch, capfd
):
    change_plan(service, run, on_slurm=False)
    full_disk = [OSError(errno.ENOSPC, "No space left on device")] * 70
    full_data_base = [sqlite3.OperationalError("database or disk is full")]
    end = service.store.end

    def write(file, value):
        if file.name == result_file(run).name and full_disk:
            raise full_disk.pop()
        write_json(file, value)

    def end_of_run(*given):
        if full_data_base:
            raise full_data_base.pop()
        return end(*given)

    monkeypatch.setattr(supervisor, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "write_json", write)
    monkeypatch.setattr(service.store, "end", end_of_run)
    assert supervise(service.store.get(run.id)).is_active
    assert (Path(run.run_dir) / LOG).read_text().count("No space left on device") == 1
    assert capfd.readouterr().err.count("database or disk is full") == 1
    Keeper(service).look()
    assert service.store.get(run.id).state == "succeeded"
    assert not (Path(run.run_dir) / result_file(run)).exists()


def test_a_run_whose_supervisors_die_without_end_is_failed_and_says_so(service, monkeypatch):
    run = service.trigger("tester", "demo", {})
    dead = None
    for number in range(MOST_RESTARTS + 1):
        assert service.store.claim(run.id, f"supervisor {number}", dead, 0)
        dead = f"supervisor {number}"
    begun = []
    monkeypatch.setattr(keeper, "open_supervisor", lambda run_dir, *about: begun.append(str(run_dir)))
    Keeper(service).look()
    assert run.run_dir not in begun
    found = service.store.get(run.id)
    assert found.state == "failed"
    assert "died" in found.last_error
