"""A data set of the Hub on a Kubernetes cluster: the controller fetches it into the bucket, pods read it there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from .. import corpora
from ..hub.server import Hub, Repo
from .cluster import Cluster
from .test_kubernetes import KubernetesRun, check_out

pytest.importorskip("snakemake_executor_plugin_kubernetes")


def test_files_of_a_repository_go_through_the_bucket_to_the_pods_that_read_them(s3: Any, tmp_path: Path) -> None:
    for number in range(2):
        corpora.parquet(tmp_path / "repo" / "data" / f"train-{number:05d}.parquet", 2 * number, 2)
    files = {
        p.relative_to(tmp_path / "repo").as_posix(): p.read_bytes() for p in (tmp_path / "repo").rglob("*.parquet")
    }
    check_out(tmp_path / "checkout")
    cluster, hub = Cluster(tmp_path / "pods"), Hub()
    hub.repos["lab/speech"] = Repo()
    hub.repos["lab/speech"].commit(files)
    run = KubernetesRun(cluster, tmp_path / "checkout", s3, hub, "fetched")
    run.set(
        source={"kind": "hf_parquet", "repo": "lab/speech", "may_publish": "private"},
        score={"metrics": ["signal"]},
        report={"examples": 1},
        publish={"kind": "none"},
        cluster={"gpus_per_worker": 0},
    )
    try:
        start = run.start()
        assert Counter(cluster.rule(name) for name in start.jobs) == {"enhance": 2, "score": 2, "report": 1}
        assert start.summary["clips"]["input"] == 4
        assert start.summary["clips"]["errored"] == 0
        assert not any(path.startswith("raw/") for path in start.files)  # read, and removed from the bucket
        for name in start.jobs:  # on CPUs, as the corpus says
            assert "nvidia.com/gpu" not in cluster.container(name)["resources"]["limits"]
            assert not cluster.jobs[name]["spec"]["template"]["spec"].get("tolerations")
    finally:
        cluster.stop()
        hub.close()
