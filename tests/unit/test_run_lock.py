"""Who holds a run, and whether it lives."""

import dataclasses
import os
import subprocess
import sys
import time

import pytest

from speechmill.errors import SpeechmillError
from speechmill.runlog.run_lock import (
    FILE,
    SILENT_SECONDS,
    SUPERVISED,
    SUPERVISOR,
    RunLock,
    State,
    claim,
    clear_stop,
    read_owner,
    read_stop,
    read_supervisor,
    release,
    request_stop,
)
from speechmill.storage.files import read_json, write_json

CLAIM = "import sys, time; from pathlib import Path; from speechmill.runlog.run_lock import claim; claim(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"

SUPERVISE = CLAIM.replace("import claim; claim(Path(sys.argv[1]))", "import RunLock; RunLock(Path(sys.argv[1])).take()")


@pytest.fixture
def other(tmp_path):
    """Another process that holds the run."""
    process = subprocess.Popen([sys.executable, "-c", CLAIM, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()


def test_a_living_owner_keeps_the_run(tmp_path, other):
    assert read_owner(tmp_path).is_alive
    with pytest.raises(SpeechmillError, match=f"worked on by process {other.pid}"):
        claim(tmp_path)
    release(tmp_path)  # of somebody else: nothing happens
    assert read_owner(tmp_path).pid == other.pid


@pytest.fixture
def supervisor(tmp_path):
    """A process that supervises the run."""
    process = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()


def test_a_run_has_one_supervisor(tmp_path, supervisor):
    lock = RunLock(tmp_path)
    with pytest.raises(SpeechmillError, match=f"worked on by process {supervisor.pid}"):
        lock.take()
    lock.release()  # of somebody else: nothing happens
    assert read_supervisor(tmp_path).pid == supervisor.pid
    supervisor.kill()
    supervisor.wait()
    assert lock.take().pid == supervisor.pid  # which is dead: it may have left something
    lock.note(State.BETWEEN, "a reason")
    found = read_supervisor(tmp_path)
    assert (found.pid, found.state, found.reason) == (os.getpid(), "between", "a reason")
    lock.release()
    assert read_supervisor(tmp_path) is None
    assert lock.take() is None


def test_of_many_supervisors_that_begin_at_once_one_gets_the_run(tmp_path):
    command = [sys.executable, "-c", SUPERVISE, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(6)]
    try:
        assert sorted(process.stdout.readline() for process in processes) == [b""] * 5 + [b"1\n"]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_supervisor_elsewhere_lives_as_long_as_its_heart_beats(tmp_path):
    lock = RunLock(tmp_path)
    lock.take()
    content = read_json(lock.file)
    write_json(lock.file, content | {"host": "login2", "pid": 1, "of_a_later_version": 1})
    assert read_supervisor(tmp_path).is_alive
    os.utime(lock.file, (0, time.time() - SILENT_SECONDS - 1))
    assert not read_supervisor(tmp_path).is_alive
    lock.heartbeat()  # works on a full disk, too
    assert read_supervisor(tmp_path).is_alive


def test_snakemake_works_for_the_living_supervisor_alone(tmp_path, supervisor, monkeypatch):
    for parent in ("", "1"):  # a plain snakemake between two of the supervisor's, and one whose supervisor was killed
        monkeypatch.setenv(SUPERVISOR, parent)
        with pytest.raises(SpeechmillError, match=f"worked on by process {supervisor.pid}"):
            claim(tmp_path)
    monkeypatch.setenv(SUPERVISOR, str(supervisor.pid))
    claim(tmp_path)
    release(tmp_path)
    supervisor.kill()
    supervisor.wait()
    request_stop(tmp_path, "cancel", by="somebody")
    with pytest.raises(SpeechmillError, match="somebody asked to cancel the run before its first job began"):
        claim(tmp_path)


def test_a_request_to_cancel_remains_one_and_ends_with_its_supervisor(tmp_path):
    lock = RunLock(tmp_path, result="for the API")
    request_stop(tmp_path, "drain", by="a")
    lock.take()
    assert read_stop(tmp_path).how == "drain"
    clear_stop(tmp_path)
    write_json(
        tmp_path / SUPERVISED, read_json(tmp_path / SUPERVISED) | {"host": "login2"}
    )  # no signal to this process
    for how, by, expected in (("drain", "a", "a"), ("cancel", "b", "b"), ("drain", "c", "b"), ("cancel", "d", "b")):
        request_stop(tmp_path, how, by=by)
        assert read_stop(tmp_path).by == expected
    assert read_stop(tmp_path).how == "cancel"
    write_json(tmp_path / SUPERVISED, read_json(tmp_path / SUPERVISED) | {"host": os.uname().nodename})
    lock.release()
    assert read_stop(tmp_path) is None
    request_stop(tmp_path, "cancel")  # of a supervisor that was killed
    RunLock(tmp_path).take()  # by a person who starts the run again
    assert read_stop(tmp_path) is None


def test_a_dead_owner_does_not(tmp_path, other):
    other.kill()  # not waited for: a zombie is dead, too
    while read_owner(tmp_path).is_alive:
        pass
    claim(tmp_path)
    assert read_owner(tmp_path).pid == os.getpid()
    release(tmp_path)
    assert read_owner(tmp_path) is None


def test_a_reused_process_id_is_another_process(tmp_path):
    claim(tmp_path)
    mine = read_owner(tmp_path)
    assert mine.is_alive
    assert not dataclasses.replace(mine, ticks=mine.ticks - 1).is_alive
    assert not dataclasses.replace(mine, boot="another boot").is_alive


def test_an_owner_elsewhere_counts_as_alive(tmp_path):
    claim(tmp_path)
    elsewhere = dataclasses.replace(read_owner(tmp_path), host="login2", pid=1)
    assert elsewhere.is_alive
    assert not elsewhere.is_here


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / FILE).write_text("{")
    with pytest.raises(SpeechmillError, match=FILE):
        read_owner(tmp_path)
