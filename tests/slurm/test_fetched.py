"""From the Hub to the Hub on a cluster: what needs the network beside Snakemake, everything else in the queue."""

import json

import pytest

from speechmill.runlog.attempts import read_attempts
from speechmill.storage.files import read_json

from .. import corpora
from ..hub.server import TOKEN, Hub, Repo
from ..hub.test_sources import files_of
from .conftest import CLUSTER, SlurmRun

FILES = 3


@pytest.fixture
def fetching(tmp_path, monkeypatch):
    """A run of a data set of three files, of which one fits on disk at a time."""
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for number in range(FILES):
        corpora.parquet(tmp_path / "repo" / f"train-{number}.parquet", 2 * number, 2)
    hub.repos["lab/speech"] = Repo()
    hub.repos["lab/speech"].commit(files_of(tmp_path / "repo"))
    largest = max(path.stat().st_size for path in (tmp_path / "repo").iterdir())
    source = {"kind": "hf_parquet", "repo": "lab/speech", "path": None, "metadata": None}
    download = {"max_gb": (largest + 1000) / 1e9, "patience_minutes": 0.2}
    publish = {"kind": "hub", "repo": "lab/clean", "patience_minutes": 0.2}
    settings = {"device": "cpu", "cluster": CLUSTER, "source": source, "download": download, "publish": publish}
    run = SlurmRun(tmp_path / "run", **settings)
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
    assert len(list((run.results / "published" / "sent").iterdir())) == FILES - 1  # sent ahead, and not committed
    assert not run.hub.requests("/commit/")
    events = [line for line in read_attempts(run.results) if line["stage"] == "fetch"]
    assert sum(line["event"] == "submitted" for line in events) == FILES  # a refusal is not tried again
    assert not any(line["slurm_job"] for line in events)
    run.hub.faults.clear()
    run.hub.take_fault = take
    assert run.speechmill("resume", str(run.results)).returncode == 0
    published = json.loads((run.results / "published" / "UPLOADED.json").read_text())
    assert published["failed_batches"] == []
    assert run.hub.repos["lab/clean"].tags == {published["tag"]: published["commit"]}
    in_queue = {row.work.split(" ")[0] for row in run.accounted()}
    assert in_queue >= {"manifest", "enhance", "score", "report"}
    assert not in_queue & {"source", "fetch", "send", "publish"}
    everywhere = [path for path in run.directory.rglob("*") if path.is_file() and path.stat().st_size < 10**6]
    assert not any(TOKEN.encode() in path.read_bytes() for path in everywhere)
