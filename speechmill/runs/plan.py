"""The plan of a run: its profile, its configuration, and the Snakemake command that runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from speechmill.cluster.queue import NoQueue, job_prefix, queue_of
from speechmill.config import complete_config, read_settings, update
from speechmill.engine.devices import visible_gpus
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.storage.files import read_json

CHECKOUT = Path(__file__).resolve().parents[2]
RUN_FILE = "run.json"
LOG = Path("logs") / "run.log"
THREADS = 2  # of an enhance or score job on this machine


def make_plan(
    dataset: str, profile: str, directory: Path, config: Sequence[str], extra: Sequence[str], **settings: Any
) -> Plan:
    """How to start a run of a data set.

    Args:
        dataset: a file of config/datasets/ without .yaml.
        profile: a folder of profiles/, or a path to another.
        directory: the working directory, in which relative paths of the configuration begin.
        config: key=value as for snakemake --config.
        extra: further arguments of snakemake.

    Raises:
        ConfigError: the configuration is not valid, or there is no such profile.
    """
    folder, values = read_profile(profile)
    complete = merged_config([f"dataset={dataset}", *config], _config_files(extra, directory))
    run_dir = (directory / complete["outdir"] / complete["dataset"]).resolve()
    return Plan(
        program=[sys.executable, "-m", "snakemake"],
        options=["--snakefile", str(CHECKOUT / "Snakefile"), "--profile", str(folder), *extra],
        config=[f"dataset={dataset}", *config],
        directory=str(directory.resolve()),
        run_dir=str(run_dir),
        prefix=job_prefix(complete["dataset"], run_dir),
        on_slurm=_submits_to_slurm(values),
        failed_batches=complete["failed_batches"],
        **settings,
    )


def read_profile(profile: str) -> tuple[Path, dict[str, Any]]:
    """Folder and content of a profile: a folder of profiles/, or a path to another.

    Raises:
        ConfigError: there is none of that name.
    """
    folder = CHECKOUT / "profiles" / profile if not Path(profile).exists() else Path(profile).resolve()
    return folder, _profile(folder)


class Slots(NamedTuple):
    """What runs at the same time. `device` is CPU or GPU."""

    device: str
    workers: int
    downloads: int
    basis: str


def slots_of(config: Mapping[str, Any], profile: str) -> Slots:
    """What a profile and a complete configuration allow to run at the same time.

    Raises:
        ConfigError: there is no such profile.
    """
    values = read_profile(profile)[1]
    on_slurm = _submits_to_slurm(values)
    pools = dict(str(each).split("=", 1) for each in values.get("resources") or () if "=" in str(each))
    gpus = int(pools.get("gpu", 0 if on_slurm else visible_gpus()))
    per_worker = min(gpus, config["cluster"]["gpus_per_worker"])
    limits = {"cluster.workers": config["cluster"]["workers"]}
    if per_worker:
        limits["GPUs"] = gpus // per_worker
    if on_slurm:
        limits["jobs of the profile"] = int(values.get("jobs") or limits["cluster.workers"])
    else:
        cores = _cores() if values.get("cores") in (None, "all") else int(values["cores"])
        limits["cores"] = max(cores // THREADS, 1)
    bound = min(limits, key=lambda name: limits[name])
    device = "GPU" if per_worker and config["device"] != "cpu" else "CPU"
    return Slots(device, limits[bound], int(pools.get("download_slots", 1)), f"profile {profile}: bound by {bound}")


def merged_config(pairs: Sequence[str], files: Sequence[Path] = ()) -> dict[str, Any]:
    """The complete configuration of `snakemake --configfile FILES --config PAIRS`.

    Raises:
        ConfigError: a pair has no value, or a setting is not valid.
    """
    given: dict[str, Any] = {}
    for file in files:
        update(given, read_settings(file))
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--config {pair}: expected key=value")
        update(given, {key: yaml.safe_load(value)})
    return complete_config(given, CHECKOUT / "config")


def plan_config(plan: Plan) -> dict[str, Any]:
    """The complete configuration that a plan starts a run with."""
    return merged_config(plan.config, _config_files(plan.options, Path(plan.directory)))


def read_plan(run_dir: Path) -> Plan:
    """How a run was started.

    Raises:
        SpeechmillError: it was not started by `speechmill run`.
    """
    try:
        return plan_from(read_json(run_dir / RUN_FILE))
    except (OSError, TypeError, ValueError) as error:
        raise SpeechmillError(
            f"{run_dir}: no run that speechmill started ({RUN_FILE}: {error}); start it with speechmill run"
        ) from error


def plan_from(values: Mapping[str, Any]) -> Plan:
    """A plan from its JSON; settings of other versions are ignored.

    Raises:
        TypeError: something is missing.
    """
    names = {field.name for field in fields(Plan)}
    return Plan(**{name: value for name, value in values.items() if name in names})


def _submits_to_slurm(profile: Mapping[str, Any]) -> bool:
    return profile.get("executor") == "slurm"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _profile(folder: Path) -> dict[str, Any]:
    for name in ("config.yaml", "profile.yaml"):
        if (folder / name).is_file():
            return yaml.safe_load((folder / name).read_text(encoding="utf-8")) or {}
    known = sorted(path.name for path in (CHECKOUT / "profiles").iterdir() if path.is_dir())
    raise ConfigError(f"there is no profile {folder}; ours: {', '.join(known)}")


def split_config_files(extra: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of further arguments of snakemake the files after --configfile, and all that is left without that option."""
    files: list[str] = []
    rest: list[str] = []
    taking = False
    for argument in extra:
        if argument.startswith("-"):
            taking = argument in ("--configfile", "--configfiles")
            if taking:
                continue
        (files if taking else rest).append(argument)
    return files, rest


def _config_files(extra: Sequence[str], directory: Path) -> list[Path]:
    return [directory / file for file in split_config_files(extra)[0]]


@dataclass
class Plan:
    """How a run is started: everything that the user chose, so that it can be started again the same way."""

    program: list[str]  # snakemake
    options: list[str]  # all but --config and targets
    config: list[str]  # key=value
    directory: str
    run_dir: str
    prefix: str
    on_slurm: bool
    failed_batches: str = "withhold"  # or publish
    poll_seconds: float = 15
    stall_seconds: float = 600  # longer than the plugin's longest pause (180 s) and the latency wait
    max_restarts: int = 5

    def queue(self, log: Callable[[str], None]) -> NoQueue:
        """The queue of the run's jobs; `log` is called with a sentence for the user."""
        return queue_of(self.on_slurm, self.prefix, self.poll_seconds, log)

    def command(self, extra_config: Sequence[str] = (), arguments: Sequence[str] = ()) -> list[str]:
        """`arguments` (targets, --unlock) come first: an option before them would take them for its own."""
        return [*self.program, *arguments, *self.options, "--config", *self.config, *extra_config]
