"""Jobs: what they print goes to their log, and an error is one message; the summary on the terminal."""

import subprocess
import sys

import pytest

from speechmill.cli import main
from speechmill.errors import SpeechmillError
from speechmill.files import write_json
from speechmill.job import device_of

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


def test_a_gpu_that_is_asked_for_is_never_replaced_by_the_cpu():
    torch = pytest.importorskip("torch")
    assert device_of({}) == device_of({"gpu": 0}) == "cpu"
    if torch.cuda.is_available():
        assert device_of({"gpu": 1}) == "cuda"
    else:
        with pytest.raises(SpeechmillError, match="torch sees none"):
            device_of({"gpu": 1})


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
