"""A data set of the Hub on a cluster: downloads beside Snakemake, where the network is, everything else in the queue."""

import json

import pytest

from speechmill.attempts import read_attempts
from speechmill.files import read_json

from .. import corpora
from ..hub.server import Hub, Repo
from ..hub.test_sources import files_of
from .conftest import CLUSTER, SlurmRun

FILES = 3


@pytest.fixture
def fetching(tmp_path, monkeypatch):
    """A run of a data set of three files, of which one fits on disk at a time."""
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    for number in range(FILES):
        corpora.parquet(tmp_path / "repo" / f"train-{number}.parquet", 2 * number, 2)
    hub.repos["lab/speech"] = Repo()
    hub.repos["lab/speech"].commit(files_of(tmp_path / "repo"))
    largest = max(path.stat().st_size for path in (tmp_path / "repo").iterdir())
    source = {"kind": "hf_parquet", "repo": "lab/speech", "path": None, "metadata": None}
    download = {"max_gb": (largest + 1000) / 1e9, "patience_minutes": 0.2}
    run = SlurmRun(tmp_path / "run", device="cpu", cluster=CLUSTER, source=source, download=download)
    run.hub = hub
    yield run
    run.destroy()
    hub.close()


def test_files_come_one_after_the_other_and_one_that_fails_costs_its_own_batches(fetching):
    run = fetching
    refused = {}
    take = run.hub.take_fault

    def fault(method, path):
        if not refused and (run.results / "manifest" / "batches.tsv").exists():
            refused["train-1"] = True
            run.hub.fail(r"train-1\.parquet", method="GET", status=403, times=1000)
        return take(method, path)

    run.hub.take_fault = fault
    run.begin()
    output = run.end(1)
    assert "1 of 3 batches failed: train-1-" in output
    assert read_json(run.results / "report" / "summary.json")["clips"]["input"] == 2 * FILES
    assert not (run.results / "published").exists()
    events = [line for line in read_attempts(run.results) if line["stage"] == "fetch"]
    assert sum(line["event"] == "submitted" for line in events) == FILES  # a refusal is not tried again
    assert not any(line["slurm_job"] for line in events)
    run.hub.faults.clear()
    run.hub.take_fault = take
    assert run.speechmill("resume", str(run.results)).returncode == 0
    published = json.loads((run.results / "published" / "UPLOADED.json").read_text())
    assert published["failed_batches"] == []
    assert {row.work.split(" ")[0] for row in run.accounted()} >= {"manifest", "enhance", "score", "report", "publish"}
    assert "source" not in {row.work.split(" ")[0] for row in run.accounted()}
