"""Jobs: what they print goes to their log as JSON lines, and an error is one message; the summary on the terminal."""

import json
import subprocess
import sys

import pytest

from speechmill.cli.main import main
from speechmill.runlog.job_context import remove_empty_logs, stage_timing
from speechmill.runlog.joblog import read
from speechmill.storage.files import write_json

JOB = """
import os, sys, types
from speechmill.runlog.job_context import logged
from speechmill.errors import ConfigError
with logged(types.SimpleNamespace(log=[sys.argv[1]], rule='test')) as report:
    print("from python")
    os.system("echo from a child")
    report(clips={{"passed": 2}})
    {action}
print("after")
"""


def job(tmp_path, action):
    log = tmp_path / "logs" / "a.log"
    done = subprocess.run([sys.executable, "-c", JOB.format(action=action), str(log)], capture_output=True, text=True)
    return done, read(log)


def test_output_goes_to_the_log_and_the_terminal_is_given_back(tmp_path):
    done, log = job(tmp_path, "pass")
    assert done.returncode == 0
    assert done.stdout == "after\n"
    assert [(line["level"], line["text"]) for line in log[1:3]] == [("info", "from python"), ("output", "from a child")]
    begin, end = log[0], log[-1]
    assert (begin["event"], begin["stage"]) == ("begin", "test")
    assert begin["node"]
    assert (end["event"], end["status"], end["clips"]) == ("end", "done", {"passed": 2})
    assert "failure" not in end
    assert 0 < end["cpu_seconds"] < 60
    assert 5 < end["peak_mb"] < 5000


def test_our_errors_are_one_message_on_the_terminal_and_in_the_log(tmp_path):
    done, log = job(tmp_path, "raise ConfigError('the key is wrong')")
    assert done.returncode == 1
    assert done.stderr == "speechmill: the key is wrong\n"
    (error,) = (line for line in log if line["level"] == "error")
    assert (error["text"], error["error_class"]) == ("the key is wrong", "ConfigError")
    assert "traceback" not in error
    assert (log[-1]["status"], log[-1]["failure"]) == ("failed", "program")


@pytest.mark.parametrize(
    ("action", "failure"),
    [
        ("raise OSError(28, 'full')", "no_space"),
        ("raise SystemExit(3)", "killed"),
        ("raise MemoryError", "out_of_memory"),
        ("1 / 0", "program"),
    ],
)
def test_the_end_of_a_failed_job_has_its_code(tmp_path, action, failure):
    _, log = job(tmp_path, action)
    assert log[-1]["failure"] == failure


def test_a_bug_leaves_its_traceback_in_the_log_and_one_line_on_the_terminal(tmp_path):
    done, log = job(tmp_path, "1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "a.log" in done.stderr
    (error,) = (line for line in log if line["level"] == "error")
    assert error["text"] == "ZeroDivisionError: division by zero"
    assert error["traceback"].startswith("Traceback")
    assert "Traceback" not in done.stderr


LAYOUT = """
import sys, types
from speechmill.runlog.job_context import logged
with logged(types.SimpleNamespace(log=[sys.argv[1]], rule=sys.argv[2])):
    print("words of", sys.argv[2])
    {action}
"""


def stage(tmp_path, name, action="pass"):
    log = tmp_path / "logs" / name / "clips-00000.log"
    subprocess.run([sys.executable, "-c", LAYOUT.format(action=action), str(log), name], capture_output=True)
    return log


def test_one_log_tells_the_story_of_a_batch(tmp_path):
    failed = stage(tmp_path, "enhance", "1 / 0")
    assert "ZeroDivisionError" in failed.read_text()  # Snakemake shows it
    stage(tmp_path, "enhance")
    last = stage(tmp_path, "score")
    assert [path for path in (tmp_path / "logs").rglob("*.log") if path.stat().st_size == 0] == [last]
    remove_empty_logs(tmp_path / "logs")
    (story,) = (tmp_path / "logs").rglob("*.log")
    assert story == tmp_path / "logs" / "batches" / "clips-00000.log"
    lines = [json.loads(line) for line in story.read_text().splitlines()]  # every line is an object
    events = [(line["event"], line["stage"], line.get("status")) for line in lines if "event" in line]
    stages = (("enhance", "failed"), ("enhance", "done"), ("score", "done"))
    assert events == [event for name, how in stages for event in (("begin", name, None), ("end", name, how))]


def test_what_a_killed_attempt_said_is_kept(tmp_path):
    log = stage(tmp_path, "enhance", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    stage(tmp_path, "enhance")  # put back by Slurm: nobody has removed the log
    events = [line.get("event") for line in read(tmp_path / "logs" / "batches" / log.name)]
    assert events == ["begin", None, "begin", None, "end"]


def test_timing_is_that_of_each_batchs_last_success(tmp_path):
    def end(stage, seconds, status="done"):
        line = {"text": "", "event": "end", "stage": stage, "status": status, "seconds": seconds}
        return json.dumps(line) + "\n"

    batches = tmp_path / "batches"
    batches.mkdir()
    (batches / "a.log").write_text(end("enhance", 1.5) + end("enhance", 2.25) + end("enhance", 9, "failed"))
    (batches / "b.log").write_text(end("enhance", 3) + "a word of some library\n" + end("score", 0.5))
    (tmp_path / "rank.log").write_text(end("rank", 1) + end("rank", 4))
    (tmp_path / "publish.log").write_text(end("publish", 7))  # of an earlier version: after the report
    assert stage_timing(tmp_path) == {
        "enhance": {"jobs": 2, "seconds": 5.25},
        "score": {"jobs": 1, "seconds": 0.5},
        "rank": {"jobs": 1, "seconds": 4},
    }


def test_summary_names_states_reasons_and_places(tmp_path, capsys):
    summary = {
        "dataset": "demo",
        "clips": {"input": 10, "accepted": 5, "rejected": 3, "errored": 1, "duplicate": 1},
        "hours": {"input": 2.0, "accepted": 1.0},
        "rejected_by": {"closeness": 2, "speech_s": 1},
        "errored_by": {"truncated": 1},
    }
    write_json(tmp_path / "report" / "summary.json", summary)
    assert main(["summary", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for part in ("10 clips, 2.00 h", "accepted          5   50.0%  1.00 h", "closeness 2, speech_s 1", "report.html"):
        assert part in shown


def test_summary_of_nothing_says_what_to_do(tmp_path, capsys):
    assert main(["summary", str(tmp_path)]) == 1
    assert "no finished run here" in capsys.readouterr().err
