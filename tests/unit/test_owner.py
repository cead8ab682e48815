"""Who holds a run, and whether it lives."""

import dataclasses
import os
import subprocess
import sys

import pytest

from speechmill.errors import SpeechmillError
from speechmill.owner import FILE, claim, read_owner, release

CLAIM = "import sys, time; from pathlib import Path; from speechmill.owner import claim; claim(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"


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


def test_a_supervisor_counts_only_while_it_lives(tmp_path, other):
    mine = dataclasses.replace(read_owner(tmp_path), supervisor=os.getpid())
    assert mine.watched_by == os.getpid()  # the parent of that process
    assert dataclasses.replace(mine, supervisor=1).watched_by is None


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
