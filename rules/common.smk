# Functions that the rules share: configuration, paths of a run, its batches.
import functools
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from speechmill import versions
from speechmill.config import dataset_file, missing_paths, profile_path, validate_config
from speechmill.errors import SpeechmillError

CONFIG_DIR = Path(workflow.basedir) / "config"


wildcard_constraints:
    batch=r"[A-Za-z0-9_-]+",


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


@plain_errors
def check_paths():
    """Before the first job, but neither for a dry run nor for --lint: there, paths need not be there yet."""
    problems = missing_paths(config, CONFIG_DIR)
    if problems:
        raise SpeechmillError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))


def run_file(path):
    """A file of the run of this data set."""
    return f"{config['outdir']}/{config['dataset']}/{path}"


def log_file(stage):
    return run_file(f"logs/{stage}.log")


def time_file(stage):
    return run_file(f"benchmarks/{stage}.tsv")


def audio_shard(path):
    """An enhanced shard: kept for looser thresholds, or gone once nothing needs it."""
    return run_file(path) if config["keep_enhanced"] else temp(run_file(path))


@functools.cache
@plain_errors
def source_fingerprint():
    """Changes when the source's files do. Read while the DAG is built, once, from names, sizes and times alone."""
    from speechmill.sources import open_source

    if missing_paths(config, CONFIG_DIR):
        return "not there yet"
    return open_source(config).fingerprint()


def source_state(wildcards):
    return source_fingerprint()


@plain_errors
def ranking_profile():
    return profile_path(config, CONFIG_DIR).as_posix()


def batch_files(pattern):
    """An input function: the file of every batch, once the manifest knows them."""

    def files(wildcards):
        from speechmill.manifest import read_batches

        batches = read_batches(Path(checkpoints.manifest.get().output.batches))
        return [run_file(pattern).format(batch=batch["batch"]) for batch in batches]

    return files


def smaller_batches(section):
    """Padded seconds of a device batch: the configured number, divided by the attempt."""

    def seconds(wildcards, attempt):
        return max(1, int(config[section]["batch_seconds"] / attempt))

    return seconds
