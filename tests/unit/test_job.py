"""Jobs: what they print goes to their log, and an error is one message; the summary on the terminal."""

import subprocess
import sys

from speechmill.cli import main
from speechmill.files import write_json
from speechmill.job import remove_empty_logs, stage_timing

JOB = """
import os, sys, types
from speechmill.job import logged
from speechmill.errors import ConfigError
with logged(types.SimpleNamespace(log=[sys.argv[1]], rule='test')):
    print("from python")
    os.system("echo from a child")
    {action}
print("after")
"""


def job(tmp_path, action):
    log = tmp_path / "logs" / "a.log"
    done = subprocess.run([sys.executable, "-c", JOB.format(action=action), str(log)], capture_output=True, text=True)
    return done, log.read_text()


def test_output_goes_to_the_log_and_the_terminal_is_given_back(tmp_path):
    done, log = job(tmp_path, "pass")
    assert done.returncode == 0
    assert done.stdout == "after\n"
    assert "from python" in log
    assert "from a child" in log


def test_our_errors_are_one_message_on_the_terminal_and_in_the_log(tmp_path):
    done, log = job(tmp_path, "raise ConfigError('the key is wrong')")
    assert done.returncode == 1
    assert done.stderr == "speechmill: the key is wrong\n"
    assert "error: the key is wrong" in log
    assert "Traceback" not in log


def test_a_bug_leaves_its_traceback_in_the_log_and_one_line_on_the_terminal(tmp_path):
    done, log = job(tmp_path, "1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "a.log" in done.stderr
    assert "Traceback" in log
    assert "Traceback" not in done.stderr


LAYOUT = """
import sys, types
from speechmill.job import logged
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
    stage(tmp_path, "score")
    last = stage(tmp_path, "rank")
    assert [path for path in (tmp_path / "logs").rglob("*.log") if path.stat().st_size == 0] == [last]
    remove_empty_logs(tmp_path / "logs")
    (story,) = (tmp_path / "logs").rglob("*.log")
    assert story == tmp_path / "logs" / "batches" / "clips-00000.log"
    headings = [line.split(",")[0] for line in story.read_text().splitlines() if line.startswith("==")]
    assert headings == ["== enhance", "== enhance", "== score", "== rank"]
    assert story.read_text().count("done in") == 3


def test_timing_is_that_of_each_batchs_last_success(tmp_path):
    (tmp_path / "a.log").write_text("enhance done in 1.500 s, 9 MB at most\nenhance done in 2.250 s, 9 MB at most\n")
    (tmp_path / "b.log").write_text("enhance done in 3.000 s, 9 MB at most\nscore done in 0.500 s, 9 MB at most\n")
    assert stage_timing(tmp_path) == {
        "enhance": {"jobs": 2, "seconds": 5.25},
        "score": {"jobs": 1, "seconds": 0.5},
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
