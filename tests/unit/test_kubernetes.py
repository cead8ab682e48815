"""What a run on Kubernetes says before it begins, and what its pods ask for."""

from __future__ import annotations

from typing import Any

import pytest

from speechmill.cluster.kubernetes import check_settings, handed_on, job_resources, problems
from speechmill.config import validate_config
from speechmill.errors import ConfigError

from ..runs import ROOT


def configured(**changes: Any) -> dict[str, Any]:
    given = {"dataset": "tiny", "source": {"kind": "folder", "path": "s3://corpora/raw"}}
    return validate_config(given | changes, ROOT / "config")


@pytest.mark.parametrize("prefix", [None, "", "$SPEECHMILL_BUCKET", "s3://$BUCKET", "/results"])
def test_results_that_go_nowhere_are_refused_before_anything_is_asked_for(prefix: str | None) -> None:
    with pytest.raises(ConfigError, match="set SPEECHMILL_BUCKET to s3://BUCKET"):
        check_settings(prefix)
    check_settings("s3://corpora/someone")


def test_a_source_that_pods_do_not_see_and_an_image_that_is_not_set_are_said() -> None:
    assert not problems(configured(), "registry/speechmill:1")
    assert "SPEECHMILL_IMAGE" in problems(configured(), "$SPEECHMILL_IMAGE")[0]
    (problem,) = problems(configured(source={"kind": "folder", "path": "demo/corpus"}), "registry/speechmill:1")
    assert "jobs do not see it" in problem
    assert not problems(configured(source={"kind": "folder", "path": "/mounted"}), "registry/speechmill:1")


def test_what_would_be_lost_with_a_pod_is_said() -> None:
    publish = {"kind": "folder", "path": "out"}
    assert "in a pod that ends" in problems(configured(publish=publish), "registry/speechmill:1")[0]
    hub = configured(publish={"kind": "hub", "repo": "lab/tiny"}, keep_enhanced=False)
    assert "needs it to be true" in problems(hub, "registry/speechmill:1")[0]


def test_a_pod_has_limits_and_a_gpu_only_where_the_job_has_one() -> None:
    cluster = configured(cluster={"machine_type": "a3"})["cluster"]
    with_gpu, without = job_resources(cluster, 1, 1000), job_resources(cluster, 0, 1000)
    # The plugin: limits are set where `scale` is 0, and any `gpu`, 0 as well, asks for a node with GPUs.
    assert with_gpu["scale"] == without["scale"] == 0
    assert (with_gpu["gpu"], with_gpu["gpu_manufacturer"], with_gpu["machine_type"]) == (1, "nvidia", "a3")
    assert not {"gpu", "gpu_manufacturer", "machine_type"} & without.keys()
    assert [without["mem_mb"](None, attempt) for attempt in (1, 2, 3)] == [1000, 2000, 3000]


def test_only_names_that_are_set_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("SPEECHMILL_GPUS", "0")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert handed_on() == ["SPEECHMILL_GPUS"]
