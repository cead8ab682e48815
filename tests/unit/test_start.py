"""What run, resume, drain and cancel do in every state of a run. Real Snakemakes are in tests/workflow/test_control.py."""

import subprocess
import sys

import pytest

from speechmill.errors import SpeechmillError
from speechmill.runlog.run_lock import State, read_stop, read_supervisor
from speechmill.runs.plan import RUN_FILE, Plan
from speechmill.runs.start import resume, start, stop
from speechmill.storage.files import read_json, write_json

from ..patience import seconds

SUPERVISES = """
import signal, sys, time
from pathlib import Path
from speechmill.runlog.run_lock import RunLock, State, read_stop
lock = RunLock(Path(sys.argv[1]))
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
lock.take()
lock.note(State(sys.argv[2]), "a reason")
print(1, flush=True)
while (request := read_stop(lock.run_dir)) is None or request.how != "cancel":
    time.sleep(0.05)
lock.release()
"""


@pytest.fixture
def plan(tmp_path):
    """Of a Snakemake that has nothing to do."""
    found = Plan(
        program=[sys.executable, "-c", "import sys; open('starts', 'a').write(f'{sys.argv[1]} ')"],
        options=["--profile", "p"],
        config=["dataset=demo"],
        directory=str(tmp_path),
        run_dir=str(tmp_path / "run"),
        prefix="speechmill-demo-0",
        on_slurm=False,
    )
    write_json(tmp_path / "run" / RUN_FILE, vars(found) | {"of_a_later_version": 1})
    return found


@pytest.fixture
def supervised(tmp_path):
    """Gives the run a supervisor in a state, as another process."""
    processes = []

    def begin(state):
        command = [sys.executable, "-c", SUPERVISES, str(tmp_path / "run"), state]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        processes[-1].stdout.readline()
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("state", list(State))
def test_a_run_with_a_supervisor_gets_no_second_one_and_is_stopped_by_that(plan, supervised, tmp_path, capfd, state):
    run_dir = tmp_path / "run"
    process = supervised(state)
    for begin in (lambda: start(plan), lambda: resume(run_dir, cancel=False)):
        with pytest.raises(SpeechmillError, match=f"worked on by process {process.pid}"):
            begin()
    stop(run_dir, "drain")
    assert "starts no new job and ends with its running jobs" in capfd.readouterr().out
    assert (read_stop(run_dir).how, read_supervisor(run_dir).pid) == ("drain", process.pid)
    stop(run_dir, "cancel")
    assert process.wait(seconds(60)) == 0
    assert (read_stop(run_dir), read_supervisor(run_dir)) == (None, None)
    assert not (tmp_path / "starts").exists()


def test_what_does_not_end_is_named(plan, supervised, tmp_path):
    process = supervised("running")
    process.send_signal(19)  # stopped: it obeys nothing
    with pytest.raises(
        SpeechmillError, match=rf"process {process.pid} .* did not end within 1 s; processes still at work"
    ):
        stop(tmp_path / "run", "cancel", timeout=1)


def test_a_run_whose_supervisor_died_is_unlocked_once_and_resumed(plan, supervised, tmp_path):
    run_dir, starts = tmp_path / "run", tmp_path / "starts"
    process = supervised("between")
    for command in ("drain", "cancel", "resume"):
        process.kill()
        process.wait()
        with pytest.raises(SpeechmillError, match="is dead; continue with: speechmill resume"):
            start(plan)
        if command == "resume":
            assert resume(run_dir, cancel=False) == 0
        else:
            stop(run_dir, command)
            assert starts.read_text() == "--unlock "
            starts.unlink()
            process = supervised("between")
        assert read_stop(run_dir) is None
    assert starts.read_text() == "--unlock --profile "
    assert read_supervisor(run_dir) is None
    assert read_json(run_dir / RUN_FILE)["of_a_later_version"] == 1


@pytest.mark.parametrize("how", ["drain", "cancel"])
def test_a_run_that_has_ended_has_nothing_to_stop(plan, tmp_path, how):
    stop(tmp_path / "run", how)
    assert not (tmp_path / "starts").exists()
    assert (read_stop(tmp_path / "run"), read_supervisor(tmp_path / "run")) == (None, None)


def test_a_run_in_the_background_can_be_stopped_once_it_is_said_to_run(plan, tmp_path, capfd):
    plan.program = [sys.executable, "-c", "import sys, time; '--unlock' in sys.argv or time.sleep(60)"]
    assert start(plan, background=True) == 0
    assert "continues without this terminal" in capfd.readouterr().out
    assert read_supervisor(tmp_path / "run").is_alive
    stop(tmp_path / "run", "cancel")
    assert read_supervisor(tmp_path / "run") is None
