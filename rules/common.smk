# Functions that the rules share: configuration, paths of a run, its batches.
import atexit
import functools
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

sys.path.insert(0, workflow.basedir)

from speechmill import versions
from speechmill.cluster.backend import backend_of
from speechmill.config import complete_config, config_files, deciding_settings, result_settings
from speechmill.errors import SpeechmillError
from speechmill.publish.target import target_of
from speechmill.runs.inputs import SINGLE_FILES, batch_rows, is_fetched, kept_files, state_of_others
from speechmill.runs.session import Session

CONFIG_DIR = Path(workflow.basedir) / "config"


wildcard_constraints:
    batch=r"[A-Za-z0-9_-]+",
    file=r"[A-Za-z0-9_-]+",


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
def start_session():
    """Complete the configuration in place. Returns the backend that runs the jobs, and this start of Snakemake."""
    # Like Snakemake's `configfile:`, so that jobs without a shared file system receive the files.
    workflow.configfiles.extend(str(file) for file in config_files(config, CONFIG_DIR))
    config.update(complete_config(config, CONFIG_DIR))
    run_dir = Path(run_file(""))
    backend = backend_of(workflow, config, run_dir, logger.warning)
    return backend, Session(config, run_dir, CONFIG_DIR, backend, logger)


@plain_errors
def begin_run():
    session.begin({rule.name: rule.restart_times for rule in workflow.rules}, target.goal)


def sections(*names):
    """Settings of a job that trigger it again when they change (config.job_settings)."""
    return {name: result_settings(config[name]) if name in ("enhance", "score") else config[name] for name in names}


def name_jobs(wildcards):
    """An input function without files, because only input functions run while the DAG is built."""
    backend.name_jobs()
    return []


def run_file(path):
    """A file of the run of this data set."""
    return f"{config['outdir']}/{config['dataset']}/{path}"


def log_file(stage):
    return run_file(f"logs/{stage}.log")


def audio_shard(path):
    """An enhanced shard: kept for looser thresholds, deleted by the target, or temporary."""
    return run_file(path) if config["keep_enhanced"] or target.deletes_audio else temp(run_file(path))


def removal_list():
    """The list of removed clips (opt-out, takedown), if there is one."""
    path = run_file("removed.json")
    return [local(path)] if Path(path).exists() else []


def shards_to_read():
    """The enhanced shards, for report and publication. A target that deletes them searches for the remaining ones."""
    return [] if target.deletes_audio else batch_files("enhanced/{batch}.parquet")


@plain_errors
def source_state(wildcards):
    """Changes when the source changes (Session.source_fingerprint)."""
    fingerprint = session.source_fingerprint
    if workflow.dryrun:  # a real start fails with these messages
        session.announce(session.refused)
    return fingerprint


def ranking_profile(wildcards):
    """The content of the profile. If it is not valid, begin_run stops the run with the reason."""
    try:
        return session.ranking_profile
    except SpeechmillError as error:
        if workflow.dryrun:
            raise WorkflowError(str(error)) from None
        return None


def rank_again_if_damaged(wildcards):
    """No files: repeats the job if ranking tables are missing or were changed. Snakemake looks at declared outputs alone."""
    if workflow.is_main_process and session.damaged_tables:
        workflow.dag.forcerules.add(workflow.get_rule("rank"))
    return []


def batch_files(*patterns):
    """An input function: the files of every batch of the manifest."""

    def files(wildcards):
        batches = batch_rows(checkpoints.manifest.get().output.batches)
        return [
            run_file(pattern.format(batch=batch))
            for pattern in patterns
            for batch in batches
            if batch not in config["without_batches"]
        ]

    return files


def fetched_file(wildcards):
    """The downloaded source file of a batch; no file if the source is read in place."""
    if config["source"]["repo"] is None:
        return []
    key = batch_rows(checkpoints.manifest.get().output.batches)[wildcards.batch]["fetched_as"]
    return ancient(run_file(f"raw/{key}"))


backend, session = start_session()
target = target_of(config)
published_after = {}  # further inputs of rule publish, by name
atexit.register(backend.close)
