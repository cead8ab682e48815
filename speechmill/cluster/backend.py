"""Where jobs run: this machine, a Slurm cluster or a Kubernetes cluster. The one place that asks which.

`backend_of` takes Snakemake's `workflow` object, which this package does not import, and reads the settings of its
executor plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechmill.cluster import kubernetes, slurm
from speechmill.engine.devices import announce_gpus, announced_gpus, visible_gpus
from speechmill.storage.run_folder import announce_run

Warn = Callable[[str], None]


class SharedFiles:
    """Jobs see the folder of the run: processes of this machine, or jobs of a Slurm cluster.

    Which of the two is known only once the Snakefile is parsed, so every method asks when it is called. A job on a node
    of a Slurm cluster runs a Snakemake of its own, which is local there.
    """

    shares_files = True  # jobs and controller see the same folder of the run
    other_mb = slurm.OTHER_MB  # memory of jobs other than enhance and score

    def __init__(self, workflow: Any, config: dict[str, Any], run_dir: Path, warn: Warn):
        """
        Args:
            workflow: Snakemake's.
            config: the complete configuration; the section `cluster` is completed here.
            run_dir: the run's folder.
            warn: called with a sentence for the user.
        """
        self.workflow, self.config, self.run_dir, self.warn = workflow, config, run_dir, warn
        config["cluster"] = slurm.cluster_settings(config["cluster"])
        self.cluster = config["cluster"]

    @property
    def is_slurm(self) -> bool:
        """Whether this Snakemake submits to Slurm."""
        return hasattr(self.workflow.executor_settings, "jobname_prefix")

    def problems(self) -> list[str]:
        """What would stop the run, or make it hang, one sentence each. Asked before the first job starts."""
        if not self.is_slurm:
            return []
        plugin = self.workflow.executor_settings
        cluster = self.cluster | {"gpus_per_worker": self.gpus()}
        return slurm.problems(cluster, self.prefix, plugin.init_seconds_before_status_checks, plugin.status_command)

    def name_jobs(self) -> None:
        """Name the run's jobs after its data set. Called while the DAG is built: only then does the Slurm plugin have
        its settings and not yet a name."""
        plugin = self.workflow.executor_settings
        if self.is_slurm and not plugin.jobname_prefix:
            plugin.jobname_prefix = self.prefix
            plugin.efficiency_report_path = self.run_dir / "logs"

    def close(self) -> None:
        """Clean up when Snakemake exits."""

    def gpus(self) -> int:
        """GPUs of an enhance or score job: what is configured where there is a pool of GPUs, else none.

        The pool is --resources gpu=N: from the Slurm profile, or the GPUs of this machine. Jobs on a cluster start
        Snakemake without the pool, so the controller announces the number in the environment.
        """
        if self.workflow.is_main_process:
            if "gpu" not in self.workflow.global_resources:
                self.workflow.register_resource("gpu", visible_gpus())
            pool = self.workflow.global_resources["gpu"].value
            announce_gpus(min(pool, self.cluster["gpus_per_worker"]))
        return announced_gpus()

    def resources(self) -> dict[str, Any]:
        """Resources of a job that computes nothing heavy, by attempt where they change."""
        return self._request(self.other_mb, 0)

    def worker_resources(self) -> dict[str, Any]:
        """Resources of an enhance or score job. `engine_attempt` makes device batches smaller with each attempt."""
        gpus = self.gpus()
        if "workers" not in self.workflow.global_resources:
            self.workflow.register_resource("workers", self.cluster["workers"])
        asked = self._request(slurm.megabytes(self.cluster["memory_per_worker"]), gpus)
        return self._pool(asked, gpus) | {"workers": 1, "engine_attempt": lambda wildcards, attempt: attempt}

    def _request(self, memory_mb: int, gpus: int) -> dict[str, Any]:
        return slurm.job_resources(self.cluster, gpus, memory_mb, self.prefix, self._asks_slurm, self.warn)

    def _pool(self, asked: dict[str, Any], gpus: int) -> dict[str, Any]:
        return asked | {"gpu": gpus}

    def _asks_slurm(self) -> bool:
        return bool(self.workflow.is_main_process and self.is_slurm)

    @property
    def prefix(self) -> str:
        return slurm.run_prefix(self.config["dataset"], self.run_dir)


class Kubernetes(SharedFiles):
    """Pods that share no file system: the run's folder is in a bucket.

    A pod's own Snakemake has no executor plugin; the bucket alone identifies it.
    """

    shares_files = False
    other_mb = kubernetes.OTHER_MB

    def __init__(self, workflow: Any, config: dict[str, Any], run_dir: Path, warn: Warn):
        super().__init__(workflow, config, run_dir, warn)
        prefix = workflow.storage_settings.default_storage_prefix
        kubernetes.check_settings(prefix)
        announce_run(f"{prefix}/{config['outdir']}/{config['dataset']}")
        self.gpus()
        workflow.register_envvars(*kubernetes.handed_on())

    def name_jobs(self) -> None:
        pass

    def problems(self) -> list[str]:
        if not self._submits:
            return []
        workflow = self.workflow
        stored = workflow.storage_registry.default_storage_provider.get_storage_object_cls()
        kubernetes.fix_plugins(workflow.executor_plugin.common_settings, stored)
        return kubernetes.problems(self.config, workflow.remote_execution_settings.container_image)

    def close(self) -> None:
        # The plugin removes its secret when the last job has ended: where there was nothing to do, it is left.
        executor = getattr(self.workflow.scheduler, "_executor", None)
        if self._submits and executor and executor.wait:
            executor.unregister_secret()

    def _request(self, memory_mb: int, gpus: int) -> dict[str, Any]:
        return kubernetes.job_resources(self.cluster, gpus, memory_mb)

    def _pool(self, asked: dict[str, Any], gpus: int) -> dict[str, Any]:
        return asked  # the plugin must not see a GPU where the job has none

    @property
    def _submits(self) -> bool:
        return type(self.workflow.executor_settings).__module__ == "snakemake_executor_plugin_kubernetes"


def backend_of(workflow: Any, config: dict[str, Any], run_dir: Path, warn: Warn) -> SharedFiles:
    """The backend of a workflow.

    Raises:
        ConfigError: jobs share no files, and results do not go to a bucket.
    """
    in_bucket = workflow.storage_settings.default_storage_provider == "s3"
    return (Kubernetes if in_bucket else SharedFiles)(workflow, config, run_dir, warn)
