"""The supervisor with a stand-in for Snakemake, a script that does what Snakemake does in the case at hand."""

import json
import os
import signal
import subprocess
import sys

import pytest

from speechmill.cluster import slurm
from speechmill.cluster.queue import Job, SlurmQueue
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.runlog.run_lock import FILE
from speechmill.runs import supervisor as supervising
from speechmill.runs.plan import Plan, make_plan, merged_config
from speechmill.runs.start import start
from speechmill.runs.supervisor import Supervisor, unlock

from ..patience import seconds
from ..runs import lives, wait_for


@pytest.fixture
def plan(tmp_path):
    """A plan whose program counts its starts and then runs `body`."""

    def make(body, **changes):
        script = tmp_path / "snakemake.py"
        script.write_text(
            "import os, signal, sys, time\n"
            "from pathlib import Path\n"
            "if '--unlock' in sys.argv: sys.exit()\n"
            "starts = Path('starts'); n = len(starts.read_text()) + 1 if starts.exists() else 1\n"
            "starts.write_text('x' * n)\n"
            "print('start', n, sys.argv[1:], flush=True)\n" + body
        )
        settings = {"poll_seconds": 0.1, "stall_seconds": 2.0, "on_slurm": False, "options": ["--profile", "p"]}
        return Plan(
            program=[sys.executable, str(script)],
            config=["dataset=demo"],
            directory=str(tmp_path),
            run_dir=str(tmp_path / "run"),
            prefix="speechmill-demo-0",
            **(settings | changes),
        )

    return make


@pytest.fixture
def queue(monkeypatch):
    """Slurm's queue, as a list to be changed; the calls that are made."""
    jobs, calls = [], []
    monkeypatch.setattr(slurm, "jobs", lambda prefix: list(jobs))
    monkeypatch.setattr(slurm, "call", lambda *command, **_: calls.append(command) or "")
    return jobs, calls


def test_what_snakemake_says_and_how_it_ends_is_passed_on(plan, capfd):
    supervisor = Supervisor(plan("sys.exit(3)"))
    assert supervisor.run() == 3
    shown = "start 1 ['--profile', 'p', '--config', 'dataset=demo']"
    assert shown in capfd.readouterr().err
    assert shown in (supervisor.run_dir / "logs" / "run.log").read_text()


def test_a_killed_snakemake_is_started_again(plan):
    supervisor = Supervisor(plan("if n < 3: os.kill(os.getpid(), signal.SIGKILL)"))
    assert supervisor.run() == 0
    assert "restart 2" in (supervisor.run_dir / "logs" / "run.log").read_text()


def test_what_a_killed_snakemake_had_started_ends_with_it(plan, tmp_path):
    body = (
        "import subprocess\n"
        "if n == 1:\n"
        "    late = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    Path('late').write_text(str(late.pid)); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert Supervisor(plan(body)).run() == 0
    assert not lives(int((tmp_path / "late").read_text()))


def test_restarts_without_progress_are_bounded(plan, tmp_path):
    supervisor = Supervisor(plan("os.kill(os.getpid(), signal.SIGKILL)", max_restarts=3))
    assert supervisor.run() == 1
    assert len((tmp_path / "starts").read_text()) == 4
    assert "giving up after 3 restarts without progress" in (supervisor.run_dir / "logs" / "run.log").read_text()


def test_progress_starts_the_count_anew(plan, tmp_path):
    body = (
        "Path('run/scores').mkdir(parents=True, exist_ok=True); Path(f'run/scores/{n}.parquet').touch()\n"
        "if n < 7: os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert Supervisor(plan(body, max_restarts=2)).run() == 0
    assert len((tmp_path / "starts").read_text()) == 7


RECORDED = """
import json
from speechmill.utils.times import utc_now
if n == 1:
    line = {"time": utc_now(), "start": "s", "event": "failed", "stage": "enhance", "batch": "b0", "attempt": 1}
    with open("run/logs/attempts.jsonl", "a") as file:
        file.write(json.dumps(line | {"slurm_job": None, "failure": "no_space"}) + "\\n")
    sys.exit(1)
"""


@pytest.mark.parametrize(
    "body", ["if n == 1: print('OSError: [Errno 28] No space left on device', flush=True); sys.exit(1)", RECORDED]
)
def test_after_a_full_disk_it_waits_for_space_and_starts_again(plan, monkeypatch, body):
    class Full:
        f_files, f_favail, f_frsize = 0, 0, 4096
        looks = 0

        @property
        def f_bavail(self):
            Full.looks += 1
            return 0 if Full.looks < 4 else 10**6

    monkeypatch.setattr(supervising.os, "statvfs", lambda path: Full())
    supervisor = Supervisor(plan(body))
    assert supervisor.run() == 0
    said = (supervisor.run_dir / "logs" / "run.log").read_text()
    assert said.count("is full: waiting for space") == 1
    assert Full.looks == 4


def test_waiting_for_nothing_ends_and_is_started_again(plan, queue):
    supervisor = Supervisor(plan("if n == 1: time.sleep(600)", on_slurm=True))
    assert supervisor.run() == 0
    assert "lost track of jobs" in (supervisor.run_dir / "logs" / "run.log").read_text()


def test_a_queue_that_cannot_be_asked_is_no_empty_queue(plan, monkeypatch):
    def away(prefix):
        raise slurm.SlurmError("squeue failed: Unable to contact slurm controller")

    monkeypatch.setattr(slurm, "jobs", away)
    supervisor = Supervisor(plan("time.sleep(1.5)", on_slurm=True))
    assert supervisor.watch(supervisor.plan.command()) == 0


def test_jobs_that_slurm_does_not_requeue_are_repaired_at_the_second_look(queue):
    logged = []
    repairer = SlurmQueue("speechmill-demo-0", 0.1, logged.append)
    repairer.seen = {"7", "8"}
    found = [
        Job("7", "PREEMPTED", "n1", "None", "rule_enhance_wildcards_b1"),
        Job("8", "PENDING", "", "BeginTime", "rule_enhance_wildcards_b2"),
        Job("9", "PREEMPTED", "n1", "None", "rule_enhance_wildcards_b3"),  # of an earlier start
        Job("10", "PENDING", "", "launch failed requeued held", "rule_score_wildcards_b4"),
    ]
    repairer.repair(found)
    assert queue[1] == []
    repairer.repair(found)
    assert queue[1] == [("scontrol", "release", "10"), ("scontrol", "requeue", "7")]
    repairer.repair(found)
    assert len(queue[1]) == 2
    assert logged[1] == "Slurm did not requeue job 7, enhance b1 (PREEMPTED on n1); requeued it"


def test_settling_cancels_waiting_jobs_and_waits_for_running_ones_until_asked_to_cancel(queue):
    found, calls = queue
    found += [Job("7", "RUNNING", "n1", "None", "rule_a"), Job("8", "PENDING", "", "Priority", "rule_b")]
    answers = iter([False, False, True])

    def cancel():
        if len(calls) == 3:
            found.clear()
            return True
        return next(answers)

    SlurmQueue("speechmill-demo-0", 0.01, lambda message: None).settle(cancel)
    assert [call[2:] for call in calls] == [("8",), ("8",), ("7", "8")]


def test_cancelling_where_slurm_is_not_installed_finds_no_job(queue, monkeypatch, tmp_path):
    queue[0].append(Job("7", "RUNNING", "n1", "None", "rule_a"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert SlurmQueue("speechmill-demo-0", 0.1, print).cancel() == 0
    (tmp_path / "squeue").write_text("")
    (tmp_path / "squeue").chmod(0o755)
    assert SlurmQueue("speechmill-demo-0", 0.1, print).cancel() == 1
    assert queue[1] == [("scancel", "--quiet", "7")]


def table(run_dir, batches):
    (run_dir / "manifest").mkdir(parents=True)
    (run_dir / "scores").mkdir()
    rows = "".join(f"{name}\t5\t1.0\t\n" for name in batches)
    (run_dir / "manifest" / "batches.tsv").write_text("batch\tclips\tseconds\tsource_file\n" + rows)


FAILS = """
Path('run/logs').mkdir(exist_ok=True)
if n == 1:
    line = '{"event": "failed", "stage": "enhance", "batch": "b2", "attempt": 4, "slurm_job": null, "time": "9999"}'
    Path('run/logs/attempts.jsonl').write_text(line + chr(10))
    sys.exit(1)
"""


@pytest.mark.parametrize(("policy", "targets", "status"), [("withhold", 1, 1), ("publish", 0, 0)])
def test_failed_batches_are_left_out_of_a_report_of_the_others(plan, tmp_path, policy, targets, status):
    run_dir = tmp_path / "run"
    table(run_dir, ["b1", "b2", "b3"])
    for name in ("b1", "b3"):
        (run_dir / "scores" / f"{name}.parquet").touch()
    supervisor = Supervisor(plan(FAILS, failed_batches=policy))
    assert supervisor.run() == status
    said = (run_dir / "logs" / "run.log").read_text()
    assert "1 of 3 batches failed: b2" in said
    second = next(line for line in said.splitlines() if line.startswith("start 2"))
    assert "without_batches=[b2]" in second
    assert second.count("'report'") == targets


@pytest.mark.parametrize("done", [[], ["b1"]])
def test_a_run_that_failed_of_something_else_is_not_reported(plan, tmp_path, done):
    """All batches failed, or batches are missing that did not fail: the second start would fail as the first did."""
    run_dir = tmp_path / "run"
    table(run_dir, ["b2"] if not done else ["b1", "b2", "b3"])
    for name in done:
        (run_dir / "scores" / f"{name}.parquet").touch()
    assert Supervisor(plan(FAILS)).run() == 1
    assert len((tmp_path / "starts").read_text()) == 1


def test_a_batch_that_could_not_be_sent_has_not_failed(plan, tmp_path):
    run_dir = tmp_path / "run"
    table(run_dir, ["b1", "b2"])
    for name in ("b1", "b2"):
        (run_dir / "scores" / f"{name}.parquet").touch()
    assert Supervisor(plan(FAILS.replace("enhance", "send"), failed_batches="publish")).run() == 1
    assert len((tmp_path / "starts").read_text()) == 1


def test_signals_drain_and_cancel(plan, tmp_path):
    body = (
        "signal.signal(signal.SIGTERM, lambda *_: (print('graceful', flush=True), time.sleep(0.3), sys.exit(1)))\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    (tmp_path / "run").mkdir()
    signals = ((signal.SIGTERM, 0, "drain"), (supervising.DRAIN, 0, "drain"), (signal.SIGINT, 130, "cancel"))
    for number, status, word in signals:
        made = plan(body)
        program = f"import json; from speechmill.runs.supervisor import *; sys.exit(Supervisor(Plan(**json.loads({json.dumps(json.dumps(vars(made)))}))).run())"
        log = tmp_path / "run" / "logs" / "run.log"
        before = log.read_text().count("ready") if log.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", f"import sys; {program}"], stderr=subprocess.DEVNULL)
        wait_for(lambda log=log, before=before: log.exists() and log.read_text().count("ready") > before)
        os.kill(process.pid, number)
        assert process.wait(timeout=seconds(100)) == status
        assert f"stopped ({word})" in log.read_text()


def test_a_living_owners_lock_stays(plan, tmp_path):
    from speechmill.runlog.run_lock import claim

    (tmp_path / "run").mkdir()
    claim(tmp_path / "run")
    with pytest.raises(SpeechmillError, match="not unlocking"):
        unlock(plan(""))
    with pytest.raises(SpeechmillError, match="worked on by"):
        start(plan(""))
    assert (tmp_path / "run" / FILE).exists()


def test_the_configuration_is_merged_as_snakemake_does(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("enhance: {level: light}\ncluster: {hours: 3}\n")
    config = merged_config(["dataset=demo", "cluster={workers: 3}", "outdir=elsewhere"], [file])
    assert config["batch_size"] == 64  # datasets/demo.yaml
    assert (config["cluster"]["workers"], config["cluster"]["hours"]) == (3, 3)
    assert (config["enhance"]["level"], config["enhance"]["enhancer"]) == ("light", "rnnoise")
    plan = make_plan("demo", "slurm", tmp_path, ["outdir=elsewhere"], ["--configfile", "mine.yaml", "--forceall"])
    assert plan.run_dir == str(tmp_path / "elsewhere" / "demo")
    assert plan.on_slurm
    assert not make_plan("demo", "local", tmp_path, [], []).on_slurm


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dem", "slurm", [], []), "did you mean"),
        (("demo", "pbs", [], []), "there is no profile"),
        (("demo", "slurm", ["cluster"], []), "expected key=value"),
        (("demo", "slurm", ["cluster={worker: 3}"], []), "unknown setting cluster.worker"),
        (("demo", "slurm", ["cluster={account: 'a b; rm -rf'}"], []), "cluster.account"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, words):
    dataset, profile, config, extra = arguments
    with pytest.raises(ConfigError, match=words):
        make_plan(dataset, profile, tmp_path, config, extra)
