"""What jobs ask of Kubernetes, and what its executor plugin for Snakemake needs to be told."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from speechmill.engine.devices import PER_WORKER
from speechmill.errors import ConfigError
from speechmill.publish.target import target_of
from speechmill.storage import s3

OTHER_MB = 32768  # memory of jobs other than enhance and score
# Names in the environment whose values jobs get from a secret of the cluster. Keys of the bucket go the same way.
HANDED_ON = (PER_WORKER, "HF_TOKEN", "HF_HUB_OFFLINE")


def job_resources(cluster: dict[str, Any], gpus: int, memory_mb: int) -> dict[str, Any]:
    """Snakemake's resources of a rule: what its pod is limited to, by attempt where that changes.

    Args:
        cluster: the completed section `cluster` of the configuration.
        gpus: GPUs of the job.
        memory_mb: memory of the first attempt.
    """

    def memory(wildcards: Any, attempt: int) -> int:
        return memory_mb * attempt

    # The plugin limits a pod only where `scale` says that it may not grow; GPUs are given to limits alone.
    asked: dict[str, Any] = {"mem_mb": memory, "scale": 0}
    if gpus:
        asked |= {"gpu": gpus, "gpu_manufacturer": "nvidia"}
        asked |= {"machine_type": cluster["machine_type"]} if cluster["machine_type"] else {}
    return asked


def check_settings(prefix: str | None) -> None:
    """Check where results go, before the first of them is asked for.

    Raises:
        ConfigError: it is no place in a bucket.
    """
    if not s3.is_url(prefix) or "$" in str(prefix):
        raise ConfigError(f"results go to {prefix}: set SPEECHMILL_BUCKET to s3://BUCKET, or s3://BUCKET/PREFIX")


def problems(config: dict[str, Any], image: str) -> list[str]:
    """What would stop a run on Kubernetes, one sentence each."""
    found = []
    if "$" in image:
        found.append("SPEECHMILL_IMAGE is not set: the image of the jobs (envs/Containerfile)")
    path = config["source"]["path"]
    if path and not s3.is_url(path) and not os.path.isabs(path):
        found.append(
            f"source.path: {path} is on this machine, jobs do not see it: put it into the bucket (s3://BUCKET/PREFIX), or "
            "name a folder that is mounted in every pod by its absolute path"
        )
    if target_of(config).deletes_audio:
        found.append("keep_enhanced: on Kubernetes, publishing to the Hub needs it to be true")
    target = config["publish"]["path"]
    if target and not os.path.isabs(target):
        found.append(f"publish.path: {target} would be in a pod that ends; leave it out, and it is in the bucket")
    return found


def handed_on() -> list[str]:
    """Of the names that jobs may get, those that are set here."""
    return [name for name in HANDED_ON if os.environ.get(name)]


def fix_plugins(settings: Any, stored: Any) -> None:
    """What the plugins do that a run cannot use (kubernetes 0.5, s3 0.3). Before the first job.

    Args:
        settings: the executor plugin's common settings.
        stored: the storage plugin's class of an object.
    """
    from kubernetes.client import CoreV1Api

    # The image has the storage plugin, of the tested version: pods install nothing.
    settings.auto_deploy_default_storage_provider = False
    # It asks for the log of a container's previous life. A pod that is never restarted has none: the server answers
    # 400, and the plugin ends the run where it should repeat the job.
    asked: Callable[..., Any] = CoreV1Api.read_namespaced_pod_log
    if not hasattr(asked, "__wrapped__"):

        @functools.wraps(asked)
        def of_this_life(*args: Any, **kwargs: Any) -> Any:
            return asked(*args, **(kwargs | {"previous": False}))

        CoreV1Api.read_namespaced_pod_log = of_this_life
    # It remembers of a folder that it was not there, and then misses what a pod has stored.
    exists: Callable[..., bool] = stored.exists
    if not hasattr(exists, "__wrapped__"):

        @functools.wraps(exists)
        def exists_by_now(self: Any) -> bool:
            self._is_dir = self._is_dir or None
            return exists(self)

        stored.exists = exists_by_now
