# Functions that the rules share: configuration, paths of a run, its batches.
import atexit
import functools
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

sys.path.insert(0, workflow.basedir)

from speechmill import bucket, events, kubernetes, owner, slurm, versions
from speechmill.attempts import AttemptLog
from speechmill.config import (
    dataset_file,
    deciding_settings,
    missing_paths,
    profile_path,
    result_settings,
    shuffled_by,
    validate_config,
)
from speechmill.devices import announce_gpus, announced_gpus, visible_gpus
from speechmill.errors import SpeechmillError
from speechmill.monitor.watch import watch_run

CONFIG_DIR = Path(workflow.basedir) / "config"
SINGLE_FILES = (
    "preflight.json",
    "source.json",
    "manifest/batches.tsv",
    "ledger/duplicates.parquet",
    "ledger/held_out.parquet",
    "ledger/near_duplicates.parquet",
    "ranking/profile.json",
    "ranking/advice.json",
    "report/summary.json",
    "report/report.html",
)
FILES_OF_BATCHES = (
    "ledger/{batch}.enhance.parquet",
    "scores/{batch}.parquet",
    "ranking/{batch}.parquet",
)
HOW_JOBS_RUN = ("alerts", "cluster", "device", "download", "expected", "failed_batches", "without_batches")


wildcard_constraints:
    batch=r"[A-Za-z0-9_-]+",
    file=r"[A-Za-z0-9_-]+",


refused = []  # what a hub said no to while the DAG was built; the run then does not begin


def plain_errors(function):
    """Show speechmill's own errors as one message instead of a traceback."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except SpeechmillError as error:
            raise WorkflowError(str(error)) from None

    return wrapped


@plain_errors
def dataset_config():
    return dataset_file(config, CONFIG_DIR)


@plain_errors
def check_config():
    """Complete and validate the configuration in place."""
    config.update(validate_config(config, CONFIG_DIR))
    config["cluster"] = slurm.cluster_settings(config["cluster"])
    if in_bucket():
        kubernetes.check_settings(workflow.storage_settings.default_storage_prefix)
        bucket.announce_run(f"{workflow.storage_settings.default_storage_prefix}/{run_file('')}".rstrip("/"))
        gpus_per_worker()
        workflow.register_envvars(*kubernetes.handed_on())
        atexit.register(remove_secret)


@plain_errors
def begin_run():
    """Before the first job, but neither for a dry run nor for --lint: there, nothing need be in place yet."""
    problems = missing_paths(config, CONFIG_DIR) + refused
    if on_slurm():
        plugin = workflow.executor_settings
        cluster = config["cluster"] | {"gpus_per_worker": gpus_per_worker()}
        problems += slurm.problems(
            cluster, run_prefix(), plugin.init_seconds_before_status_checks, plugin.status_command
        )
    if on_kubernetes():
        problems += kubernetes.problems(config, workflow.remote_execution_settings.container_image)
        stored = workflow.storage_registry.default_storage_provider.get_storage_object_cls()
        kubernetes.mend_plugins(workflow.executor_plugin.common_settings, stored)
    if problems:
        raise SpeechmillError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))
    owner.claim(Path(run_file("")))
    retries = {rule.name: rule.restart_times for rule in workflow.rules}
    if owner.SUPERVISOR not in os.environ:  # speechmill run watches by itself
        watches.append(watch_run(Path(run_file("")), lambda: config, logger.warning))
    goal = "report/summary.json" if config["publish"]["kind"] == "none" else "published/UPLOADED.json"
    withholds = bool(config["without_batches"]) and config["failed_batches"] == "withhold"
    events.current = events.Start(Path(run_file("")), config["dataset"], retries, goal=goal, withholds=withholds)
    accounts.append(AttemptLog(events.current))
    logger.addHandler(accounts[0])


def end_run(outcome):
    if events.current:  # else it could not begin
        events.current.end(outcome)
        accounts[0].end()
    owner.release(Path(run_file("")))
    for watch in filter(None, watches):
        watch.stop({"succeeded": "finished", "failed": "failed"}.get(events.current.outcome, "stopped"))


def run_file(path):
    """A file of the run of this data set."""
    return f"{config['outdir']}/{config['dataset']}/{path}"


def in_bucket():
    """Whether results are in a bucket and jobs share no files: what rules declare, Snakemake moves."""
    return workflow.storage_settings.default_storage_provider == "s3"


def log_file(stage):
    return run_file(f"logs/{stage}.log")


def audio_shard(path):
    """An enhanced shard: kept for looser thresholds, or gone once nothing needs it; on the Hub, that is when it is
    published, and the last job deletes it."""
    return run_file(path) if config["keep_enhanced"] or on_hub() else temp(run_file(path))


@functools.cache
@plain_errors
def source_fingerprint():
    """Changes when the source does. Read while the DAG is built, once: from names, sizes and times, or a commit."""
    from speechmill.hub import HubRefusedError
    from speechmill.sources.revision import UNKNOWN, current_revision

    if missing_paths(config, CONFIG_DIR):
        return UNKNOWN
    try:
        return current_revision(config, Path(run_file("")), logger.warning)
    except HubRefusedError as error:
        refused.append(str(error))
        if workflow.dryrun:
            logger.warning(str(error))
        return UNKNOWN


def is_fetched():
    """Whether the source's files are downloaded, one job each, before they are read."""
    return config["source"]["repo"] is not None or config["source"]["datacollective"] is not None


def removal_list():
    """The clips that somebody asked to have removed, once there are any."""
    path = run_file("removed.json")
    return [local(path)] if Path(path).exists() else []


def on_hub():
    """Whether the run is published to a repository of the Hub."""
    return config["publish"]["kind"] == "hub"


def sends_ahead():
    """Whether a batch's shards are sent as soon as it is scored."""
    return on_hub() and shuffled_by(config["publish"]) == "batch"


def shards_to_read():
    """Of report and publication: the enhanced shards. Where publishing deletes them, it looks for what is there: they
    must not be asked for again by whatever comes later."""
    return batch_files("enhanced/{batch}.parquet") if config["keep_enhanced"] or not on_hub() else []


@plain_errors
def shards_again(wildcards):
    """The batches that have to be enhanced again to be published, once it is known which."""
    if config["keep_enhanced"] or not on_hub():
        return []
    checkpoints.manifest.get()  # first: without the batches, an answer from before a change would count as new
    cost, *batches = Path(checkpoints.audio_again.get().output.batches).read_text().splitlines()
    if batches and cost not in announced:
        announced.add(cost)
        logger.warning(cost)
    return [run_file(f"restored/{batch}.parquet") for batch in batches]


announced = set()
accounts = []  # of attempts: one, once the run has begun
watches = []  # that alert people: at most one


def source_state(wildcards):
    return source_fingerprint()


def kept_files():
    """Patterns of the files of a batch that stay."""
    enhanced = ("enhanced/{batch}.parquet",) if config["keep_enhanced"] else ()
    return FILES_OF_BATCHES + enhanced + (("published/sent/{batch}.json",) if sends_ahead() else ())


@plain_errors
def ranking_profile():
    return profile_path(config, CONFIG_DIR).as_posix()


def batch_files(*patterns):
    """An input function: the files of every batch, once the manifest knows them."""

    def files(wildcards):
        batches = batch_rows(checkpoints.manifest.get().output.batches)
        return [
            run_file(pattern.format(batch=batch))
            for pattern in patterns
            for batch in batches
            if batch not in config["without_batches"]
        ]

    return files


def state_of_others(paths):
    """Changes when another run that this one is compared with, or a list of clips, does."""
    marks = [Path(path) / "ledger" / "duplicates.parquet" if Path(path).is_dir() else Path(path) for path in paths]
    return [mark.stat().st_mtime_ns if mark.exists() else None for mark in marks]


def fetched_file(wildcards):
    """The downloaded source file of a batch; none where it is read in place."""
    if config["source"]["repo"] is None:
        return []
    key = batch_rows(checkpoints.manifest.get().output.batches)[wildcards.batch]["fetched_as"]
    return ancient(run_file(f"raw/{key}"))


def batch_rows(batches_tsv):
    """The rows of batches.tsv by batch, read once for every state of the file."""
    if in_bucket():
        return _batch_rows(str(batches_tsv), bucket.state("manifest/batches.tsv"))
    return _batch_rows(str(batches_tsv), Path(batches_tsv).stat().st_mtime_ns)


@functools.lru_cache(1)
def _batch_rows(batches_tsv, state):
    from speechmill.manifest import read_batches

    if in_bucket():
        bucket.fetch("manifest/batches.tsv", Path(batches_tsv))

    return {row["batch"]: row for row in read_batches(Path(batches_tsv))}


def gpus_per_worker():
    """GPUs of an enhance or score job: where there is a pool of them, what is configured, else none.

    The pool is --resources gpu=N: of the Slurm profile, or on this machine by default the GPUs it has. Jobs on a
    cluster start Snakemake anew, without the pool: they are told through the environment.
    """
    if workflow.is_main_process:
        if "gpu" not in workflow.global_resources:
            workflow.register_resource("gpu", visible_gpus())
        pool = workflow.global_resources["gpu"].value
        announce_gpus(min(pool, config["cluster"]["gpus_per_worker"]))
    return announced_gpus()


def on_slurm():
    return hasattr(workflow.executor_settings, "jobname_prefix")


def on_kubernetes():
    return type(workflow.executor_settings).__module__ == "snakemake_executor_plugin_kubernetes"


def remove_secret():
    """The plugin removes its secret when the last job has ended: where there was nothing to do, it is left."""
    executor = getattr(workflow.scheduler, "_executor", None)
    if on_kubernetes() and executor and executor.wait:
        executor.unregister_secret()


def controls_slurm():
    return workflow.is_main_process and on_slurm()


def slurm_names(wildcards):
    """No files. Asked for while the DAG is built, in every run: the one moment when the Slurm plugin has its settings
    but has not named its jobs yet, and the only way to a name by corpus."""
    if on_slurm() and not workflow.executor_settings.jobname_prefix:
        workflow.executor_settings.jobname_prefix = run_prefix()
        workflow.executor_settings.efficiency_report_path = Path(run_file("logs"))
    return []


def run_prefix():
    return slurm.run_prefix(config["dataset"], Path(run_file("")))


def job(memory_mb=None, gpus=0):
    """Resources of a job on a cluster, by attempt."""
    if in_bucket():
        return kubernetes.job_resources(config["cluster"], gpus, memory_mb or kubernetes.OTHER_MB)
    memory_mb = memory_mb or slurm.OTHER_MB
    return slurm.job_resources(config["cluster"], gpus, memory_mb, run_prefix(), controls_slurm, logger.warning)


def worker():
    """Resources of an enhance or score job. `engine_attempt` makes its device batches smaller from attempt to attempt."""
    gpus = gpus_per_worker()
    if "workers" not in workflow.global_resources:
        workflow.register_resource("workers", config["cluster"]["workers"])
    resources = job(slurm.megabytes(config["cluster"]["memory_per_worker"]), gpus)
    if not in_bucket():  # there, none is asked for where the job has none
        resources["gpu"] = gpus
    return resources | {"workers": 1, "engine_attempt": lambda wildcards, attempt: attempt}
