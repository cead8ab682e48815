"""`speechmill run` on one machine: the same workflow, and what it does about batches that fail for good."""

import subprocess
import sys

from speechmill.storage.files import read_json

from ..patience import seconds
from ..runs import RESULTS, Run, make_corpus


def speechmill(run: Run, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speechmill", *arguments]
    return subprocess.run(
        command,
        cwd=run.directory,
        env=run.environment(),
        capture_output=True,
        text=True,
        timeout=seconds(1800),
        check=False,
    )


def test_a_failing_batch_is_left_out_if_so_configured_and_comes_back_when_mended(finished, tmp_path):
    run = Run(tmp_path / "partial", failed_batches="publish")
    make_corpus(run.directory / "corpus")
    run.start("--until", "manifest")
    table = run.results / "manifest" / "clips-00001.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole + b"damaged")
    options = ("--configfile", "config.yaml", "--cores", "2", "--retries", "0")
    done = speechmill(run, "run", "demo", "--profile", "local", "--", *options)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "1 of 3 batches failed: clips-00001" in done.stderr
    sentinel = read_json(run.results / "published" / "UPLOADED.json")
    assert sentinel["failed_batches"] == ["clips-00001"]
    summary = read_json(run.results / "report" / "summary.json")
    assert summary["errored_by"]["batch_failed"] == 4
    assert summary["clips"]["input"] == 10
    assert sentinel["rows"] == summary["clips"]["accepted"]
    assert "**Incomplete**: 1 of 3 batches" in (run.results / "published" / "dataset" / "README.md").read_text()

    table.write_bytes(whole)
    again = speechmill(run, "resume", "results/demo")
    assert again.returncode == 0, again.stderr[-6000:]
    assert run.hashes(*RESULTS) == finished.hashes(*RESULTS)
    assert "finished, 10 clips" in speechmill(run, "status", "results/demo").stdout
