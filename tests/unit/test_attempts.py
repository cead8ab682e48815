"""The account of a run, written from Snakemake's events and read back."""

import json
import logging
from types import SimpleNamespace

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from speechmill.runlog import joblog
from speechmill.runlog.attempts import FILE, AttemptLog, failure_text, given_up, read_attempts
from speechmill.runlog.snakemake_events import Start


class Snakemake:
    """Sends the records that Snakemake 9 sends (notes of its LogEvents), to one run."""

    def __init__(self, run_dir, **retries):
        self.run_dir = run_dir
        self.start = Start(run_dir, "demo", retries)
        self.account = AttemptLog(self.start)

    def say(self, text="", event=None, **fields):
        record = logging.LogRecord("snakemake", logging.INFO, "", 0, text, (), None)
        record.__dict__.update(fields, **({"event": event} if event else {}))
        self.account.emit(record)

    def describe(self, job, stage, local=True, **wildcards):
        log = self.run_dir / "logs" / stage / f"{next(iter(wildcards.values()))}.log" if wildcards else self.own(stage)
        resources = SimpleNamespace(_names={"mem_mb": 0, "runtime": 1, "tmpdir": 2}, mem_mb=8000, runtime=60)
        self.say(
            event=LogEvent.JOB_INFO,
            jobid=job,
            rule_name=stage,
            wildcards=wildcards,
            local=local,
            log=[str(log)],
            threads=2,
            resources=resources,
        )
        return log

    def own(self, stage):
        return self.run_dir / "logs" / f"{stage}.log"

    def submit(self, job, slurm_job):
        self.say(f"Job {job} has been submitted with SLURM jobid {slurm_job} (log: x).")

    def finish(self, job):
        self.say(event=LogEvent.JOB_FINISHED, job_id=job)

    def fail(self, job, log=()):
        self.say(event=LogEvent.JOB_ERROR, jobid=job, log=[str(path) for path in log])

    def lines(self, *events):
        return [line for line in read_attempts(self.run_dir) if line["event"] in events]


def write(log, *lines):
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        for line in lines:
            file.write(
                line if isinstance(line, str) else json.dumps({"text": "", "time": joblog.utc_now(), **line}) + "\n"
            )


def begin(stage, **about):
    return {"event": "begin", "stage": stage, "node": "n1", **about}


@pytest.fixture
def snakemake(tmp_path):
    return Snakemake(tmp_path, enhance=1, fetch=0)


def test_a_job_that_ends_well_is_told_with_what_it_asked_for_and_used(snakemake):
    log = snakemake.describe(1, "enhance", batch="b0")
    end = {"event": "end", "status": "done", "seconds": 2.5, "peak_mb": 900, "clips": {"passed": 3}, "device": "CPU"}
    write(log, begin("enhance"), end)
    snakemake.finish(1)
    began, submitted, finished = read_attempts(snakemake.run_dir)
    assert (began["event"], began["stage"], began["versions"].keys()) == ("began", "run", {"speechmill", "snakemake"})
    assert submitted["asked"] == {"threads": 2, "mem_mb": 8000, "runtime": 60}
    assert (finished["stage"], finished["batch"], finished["attempt"]) == ("enhance", "b0", 1)
    assert (finished["node"], finished["seconds"], finished["clips"]) == ("n1", 2.5, {"passed": 3})
    assert finished["device"] == "CPU"


def test_the_error_of_a_job_is_its_reason_and_its_lines_are_quoted(snakemake, capsys):
    log = snakemake.describe(1, "enhance", batch="b0")
    error = {"level": "error", "text": "disk full", "error_class": "SpeechmillError"}
    end = {"event": "end", "status": "failed", "failure": "no_space", "seconds": 1}
    write(log, begin("enhance"), {"text": "half way"}, error, end)
    snakemake.fail(1)
    (failed,) = snakemake.lines("failed")
    assert failed["failure"] == "no_space"
    assert (failed["reason"], failed["error_class"]) == ("disk full", "SpeechmillError")
    assert failed["log"].endswith("logs/batches/b0.log")
    assert [line[9:] for line in failed["lines"]][1:] == ["half way", "error: SpeechmillError: disk full"]
    assert "given_up" not in failed  # it is tried again
    assert "enhance b0 failed (attempt 1, node n1): disk full" in capsys.readouterr().err


def test_a_killed_job_keeps_its_log_and_slurms_reason(snakemake, tmp_path):
    log = snakemake.describe(1, "enhance", local=False, batch="b0")
    snakemake.submit(1, 77)
    write(log, begin("enhance", slurm_job="77"), "a word of a library\n")
    slurm_log = tmp_path / ".snakemake" / "slurm_logs" / "77.log"
    write(slurm_log, "srun: error: n1: task 0: Killed\n", "slurmstepd: error: Detected 1 oom_kill event\n", "more\n")
    snakemake.fail(1, [log, slurm_log])
    (failed,) = snakemake.lines("failed")
    assert failed["slurm_job"] == "77"
    assert failed["reason"] == "slurmstepd: error: Detected 1 oom_kill event"
    assert failed["failure"] == "out_of_memory"
    assert failed["log"] == str(slurm_log)
    assert failed["lines"][-1].endswith("| a word of a library")
    story = joblog.read(tmp_path / "logs" / "batches" / "b0.log")
    assert [line.get("event") for line in story] == ["begin", None]


def test_one_that_never_began_is_not_told_by_its_predecessor(snakemake, tmp_path):
    """Neither by an earlier attempt's log, nor by that of an earlier start of Snakemake."""
    log = snakemake.describe(1, "enhance", batch="b0")
    story = tmp_path / "logs" / "batches" / "b0.log"
    write(story, begin("enhance", time="2020-01-01T00:00:00.000+00:00"), {"level": "error", "text": "long ago"})
    snakemake.fail(1)
    snakemake.describe(2, "enhance", local=False, batch="b0")
    snakemake.submit(2, 78)
    write(log, begin("enhance", slurm_job="77"), {"level": "error", "text": "of another Slurm job"})
    snakemake.fail(2)
    assert [line["reason"] for line in snakemake.lines("failed")] == ["the job did not start"] * 2
    assert [line["failure"] for line in snakemake.lines("failed")] == ["not_started"] * 2


def test_what_ended_after_its_snakemake_had_died_is_told_by_the_next(snakemake):
    logs = [snakemake.describe(job, "enhance", local=False, batch=f"b{job}") for job in range(3)]
    for job, log in enumerate(logs):
        snakemake.submit(job, 70 + job)
        write(log, begin("enhance", slurm_job=str(70 + job)))
    write(logs[1], {"resumed": 2}, {"event": "end", "status": "done", "seconds": 9, "clips": {"passed": 3}})
    write(logs[2], {"event": "end", "status": "failed", "seconds": 9})
    for _ in range(3):
        resumed = Snakemake(snakemake.run_dir)
    (finished,) = snakemake.lines("finished")
    assert (finished["batch"], finished["clips"], finished["node"]) == ("b1", {"passed": 3}, "n1")
    assert finished["resumed"] == 2
    assert finished["start"] == snakemake.start.time != resumed.start.time


def test_the_last_failure_is_given_up_by_the_rules_own_retries(snakemake):
    for _ in range(2):
        snakemake.describe(1, "enhance", batch="b0")
        snakemake.fail(1)
    snakemake.describe(2, "fetch", file="f1")
    snakemake.fail(2)
    snakemake.describe(3, "enhance", batch="b1")
    snakemake.fail(3)
    lines = snakemake.lines("failed")
    assert [line.get("given_up", False) for line in lines] == [False, True, True, False]
    assert [(line["batch"], line.get("file")) for line in given_up(read_attempts(snakemake.run_dir))] == [
        ("b0", None),
        (None, "f1"),
    ]
    resumed = Snakemake(snakemake.run_dir)
    resumed.describe(1, "enhance", batch="b0")
    resumed.finish(1)
    assert [line.get("file") for line in given_up(read_attempts(snakemake.run_dir))] == ["f1"]


@pytest.mark.parametrize(
    ("said", "outcome", "told"),
    [
        ("", "succeeded", "succeeded"),
        ("", "failed", "failed"),
        ("Will exit after finishing currently running jobs (scheduler).", "failed", "stopped"),
        ("Terminating processes on user request, this might take some time.", "failed", "stopped"),
    ],
)
def test_how_a_start_ended(snakemake, said, outcome, told):
    snakemake.say(said)
    snakemake.start.end(outcome)
    snakemake.account.end()
    assert [line["outcome"] for line in snakemake.lines("ended")] == [told]


def test_a_failed_run_ends_with_the_lines_that_say_why(snakemake, capsys):
    for number in range(5):
        log = snakemake.describe(number, "fetch", file=f"f{number}")
        write(log, begin("fetch"), {"level": "error", "text": f"gated {number}"})
        snakemake.fail(number)
    capsys.readouterr()
    snakemake.start.end("failed")
    snakemake.account.end()
    said = capsys.readouterr().err
    assert said.startswith(
        "speechmill: 5 jobs failed for good\n- fetch f0 failed (attempt 1, the last, node n1): gated 0\n"
    )
    assert "error: gated 2" in said
    assert "gated 3" not in said
    assert "and 2 more: speechmill status" in said


def test_a_line_that_was_cut_short_costs_no_other(snakemake):
    path = snakemake.run_dir / FILE
    with open(path, "a") as file:
        file.write('{"time": "2026-')
    snakemake.describe(1, "publish")
    assert [line["event"] for line in read_attempts(snakemake.run_dir)] == ["began", "submitted"]


def test_a_full_disk_costs_lines_but_not_the_run(snakemake, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speechmill.runlog.attempts.os.write", full)
    snakemake.describe(1, "publish")
    snakemake.account.end()
    assert capsys.readouterr().err.count("the attempt log is incomplete") == 1


def test_a_terminal_that_is_gone_costs_nothing(snakemake, monkeypatch):
    class Gone:
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stderr", Gone())
    snakemake.describe(1, "fetch", file="f")
    snakemake.fail(1)
    snakemake.start.end("failed")
    snakemake.account.end()
    assert [line["event"] for line in read_attempts(snakemake.run_dir)] == ["began", "submitted", "failed", "ended"]


def test_a_log_that_cannot_be_read_costs_no_event(snakemake):
    log = snakemake.describe(1, "fetch", file="f")
    log.mkdir(parents=True)
    snakemake.fail(1)
    (failed,) = snakemake.lines("failed")
    assert failed["given_up"]
    assert failed["reason"].startswith("its log cannot be read")
    assert failed["failure"] == "unknown"


def test_a_job_whose_files_are_not_seen_did_not_die(snakemake):
    log = snakemake.describe(1, "enhance", batch="b0")
    write(log, begin("enhance"), {"event": "end", "status": "done", "seconds": 1})
    snakemake.fail(1)
    (failed,) = snakemake.lines("failed")
    assert "an expected output file is missing" in failed["reason"]
    assert failed["failure"] == "missing_output"


@pytest.mark.parametrize(
    ("printed", "failure"),
    [
        ("", "killed"),
        ("OSError: [Errno 28] No space left on device: 'x'", "no_space"),
        ("OSError: [Errno 122] Disk quota exceeded: 'x'", "no_space"),
        ("a clip of the data set says: oom_kill DUE TO TIME LIMIT", "killed"),  # not Slurm's word
    ],
)
def test_a_job_without_a_record_of_its_end_is_classified_by_what_was_printed(snakemake, printed, failure):
    log = snakemake.describe(1, "enhance", batch="b0")
    write(log, begin("enhance"), f"{printed}\n")
    snakemake.fail(1)
    assert snakemake.lines("failed")[0]["failure"] == failure


def test_slurms_time_limit_is_a_timeout_though_the_job_was_killed(snakemake, tmp_path):
    log = snakemake.describe(1, "enhance", local=False, batch="b0")
    snakemake.submit(1, 77)
    write(log, begin("enhance", slurm_job="77"))
    slurm_log = tmp_path / "slurm_logs" / "77.log"
    write(slurm_log, "slurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n")
    snakemake.fail(1, [log, slurm_log])
    assert snakemake.lines("failed")[0]["failure"] == "timeout"


def test_text_of_a_failure_names_work_and_place():
    line = {
        "stage": "send",
        "batch": "b7",
        "attempt": 1,
        "given_up": True,
        "slurm_job": "5",
        "node": "n2",
        "reason": "no",
    }
    assert failure_text(line) == "send b7 failed (attempt 1, the last, Slurm job 5, node n2): no"
