"""A corpus from manifest to sentinel through profiles/kubernetes: a real S3 server, a loopback Kubernetes API."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from ..hub.server import TOKEN, Hub
from ..patience import seconds
from ..runs import ROOT, make_corpus
from .cluster import Cluster
from .conftest import KEY, SECRET_KEY

pytest.importorskip("snakemake_executor_plugin_kubernetes")

IMAGE = "registry.example/speechmill:tested"
REPO = "lab/tiny"
SENTINEL = "published/UPLOADED.json"


@dataclass(frozen=True)
class Start:
    """What one start of Snakemake did: its words, its Kubernetes Jobs, and what then was in the run's folder."""

    output: str
    jobs: list[str]
    files: set[str]
    summary: dict[str, Any]
    sentinel: dict[str, Any]  # none where nothing is published
    sent: int  # bytes to the Hub so far


class KubernetesRun:
    """A checkout in which Snakemake is started as a user does, with a cluster, a bucket and a Hub."""

    def __init__(self, cluster: Cluster, checkout: Path, client: Any, hub: Hub, dataset: str = "tiny"):
        self.cluster, self.checkout, self.client, self.hub, self.dataset = cluster, checkout, client, hub, dataset

    def start(self, *arguments: str) -> Start:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.checkout.parent),
            "PYTHONPATH": str(self.checkout),
            "KUBECONFIG": str(self.cluster.kubeconfig()),
            "SPEECHMILL_BUCKET": "s3://corpora/a-prefix",
            "SPEECHMILL_IMAGE": IMAGE,
            "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": self.client.meta.endpoint_url,
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": KEY,
            "SNAKEMAKE_STORAGE_S3_SECRET_KEY": SECRET_KEY,
            "HF_TOKEN": TOKEN,
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-m", "snakemake", "--profile", "profiles/kubernetes"]
        command += ["--config", f"dataset={self.dataset}"]
        waits = ["--seconds-between-status-checks", "1", "--latency-wait", "5", "--jobs", "2"]
        before = set(self.cluster.jobs)
        done = subprocess.run(
            [*command, *waits, *arguments],
            cwd=self.checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds(1800),
        )
        output = done.stdout + done.stderr
        logs = [(log.parent.name, log.read_text(errors="replace")) for log in self.cluster.folder.glob("*/log")]
        assert done.returncode == 0, output[-6000:] + "".join(f"\n== {pod}\n{text[-3000:]}" for pod, text in logs)
        return Start(
            output,
            [name for name in self.cluster.jobs if name not in before],
            self.files(),
            json.loads(self.read("report/summary.json")),
            json.loads(self.read(SENTINEL)) if SENTINEL in self.files() else {},
            self.hub.received,
        )

    def files(self) -> set[str]:
        prefix = f"a-prefix/results/{self.dataset}/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="corpora", Prefix=prefix)
        return {found["Key"].removeprefix(prefix) for page in pages for found in page.get("Contents", ())}

    def read(self, path: str) -> bytes:
        return self.client.get_object(Bucket="corpora", Key=f"a-prefix/results/{self.dataset}/{path}")["Body"].read()

    def set(self, **changes: Any) -> None:
        file = self.checkout / "config" / "datasets" / f"{self.dataset}.yaml"
        file.write_text(yaml.safe_dump((yaml.safe_load(file.read_text()) if file.exists() else {}) | changes))

    def of_rule(self, start: Start, *rules: str) -> list[str]:
        return [name for name in start.jobs if self.cluster.rule(name) in rules]


@dataclass(frozen=True)
class Story:
    """`first`: the first pod of report runs out of memory. `again`: nothing changed. `grown`: with another file. `hub`
    and `hub_again`: published to a Hub, and that repeated."""

    run: KubernetesRun
    first: Start
    again: Start
    grown: Start
    hub: Start
    hub_again: Start


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, s3: Any) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("kubernetes")
    make_corpus(folder / "corpus")
    for path in (folder / "corpus").iterdir():
        s3.upload_file(str(path), "corpora", f"raw/{path.name}")
    check_out(folder / "checkout")
    cluster, hub = Cluster(folder / "pods"), Hub()
    cluster.condemned = lambda rule, earlier: rule == "report" and earlier == 0
    run = KubernetesRun(cluster, folder / "checkout", s3, hub)
    run.set(
        source={"kind": "folder", "path": "s3://corpora/raw", "license": "CC0-1.0", "may_publish": "public"},
        batch_size=5,
        score={"metrics": ["signal"]},
        enhance={"batch_seconds": 30},
        report={"examples": 1},
        cluster={"memory_per_worker": "48G", "machine_type": "a3-highgpu-1g", "workers": 2},
        device="cpu",  # the cluster only says that it has GPUs
    )
    try:
        first, again = run.start(), run.start()
        s3.copy_object(Bucket="corpora", CopySource="corpora/raw/clip 3.wav", Key="raw/new/later.wav")
        grown = run.start()
        run.set(publish={"kind": "hub", "repo": REPO, "visibility": "public", "patience_minutes": 0.3})
        yield Story(run, first, again, grown, run.start(), run.start("--forcerun", "publish"))
    finally:
        cluster.stop()
        hub.close()


def check_out(target: Path) -> None:
    """What a user has checked out, in a repository of its own: pods get these files."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--"]
    parts = ["Snakefile", "rules", "scripts", "config", "envs", "profiles", "docs/captions"]
    parts += ["speechmill", "snakemake_logger_plugin_speechmill"]
    for name in filter(None, subprocess.check_output([*listed, *parts], cwd=ROOT, text=True).split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=target, check=True)


def test_a_corpus_passes_from_manifest_to_sentinel_and_all_of_it_is_in_the_bucket(story: Story) -> None:
    first = story.first
    batches = {Path(path).stem for path in first.files if path.startswith("scores/")}
    assert batches == {"clips-00000", "clips-00001"}
    assert first.summary["clips"]["input"] == 10
    assert first.sentinel["files"]
    assert {f"published/dataset/{file['path']}" for file in first.sentinel["files"]} <= first.files
    # What no rule declares was carried as well.
    assert {f"manifest/{batch}.{kind}" for batch in batches for kind in ("json", "parquet")} <= first.files
    assert "report/history.jsonl" in first.files
    assert {path.name for path in (story.run.checkout / "results" / "tiny").iterdir()} == {"logs"}


def test_pods_are_limited_to_what_the_corpus_asks_for(story: Story) -> None:
    cluster = story.run.cluster
    workers = story.run.of_rule(story.first, "enhance", "score")
    others = story.run.of_rule(story.first, "source", "manifest", "publish")
    assert (len(workers), len(others)) == (4, 3)
    for name in workers:
        pod = cluster.jobs[name]["spec"]["template"]["spec"]
        limits = cluster.container(name)["resources"]["limits"]
        assert limits == {"cpu": "8000m", "memory": "49152M", "nvidia.com/gpu": "1"}
        assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": "a3-highgpu-1g"}
        assert [(one["key"], one["effect"]) for one in pod["tolerations"]] == [("nvidia.com/gpu", "NoSchedule")]
    for name in others:
        pod = cluster.jobs[name]["spec"]["template"]["spec"]
        assert cluster.container(name)["resources"]["limits"] == {"cpu": "8000m", "memory": "32768M"}
        assert not pod.get("nodeSelector")
        assert not pod.get("tolerations")
    assert not cluster.refused


def test_a_pod_that_runs_out_of_memory_is_repeated_with_twice_as_much(story: Story) -> None:
    cluster = story.run.cluster
    names = story.run.of_rule(story.first, "report")
    limits = [cluster.container(name)["resources"]["limits"]["memory"] for name in names]
    assert limits == ["32768M", "65536M"]
    # A pod's own retry would have the memory of the first.
    assert all(job["spec"]["backoffLimit"] == 0 for job in cluster.jobs.values())
    assert all(job["spec"]["template"]["spec"]["restartPolicy"] == "Never" for job in cluster.jobs.values())


def test_secrets_reach_pods_as_a_secret_and_stand_in_no_spec(story: Story) -> None:
    cluster = story.run.cluster
    specs = json.dumps(list(cluster.jobs.values()))
    assert TOKEN not in specs
    assert SECRET_KEY not in specs
    for name in cluster.jobs:
        container = cluster.container(name)
        assert container["image"] == IMAGE
        sources = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"]}
        token, key = sources["HF_TOKEN"], sources["SNAKEMAKE_STORAGE_S3_SECRET_KEY"]
        assert cluster.all_secrets[token["name"]][token["key"]] == TOKEN
        assert cluster.all_secrets[key["name"]][key["key"]] == SECRET_KEY
    logs = b"".join(path.read_bytes() for path in cluster.folder.glob("*/log"))
    assert TOKEN.encode() not in logs
    assert SECRET_KEY.encode() not in logs
    # When runs have ended nothing of them is left.
    assert not cluster.secrets
    assert set(cluster.jobs) == set(cluster.deleted)


def test_pods_install_nothing(story: Story) -> None:
    cluster = story.run.cluster
    assert not any("pip install" in " ".join(cluster.container(name)["args"]) for name in cluster.jobs)


def test_the_account_on_this_machine_tells_how_jobs_in_pods_went(story: Story) -> None:
    logs = story.run.checkout / "results" / "tiny" / "logs"
    lines = [json.loads(line) for line in (logs / "attempts.jsonl").read_text().splitlines()]
    scored = {line["batch"]: line for line in lines if line["stage"] == "score" and line["event"] == "finished"}
    for batch, line in scored.items():
        rows = pq.read_table(io.BytesIO(story.run.read(f"scores/{batch}.parquet"))).num_rows
        assert sum(line["clips"].values()) == rows
        assert line["seconds"] > 0
        assert line["node"]
    (failed,) = [line for line in lines if line["event"] == "failed"]
    assert failed["stage"] == "report"
    told = [json.loads(line) for line in (logs / "batches" / "clips-00000.log").read_text().splitlines()]
    assert [line["stage"] for line in told if line.get("event") == "end"][:2] == ["enhance", "score"]


def test_started_again_nothing_is_done(story: Story) -> None:
    assert "Nothing to be done" in story.again.output
    assert not story.again.jobs
    assert story.again.files == story.first.files


def test_a_new_file_in_the_bucket_makes_a_new_batch_and_repeats_no_other(story: Story) -> None:
    run, grown = story.run, story.grown
    rules = Counter(run.cluster.rule(name) for name in grown.jobs)
    assert rules == {"source": 1, "manifest": 1, "enhance": 1, "score": 1, "report": 1, "publish": 1}
    new = {path for path in grown.files - story.first.files if path.startswith("enhanced/")}
    assert new == {"enhanced/clips-00002.parquet"}
    assert grown.summary["clips"]["input"] == 11


def test_the_controller_publishes_to_the_hub_what_is_in_the_bucket_and_sends_nothing_twice(story: Story) -> None:
    run, hub = story.run, story.hub
    assert {run.cluster.rule(name) for name in hub.jobs} == {"report"}
    assert hub.sentinel["commit"] == next(iter(run.hub.repos[REPO].tags.values()))
    assert hub.sentinel["accepted"] == hub.summary["clips"]["accepted"] > 0
    assert story.hub_again.sent == hub.sent > 0
