"""The command line: fast start-up, exit statuses, and options that do not fit together."""

import subprocess
import sys

import pytest

from speechmill.cli.main import main

from ..patience import seconds

SLOW = ("torch", "pyarrow", "numpy", "fastapi", "rich", "yaml", "huggingface_hub", "snakemake")


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["serve", "--help"]])
def test_help_imports_no_slow_package(arguments):
    code = (
        "import sys; from speechmill.cli.main import main\n"
        f"try: main({arguments})\n"
        f"finally: sys.exit(' '.join(set({SLOW}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds(300))
    assert "usage: speechmill" in done.stdout
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "results/demo", "--", "--cores", "1"], "only run, remove and serve accept --"),
        (["plan", "demo", "--"], "only run, remove and serve accept --"),
        (["remove", "demo"], "remove needs --clip or --speaker"),
        (["alerts"], "alerts needs the folder of a run, or --test"),
        (["rerank", "results/demo", "--background"], "--background needs --publish"),
        (["metrics", "results/demo", "--every", "5"], "--every needs --textfile"),
        (["metrics", "results/demo", "--textfile", "x.prom", "--every", "0"], "a number of seconds above 0"),
        (["compare", "one"], "the following arguments are required"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_options_that_do_not_fit_together_are_a_usage_error(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_arguments_after_the_dashes_reach_snakemake(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("speechmill.runs.start.start", lambda plan, background: started.append((plan, background)) or 7)
    given = ["run", "demo", "--profile", "local", "--directory", str(tmp_path), "--background"]
    assert main([*given, "--stall-seconds", "9", "--", "--cores", "1"]) == 7
    (plan, background) = started[0]
    assert (plan.options[-2:], plan.stall_seconds, background) == (["--cores", "1"], 9, True)


def test_an_error_of_speechmill_is_one_line_and_status_1(tmp_path, capsys):
    for command in ("resume", "supervise", "summary"):
        assert main([command, str(tmp_path)]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"speechmill: {tmp_path}: no ")
        assert "Traceback" not in told


def test_an_interrupt_is_status_130(monkeypatch, tmp_path):
    def interrupted(run):
        raise KeyboardInterrupt

    monkeypatch.setattr("speechmill.monitor.status.status_json", interrupted)
    assert main(["status", str(tmp_path), "--json"]) == 130
