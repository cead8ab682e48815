"""What is asked of Slurm and what it answers: resources of jobs, jobs of a run, limits of partitions.

Every call has a time limit and fails as SlurmError: a controller that is away for a while is no reason to stop.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError

SETTINGS_FROM_ENVIRONMENT = ("account", "cpu_partition", "gpu_partition", "qos", "constraint", "gpu_type")
WAITING = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
PATIENCE = 1800.0  # seconds that a retry waits for a controller that does not answer
OTHER_MB = 8000  # memory of jobs other than enhance and score
FAILED = frozenset({"FAILED", "NODE_FAIL", "BOOT_FAIL"})  # where the node may be to blame


class SlurmError(SpeechmillError):
    """Slurm's commands cannot be called or answer with an error."""


@dataclass(frozen=True)
class Job:
    """One line of squeue. `comment` is what the Slurm plugin writes: rule_NAME_wildcards_BATCH."""

    id: str
    state: str
    node: str
    reason: str
    comment: str

    @property
    def work(self) -> str:
        """Stage and batch, as in "enhance clips-00003"."""
        return self.comment.removeprefix("rule_").replace("_wildcards_", " ")

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING

    @property
    def is_alive(self) -> bool:
        """Whether it waits or runs."""
        return self.is_waiting or self.is_running


def run_prefix(dataset: str, run_dir: Path) -> str:
    """What the names of a run's Slurm jobs begin with: data set and a hash of the run's folder, 50 letters at most."""
    digest = hashlib.sha256(os.fsencode(run_dir.resolve())).hexdigest()[:8]
    return f"speechmill-{dataset[:28]}-{digest}"


def call(*command: str, timeout: float = 30) -> str:
    """Standard output of a Slurm command.

    Raises:
        SlurmError: it is not installed, takes too long or fails; with its own message.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]} is not installed here; start the run on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer within {timeout:.0f} s") from error
    except OSError as error:  # such as too many processes
        raise SlurmError(f"{command[0]} cannot be called: {error}") from error
    if done.returncode:
        raise SlurmError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def jobs(prefix: str) -> list[Job]:
    """Jobs of a run that the Slurm controller remembers, ended ones (for MinJobAge) included.

    Raises:
        SlurmError: Slurm does not answer.
    """
    shown = call("squeue", "--noheader", "--states=all", "--me", "--format=%i|%T|%j|%N|%r|%k")
    found = []
    for line in shown.splitlines():
        job, state, name, node, reason, comment = (line.split("|", 5) + [""] * 5)[:6]
        if name.startswith(prefix + "_"):
            found.append(Job(job, state, node, reason, comment))
    return found


def jobs_patiently(prefix: str, warn: Callable[[str], None]) -> list[Job]:
    """Jobs of a run, as soon as Slurm answers; none if it does not for `PATIENCE` seconds."""
    end = time.monotonic() + PATIENCE
    warned = False
    while True:
        try:
            return jobs(prefix)
        except SlurmError as error:
            if time.monotonic() > end:
                return []
            if not warned:
                warn(f"{error}; retries wait for up to {PATIENCE / 60:.0f} min")
                warned = True
        time.sleep(min(10, PATIENCE / 10))


def cancel(jobs: Collection[Job]) -> None:
    """Cancel jobs; those that ended meanwhile are no error."""
    ids = [job.id for job in jobs]
    for start in range(0, len(ids), 500):
        call("scancel", "--quiet", *ids[start : start + 500], timeout=120)


def failing_nodes(found: Collection[Job]) -> list[str]:
    """Nodes on which two pieces of work or more failed and none was completed, while other nodes complete some.

    What fails on several nodes is not the fault of one of them.
    """
    nodes_of: dict[str, set[str]] = defaultdict(set)
    for job in found:
        if job.state in FAILED and job.node:
            nodes_of[job.comment].add(job.node)
    failed = Counter(node for nodes in nodes_of.values() if len(nodes) == 1 for node in nodes)
    completed = {job.node for job in found if job.state == "COMPLETED"}
    if not completed:
        return []
    return sorted(node for node, works in failed.items() if works > 1 and node not in completed)


def problems(cluster: dict[str, Any], prefix: str, init_seconds: int, status_command: str | None) -> list[str]:
    """What on this cluster would stop a run or make it hang, one sentence each.

    Args:
        cluster: the completed section `cluster` of the configuration.
        prefix: of the run's job names: jobs of an earlier start must not run beside this one's.
        init_seconds, status_command: the Slurm plugin's settings. It asks every 180 s at the latest.
    """
    found = []
    try:
        age = re.search(r"^MinJobAge\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
        if status_command == "squeue" and age and int(age[1]) < max(3 * init_seconds, 200):
            found.append(
                f"this cluster forgets ended jobs after {age[1]} s (MinJobAge), so that squeue cannot tell how they "
                f"ended: ask its administrators for 300 s, or start with --slurm-status-command sacct"
            )
        for key in ("cpu_partition", "gpu_partition"):
            if cluster[key] and not call("sinfo", "--noheader", "--format=%P", "--partition", cluster[key]).strip():
                found.append(f"cluster.{key}: there is no partition {cluster[key]}; sinfo lists them")
        gpus = call("sinfo", "--noheader", "--format=%G", *_of_partition(cluster["gpu_partition"]))
        if cluster["gpus_per_worker"] and "gpu" not in gpus:
            where = f"partition {cluster['gpu_partition']}" if cluster["gpu_partition"] else "any partition"
            found.append(
                f"no node of {where} has a GPU: set cluster.gpu_partition, or cluster.gpus_per_worker=0 for the CPU"
            )
        worker = "gpu_partition" if cluster["gpus_per_worker"] else "cpu_partition"
        for key, asked, name in (
            (worker, megabytes(cluster["memory_per_worker"]), "cluster.memory_per_worker"),
            ("cpu_partition", OTHER_MB, "a job that is no worker"),
        ):
            minutes, largest = partition_limits(cluster[key])
            where = f"partition {cluster[key]}" if cluster[key] else "the default partition"
            if largest is not None and asked > largest:
                found.append(f"{name} asks for {asked} MB, the largest node of {where} has {largest} MB")
            if minutes is not None and cluster["hours"] * 60 > minutes:
                found.append(f"cluster.hours is {cluster['hours']}, {where} allows {minutes / 60:g} (key {key})")
        alive = [job for job in jobs(prefix) if job.is_alive]
        if alive:
            found.append(
                f"{len(alive)} Slurm jobs of an earlier start of this run are alive ({alive[0].work}, job "
                f"{alive[0].id}, ...) and would write the same files: speechmill resume waits for them"
            )
    except SlurmError as error:
        found.append(str(error))
    return found


def _of_partition(partition: str | None) -> tuple[str, ...]:
    return ("--partition", partition) if partition else ()


@functools.cache
def partition_limits(partition: str | None) -> tuple[int | None, int | None]:
    """(minutes, megabytes) that a job of a partition (None: the default one) may ask for at most; None: no limit."""
    shown = call("sinfo", "--noheader", "--format=%P|%l|%m", *_of_partition(partition), timeout=10)
    rows = [line.split("|") for line in shown.splitlines() if line.count("|") == 2]
    if partition is None:
        rows = [row for row in rows if row[0].endswith("*")]
    minutes = [limit for _, time, _ in rows if (limit := parse_minutes(time)) is not None]
    sizes = [int(re.sub(r"\D", "", memory) or 0) for *_, memory in rows]
    return (max(minutes) if len(minutes) == len(rows) and rows else None), (max(sizes) if sizes else None)


def parse_minutes(text: str) -> int | None:
    """Slurm's [days-]hours:minutes:seconds in minutes; None for infinite."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if not found:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


def cluster_settings(cluster: dict[str, Any]) -> dict[str, Any]:
    """The section `cluster` of a configuration with the environment's answer to what it leaves open."""
    found = {name: os.environ.get(f"SPEECHMILL_SLURM_{name.upper()}") or None for name in SETTINGS_FROM_ENVIRONMENT}
    return {key: found.get(key) if value is None else value for key, value in cluster.items()}


def megabytes(text: str) -> int:
    """64G or 500M in Slurm's megabytes (2**20 bytes)."""
    return int(text[:-1]) * (1024 if text.endswith("G") else 1)


def job_resources(
    cluster: dict[str, Any],
    gpus: int,
    memory_mb: int,
    prefix: str,
    asking: Callable[[], bool],
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Snakemake's resources of a rule: what sbatch is asked for, by attempt where that changes.

    Args:
        cluster: the completed section `cluster` of the configuration.
        gpus: GPUs of the job; without any it goes to the CPU partition.
        memory_mb: memory of the first attempt.
        prefix: of the run's job names.
        asking: whether Slurm is asked for limits and failing nodes: by the controller of a run on Slurm alone, which is
            known only once attempts are made.
        warn: called with a sentence when a retry avoids nodes.
    """
    partition = cluster["gpu_partition"] if gpus else cluster["cpu_partition"]

    def limits(attempt: int) -> tuple[int | None, int | None]:
        # The first attempt asks for what is configured; Slurm's own message says where that is too much.
        if attempt == 1 or not asking():
            return None, None
        try:
            return partition_limits(partition)
        except SlurmError:
            return None, None

    def memory(wildcards: Any, attempt: int) -> int:
        return _up_to(memory_mb * attempt, limits(attempt)[1], memory_mb)

    def runtime(wildcards: Any, attempt: int) -> int:
        minutes = max(1, round(cluster["hours"] * 60))
        return _up_to(minutes * attempt, limits(attempt)[0], minutes)

    def extra(wildcards: Any, attempt: int) -> str:
        if attempt == 1 or not asking():
            return ""
        options = [f"--begin=now+{cluster['retry_delay_seconds']}"] if cluster["retry_delay_seconds"] else []
        # A retry while the controller is away would fail at once, and the next one, too.
        nodes = failing_nodes(jobs_patiently(prefix, warn))
        if nodes:
            warn(f"{', '.join(nodes)}: jobs of several batches failed there and none succeeded; retries avoid it.")
            options.append(f"--exclude={','.join(nodes)}")
        return " ".join(options)

    resources = {"mem_mb": memory, "runtime": runtime, "slurm_extra": extra}
    fixed = {"slurm_account": cluster["account"], "slurm_partition": partition, "qos": cluster["qos"]}
    if gpus:
        kind = f"{cluster['gpu_type']}:" if cluster["gpu_type"] else ""
        fixed |= {"gres": f"gpu:{kind}{gpus}", "gpu_model": cluster["gpu_type"], "constraint": cluster["constraint"]}
    return resources | {key: value for key, value in fixed.items() if value is not None}


def _up_to(wanted: int, limit: int | None, first: int) -> int:
    return wanted if limit is None else max(first, min(wanted, limit))
