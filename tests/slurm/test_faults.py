"""What breaks on clusters, done to a real one: every run ends with the bytes of an undisturbed one.

A worker is stopped (SIGSTOP) to hold a job in the moment in which something is done to it. Faults that do not touch
each other share a run, since each run takes a minute.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations

import pytest

from speechmill.cluster import slurm
from speechmill.storage.files import read_json

from ..runs import RESULTS, wait_for
from . import cluster


@pytest.fixture(autouse=True)
def whole_cluster():
    """Each test leaves all nodes at work, whatever it did to them."""
    yield
    for node in cluster.NODES:
        cluster.break_node(node, broken=False)
    wait_for(cluster.healthy)


def settled(run, finished) -> None:
    """The run has the bytes of an undisturbed one, its states balance and nothing half-written is left."""
    assert run.hashes(*RESULTS) == finished.hashes(*RESULTS)
    clips = read_json(run.results / "report" / "summary.json")["clips"]
    assert clips == read_json(finished.results / "report" / "summary.json")["clips"]
    assert not list(run.results.rglob("*.tmp"))
    assert [job for job in slurm.jobs(run.prefix) if job.state in slurm.WAITING | slurm.RUNNING] == []


def no_two_at_once(run) -> None:
    """No two jobs of the same work overlap in time."""
    rows = [row for row in run.accounted() if row.start != "Unknown" and row.node != "None assigned"]
    for one, other in combinations(rows, 2):
        if one.work == other.work:
            assert one.end <= other.start or other.end <= one.start, (one, other)


def test_cancelled_job_killed_worker_and_lost_node(run, finished):
    run.begin()
    frozen = run.freeze("enhance", 3)
    on_node = Counter(job.node for job in slurm.jobs(run.prefix) if job.state == "RUNNING")
    lonely = next(node for node, jobs in on_node.items() if jobs == 1)
    jobs = {batch: run.job("enhance", batch) for batch in frozen}
    lost = next(batch for batch, job in jobs.items() if job.node == lonely)
    cancelled, killed = sorted(set(jobs) - {lost})
    slurm.call("scancel", jobs[cancelled].id)
    os.kill(frozen[killed], signal.SIGKILL)
    cluster.stop_daemon("slurmd", lonely, kill=True)
    slurm.call("scontrol", "update", f"NodeName={lonely}", "State=DOWN", "Reason=test")
    try:
        again = run.job("enhance", lost, frozenset({"PENDING"}))  # Slurm put it back, to begin in two minutes
        slurm.call("scontrol", "update", f"JobId={again.id}", "StartTime=now")
        run.end()
    finally:
        cluster.start_daemon("slurmd", lonely)
        slurm.call("scontrol", "update", f"NodeName={lonely}", "State=RESUME")
    assert run.states(f"enhance {cancelled}")[0] == "CANCELLED"
    assert run.states(f"enhance {killed}")[0] == "FAILED"
    assert run.states(f"enhance {lost}")[0] == "NODE_FAIL"
    rows = [row for row in run.accounted() if row.work == f"enhance {lost}"]
    assert rows[-1].state == "COMPLETED"
    assert rows[-1].node != lonely
    settled(run, finished)
    no_two_at_once(run)


def test_out_of_memory_succeeds_with_more(run, finished):
    run.change(cluster={"memory_per_worker": "700M", "hours": 0.5, "retry_delay_seconds": 1})
    run.begin("--set-resources", "score:mem_mb=2000")
    output = run.end()
    rows = [row for row in run.accounted() if row.work == "enhance clips-00000"]
    assert [row.state for row in rows] == ["FAILED", "COMPLETED"]  # OUT_OF_MEMORY where cgroups set the limit
    assert [f"mem={700 * n}M" in row.tres.split(",") for n, row in enumerate(rows, 1)] == [True, True]
    failed = next(line for line in run.attempts("failed") if line["batch"] == "clips-00000")
    assert failed["failure"] == "out_of_memory"
    assert "memory limit" in failed["reason"]  # Slurm has two messages: of the step and of the job
    assert failed["log"] == failed["slurm_log"]
    assert f"failed (attempt 1, Slurm job {rows[0].id}, node {rows[0].node}): {failed['reason']}" in output
    settled(run, finished)


START_SECONDS = 10  # of Python with torch: a small part of the minute that is Slurm's smallest time limit


@pytest.fixture
def fast_machine():
    """Slurm's smallest time limit is a minute of wall-clock time, in which the other jobs of the run have to end."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    if (took := time.monotonic() - begin) > START_SECONDS:
        pytest.skip(f"needs a machine that starts Python with torch in {START_SECONDS} s; this one took {took:.0f} s")


@pytest.mark.usefixtures("fast_machine")
def test_time_limit_controller_restart_and_database_outage(run, finished):
    run.change(cluster={"memory_per_worker": "2G", "hours": 0.0167, "retry_delay_seconds": 1})
    run.begin()
    frozen = run.freeze("enhance", 3)
    stuck, *others = sorted(frozen)
    cluster.stop_daemon("slurmdbd")
    cluster.stop_daemon("slurmctld")
    for batch in others:
        os.kill(frozen[batch], signal.SIGCONT)
    time.sleep(20)  # an outage of the controller, in which the two jobs end
    cluster.start_daemon("slurmctld")
    wait_for(_answers)
    time.sleep(10)  # without the data base: the run goes on meanwhile
    cluster.start_daemon("slurmdbd")
    run.end()
    wait_for(lambda: "COMPLETED" in run.states("publish"))
    assert run.states(f"enhance {stuck}") == ["TIMEOUT", "COMPLETED"]
    for batch in others:
        assert run.states(f"enhance {batch}") == ["COMPLETED"]
    settled(run, finished)


def _answers() -> bool:
    try:
        return bool(slurm.call("sinfo", "--noheader", timeout=5))
    except slurm.SlurmError:
        return False


def test_killed_controllers_leave_no_second_writer(run, finished):
    run.begin()
    frozen = run.freeze("enhance", 3)
    controller = read_json(run.results / "owner.json")["pid"]
    os.kill(controller, signal.SIGKILL)  # speechmill run lives: it waits for the three jobs, then starts it again
    wait_for(lambda: "Slurm jobs of the earlier start are alive" in run.output())
    for pid in frozen.values():
        os.kill(pid, signal.SIGCONT)
    frozen = run.freeze("score", 1)
    os.killpg(run.process.pid, signal.SIGKILL)
    os.kill(read_json(run.results / "owner.json")["pid"], signal.SIGKILL)
    run.process.wait()

    plain = run.plain("--nolock", check=False)  # even where somebody removes Snakemake's own lock
    assert plain.status != 0
    assert "would write the same files: speechmill resume waits for them" in plain.output
    refused = run.speechmill("run", "demo", "--", *run.options())
    assert refused.returncode == 1
    assert "speechmill resume" in refused.stderr
    assert "interrupted" in run.speechmill("status", "results/demo").stdout

    run.speechmill_popen("resume", "results/demo")
    time.sleep(5)
    for pid in frozen.values():
        os.kill(pid, signal.SIGCONT)
    run.end()
    assert all(run.states(f"enhance clips-0000{n}") == ["COMPLETED"] for n in range(3))
    settled(run, finished)
    no_two_at_once(run)


def test_full_file_system_then_freed(run, finished, tmp_path):
    results = run.results
    kept = tmp_path / "kept"
    results.rename(kept)
    results.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(results)], check=True)
    try:
        shutil.copytree(kept, results, dirs_exist_ok=True)
        run.begin()
        frozen = run.freeze("enhance", 3)
        ballast = results / "ballast"
        with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        for pid in frozen.values():
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: run.attempts("failed") or _failed(run))
        assert not list((results / "enhanced").glob("*.parquet"))
        ballast.unlink()
        run.end()
        settled(run, finished)
    finally:
        run.destroy()
        subprocess.run(["umount", "--lazy", str(results)], check=True)


def _failed(run) -> bool:
    return any(job.state == "FAILED" for job in slurm.jobs(run.prefix))


def test_a_node_that_fails_every_job_is_named_and_avoided(run, finished):
    run.change(cluster={"memory_per_worker": "2G", "hours": 0.5, "retry_delay_seconds": 25})
    cluster.break_node("n1")
    run.begin()
    wait_for(lambda: "n1: jobs of several batches failed there and none succeeded; retries avoid it" in run.output())
    wait_for(lambda: len(list((run.results / "enhanced").glob("*.parquet"))) == 3)
    rows = [row for row in run.accounted() if row.work.startswith("enhance")]
    assert {row.state for row in rows if row.node == "n1"} == {"FAILED"}
    assert len({row.work for row in rows if row.node == "n1"}) >= 2
    assert len(rows) <= 3 * 4
    cluster.break_node("n1", broken=False)  # the rest would show the same again, 25 s later each
    run.end()
    settled(run, finished)


def test_a_preempted_job_that_slurm_drops_is_put_back(run, finished):
    run.begin()
    frozen = run.freeze("enhance", 3)
    batch = min(frozen)
    job = run.job("enhance", batch)
    urgent = slurm.call(
        *("sbatch", "--parsable", "-p", "urgent", "-A", cluster.ACCOUNT, "-w", job.node, "--exclusive", "--mem=7G"),
        *("--output=/dev/null", "--wrap", "sleep 20"),
    ).strip()
    wait_for(lambda: f"Slurm did not requeue job {job.id}, enhance {batch} (PREEMPTED" in run.output())
    slurm.call("scancel", "--quiet", urgent)
    slurm.call("scontrol", "update", f"JobId={job.id}", "StartTime=now")  # Slurm lets it wait for two minutes
    for pid in run.processes(".enhance.py"):
        os.kill(pid, signal.SIGCONT)
    run.end()
    assert run.states(f"enhance {batch}") == ["REQUEUED", "COMPLETED"]
    settled(run, finished)


def test_jobs_that_the_plugin_lost_track_of(ended, finished, tmp_path):
    """With sacct it does not understand the state of a cancelled job, and waits for ever."""
    run = ended.copy(tmp_path / "run")
    shutil.rmtree(run.results / "published")
    try:
        run.begin("--slurm-status-command", "sacct", stall=20)
        wait_for(lambda: run.processes(".publish.py"))
        slurm.call("scancel", run.job("publish").id)
        output = run.end()
        assert "lost track of jobs" in output
        assert "starting it again" in output
        assert run.states("publish") == ["CANCELLED", "COMPLETED"]
        settled(run, finished)
        no_two_at_once(run)
    finally:
        run.destroy()


def test_drain_and_cancel_leave_nothing_at_work(run):
    run.begin()
    frozen = run.freeze("enhance", 3)
    drained = run.speechmill("drain", "results/demo")
    assert drained.returncode == 0, drained.stderr
    for pid in frozen.values():
        os.kill(pid, signal.SIGCONT)
    output = run.end()
    assert "stopped (drain)" in output
    assert len(list((run.results / "enhanced").glob("*.parquet"))) == 3
    assert not list((run.results / "scores").glob("*.parquet"))

    run.speechmill_popen("resume", "results/demo")
    run.freeze("score", 2)
    cancelled = run.speechmill("cancel", "results/demo")
    assert cancelled.returncode == 0, cancelled.stderr
    run.end(status=130)
    # Seconds: proctrack/linuxproc loses sight of processes whose parent has ended, and Slurm then does not wait for them.
    wait_for(lambda: not run.processes("snakemake"))
    assert not [job for job in slurm.jobs(run.prefix) if job.state in slurm.WAITING | slurm.RUNNING]
    assert "stopped" in run.speechmill("status", "results/demo").stdout


def test_a_batch_that_always_fails_is_reported_and_nothing_published(run, finished):
    table = run.results / "manifest" / "clips-00001.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole + b"damaged")
    run.begin("--retries", "1")
    output = run.end(status=1)
    assert len(run.states("enhance clips-00001")) == 2
    assert "1 of 3 batches failed: clips-00001" in output
    assert "not publishing; reporting the other batches" in output
    assert not (run.results / "published").exists()
    summary = read_json(run.results / "report" / "summary.json")
    assert summary["failed_batches"] == {"clips-00001": 4}
    assert summary["errored_by"]["batch_failed"] == 4
    assert sum(summary["clips"].values()) == 2 * summary["clips"]["input"] == 20
    assert "1 of 3 batches failed" in (run.results / "report" / "report.html").read_text()
    failed = run.attempts("failed")[-1]
    told = f"enhance clips-00001 failed (attempt 2, the last, Slurm job {failed['slurm_job']}, node {failed['node']}): "
    assert "clips-00001.parquet" in failed["reason"]
    assert told + failed["reason"] in run.speechmill("status", "results/demo").stdout
    assert told + failed["reason"] in output  # the summary at the end, with the lines of the job's log
    assert f"  {failed['log']}:\n    " + "\n    ".join(failed["lines"]) in output

    table.write_bytes(whole)
    run.speechmill_popen("resume", "results/demo")
    run.end()
    settled(run, finished)
