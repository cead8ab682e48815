"""The backend with stand-ins for Snakemake's workflow: what is known while it is parsed, and after."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from speechmill.cluster import slurm
from speechmill.cluster.backend import Kubernetes, backend_of
from speechmill.config import complete_config
from speechmill.errors import ConfigError
from speechmill.storage.run_folder import RUN, BucketFolder, SharedFolder, run_folder

CONFIG = Path(__file__).parents[2] / "config"


def workflow(provider: str | None = None, prefix: str | None = None) -> Any:
    pools: dict[str, Any] = {}
    storage = SimpleNamespace(default_storage_provider=provider, default_storage_prefix=prefix)
    return SimpleNamespace(
        is_main_process=True,
        executor_settings=None,  # as while the Snakefile is parsed
        storage_settings=storage,
        global_resources=pools,
        register_resource=lambda name, value: pools.update({name: SimpleNamespace(value=value)}),
        register_envvars=lambda *names: None,
    )


def made(of: Any, tmp_path: Path) -> Any:
    return backend_of(of, complete_config({"dataset": "demo"}, CONFIG), tmp_path / "demo", lambda sentence: None)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN, "")
    monkeypatch.setenv("SPEECHMILL_GPUS", "0")


def test_slurm_is_found_though_its_plugin_has_no_settings_while_the_snakefile_is_parsed(tmp_path, monkeypatch):
    of = workflow()
    backend = made(of, tmp_path)
    assert backend.shares_files
    assert backend.problems() == []
    asked = backend.worker_resources()
    monkeypatch.setattr(slurm, "problems", lambda *about: ["a problem"])
    monkeypatch.setattr(slurm, "partition_limits", lambda partition: (None, 20_000))
    monkeypatch.setattr(slurm, "jobs_patiently", lambda prefix, warn: [])
    assert asked["mem_mb"](None, 2) == 2 * asked["mem_mb"](None, 1)
    of.executor_settings = SimpleNamespace(
        jobname_prefix="", efficiency_report_path=None, init_seconds_before_status_checks=40, status_command="squeue"
    )
    assert backend.problems() == ["a problem"]
    backend.name_jobs()
    assert of.executor_settings.jobname_prefix == slurm.run_prefix("demo", tmp_path / "demo")
    assert asked["mem_mb"](None, 2) == max(20_000, asked["mem_mb"](None, 1))
    assert "--begin" in asked["slurm_extra"](None, 2)


def test_a_name_that_the_user_gave_slurm_jobs_is_kept(tmp_path):
    of = workflow()
    backend = made(of, tmp_path)
    of.executor_settings = SimpleNamespace(jobname_prefix="mine", efficiency_report_path=None)
    backend.name_jobs()
    assert of.executor_settings.jobname_prefix == "mine"


def test_a_run_in_a_bucket_is_on_kubernetes_and_its_folder_is_there(tmp_path):
    backend = made(workflow("s3", "s3://corpora/all"), tmp_path)
    assert isinstance(backend, Kubernetes)
    assert not backend.shares_files
    assert run_folder() == BucketFolder("s3://corpora/all/results/demo")
    assert "slurm_extra" not in backend.resources()


def test_results_that_no_other_pod_would_see_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="SPEECHMILL_BUCKET"):
        made(workflow("s3", "$SPEECHMILL_BUCKET"), tmp_path)


def test_without_a_bucket_the_folder_is_shared(tmp_path):
    made(workflow(), tmp_path)
    assert type(run_folder()) is SharedFolder
