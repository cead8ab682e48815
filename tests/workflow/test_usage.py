"""What a person types: dry runs, lint, mistakes, and Snakemake's own report."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from ..patience import seconds
from ..runs import ROOT, Run


def snakemake(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds(900),
        **kwargs,
    )


def test_dry_run_of_the_default_data_set():
    done = snakemake("-n", "--config", "outdir=results-of-nobody")
    assert done.returncode == 0, done.stderr
    assert "checkpoint manifest" in done.stdout + done.stderr


def test_settings_on_the_command_line_may_be_other_than_text():
    """Snakemake hands them on as strings."""
    settings = ('rank={"profile": "tts", "threshold": 0.7}', "keep_enhanced=false", "batch_size=64")
    done = snakemake("-n", "--config", "outdir=results-of-nobody", *settings, "publish={shuffle: null}")
    assert done.returncode == 0, done.stderr


def test_lint():
    done = snakemake("--lint")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dataset=dmo"], 'did you mean "demo"'),
        (["batch_sise=3"], 'did you mean "batch_size"'),
        (["batch_size=many"], "expected integer"),
        (['source={"path": "demo/speach"}'], 'did you mean "speech"'),
        (['rank={"profile": "ast"}'], 'did you mean "asr"'),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(arguments, expected):
    done = snakemake("--cores", "1", "--config", "outdir=results-of-nobody", *arguments)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert expected in output
    assert "Traceback" not in output
    assert len(output[output.index("WorkflowError") :].strip().splitlines()) <= 5, output
    assert not (ROOT / "results-of-nobody").exists()


def test_a_problem_found_by_preflight_stops_the_run_with_its_message(tmp_path):
    run = Run(tmp_path / "run")
    (run.directory / "corpus").mkdir()
    done = run.start(check=False)
    assert done.status != 0
    assert "no audio file found" in done.output
    assert "Traceback" not in done.output


def test_snakemakes_report_holds_ours(finished, tmp_path):
    run = finished.copy(tmp_path / "reported")
    run.start("--report", "snakemake-report.zip")
    with zipfile.ZipFile(run.directory / "snakemake-report.zip") as archive:
        pages = [archive.read(name) for name in archive.namelist() if name.endswith(".html")]
    ours = (run.results / "report" / "report.html").read_bytes()
    assert ours in pages


def test_a_source_may_be_parquet(finished, tmp_path):
    """The published data set of one run is a valid source of the next, which keeps no enhanced shards."""
    run = Run(tmp_path / "second")
    run.change(source={"kind": "parquet", "path": "corpus", "metadata": None}, keep_enhanced=False)
    data = finished.results / "published" / "dataset" / "data"
    (run.directory / "corpus").mkdir()
    for file in data.glob("*.parquet"):
        shutil.copy(file, run.directory / "corpus")
    run.start()
    assert (run.results / "published" / "UPLOADED.json").is_file()
    assert not list((run.results / "enhanced").glob("*"))
    assert "Nothing to be done" in run.start().output


@pytest.mark.parametrize(("arguments", "gpus"), [((), "gpu=0"), (("--resources", "gpu=4"), "gpu=1")])
def test_workers_take_a_gpu_where_there_is_a_pool_of_them(finished, arguments, gpus):
    """This machine's GPUs are the pool by default: CUDA_VISIBLE_DEVICES says that there are none."""
    command = finished.command("-n", "--forcerun", "enhance", "score", *arguments)
    environment = finished.environment() | {"CUDA_VISIBLE_DEVICES": ""}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    workers = re.findall(r"^rule (?:enhance|score):.*?resources: (.*?)$", shown, re.MULTILINE | re.DOTALL)
    assert len(workers) == 6
    assert all(gpus in resources.split(", ") for resources in workers)


def test_the_slurm_profile_plans_without_a_cluster_by_name_too(tmp_path):
    """`make profiles` links it into the user's Snakemake configuration, and never replaces one of theirs."""
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    (tmp_path / "snakemake" / "local").mkdir(parents=True)
    made = subprocess.run(["make", "profiles"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert made.returncode == 2
    assert f"{tmp_path}/snakemake/local is your own profile" in made.stderr
    assert (tmp_path / "snakemake" / "slurm").resolve() == ROOT / "profiles" / "slurm"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "-n", "--profile", "slurm"]
    command += ["--directory", str(tmp_path), "--config", "dataset=demo", f"source={{path: {tmp_path}}}"]
    planned = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "rule source" in planned.stdout
