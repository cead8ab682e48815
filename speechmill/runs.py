"""Start, go on with, stop and look for runs: what `speechmill run | resume | drain | cancel` do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from speechmill import owner, slurm
from speechmill.config import dataset_file, validate_config
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.files import read_json, write_json
from speechmill.supervise import DRAIN, LOG, Plan, Supervisor, settle, unlock

CHECKOUT = Path(__file__).resolve().parents[1]
FILE = "run.json"


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
        prefix=slurm.run_prefix(complete["dataset"], run_dir),
        on_slurm=values.get("executor") == "slurm",
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


def merged_config(pairs: Sequence[str], files: Sequence[Path] = ()) -> dict[str, Any]:
    """The complete configuration as Snakemake makes it: config.yaml, the data set's file, `files`, then key=value."""
    given: dict[str, Any] = {}
    for file in files:
        _update(given, read_settings(file))
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--config {pair}: expected key=value")
        _update(given, {key: yaml.safe_load(value)})
    config: dict[str, Any] = {}
    folder = CHECKOUT / "config"
    for part in (folder / "config.yaml", Path(dataset_file(given, folder))):
        _update(config, read_settings(part))
    _update(config, given)
    return validate_config(config, folder)


def read_settings(file: Path) -> dict[str, Any]:
    """What a file of the configuration says.

    Raises:
        ConfigError: it is no YAML of settings.
    """
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} has no settings: expected lines such as batch_size: 10000")
    return found


def plan_config(plan: Plan) -> dict[str, Any]:
    """The complete configuration that a plan starts a run with."""
    return merged_config(plan.config, _config_files(plan.options, Path(plan.directory)))


def start(plan: Plan, background: bool = False) -> int:
    """Begin a run, or go on with one that ended; returns the exit status.

    Raises:
        SpeechmillError: it is being worked on, or an earlier start left a lock or jobs.
    """
    run_dir = Path(plan.run_dir)
    holder = owner.read_owner(run_dir)
    if holder and holder.is_alive:
        raise SpeechmillError(f"{run_dir} is being worked on by {holder}; see speechmill status {run_dir}")
    if holder:
        raise SpeechmillError(f"{run_dir} was left by {holder}, which is dead; go on with speechmill resume {run_dir}")
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / FILE, asdict(plan))
    return _supervise(plan, background)


def resume(run_dir: Path, cancel: bool, background: bool = False) -> int:
    """Go on with a run whose Snakemake died: wait for its Slurm jobs (or cancel them), unlock, start.

    Raises:
        SpeechmillError: it is being worked on, or was never started by `speechmill run`.
    """
    plan = read_plan(run_dir)
    holder = owner.read_owner(run_dir)
    if holder and holder.is_alive:
        raise SpeechmillError(f"{run_dir} is being worked on by {holder}; see speechmill status {run_dir}")
    settle(plan, cancel, print)
    unlock(plan)
    return _supervise(plan, background)


def stop(run_dir: Path, how: str, timeout: float = 180) -> None:
    """`drain` a run (running jobs end, nothing new begins) or `cancel` it (nothing of it is left when this returns).

    Raises:
        SpeechmillError: it is worked on from another machine, or does not end.
    """
    holder = owner.read_owner(run_dir)
    if holder and not holder.is_here:
        raise SpeechmillError(f"{run_dir} is being worked on by {holder}; say this on {holder.host}")
    if holder and holder.is_alive:
        drain = DRAIN if holder.watched_by else signal.SIGTERM
        os.kill(holder.watched_by or holder.pid, drain if how == "drain" else signal.SIGINT)
        if how == "drain":
            print(f"{holder} starts nothing new and ends with its running jobs; see speechmill status {run_dir}")
            return
        end = time.monotonic() + timeout
        while holder.is_alive:
            if time.monotonic() > end:
                raise SpeechmillError(f"{holder} did not end within {timeout:.0f} s; kill it, then cancel again")
            time.sleep(0.5)
    plan = read_plan(run_dir)
    settle(plan, True, print)
    unlock(plan)


def read_plan(run_dir: Path) -> Plan:
    """How a run was started.

    Raises:
        SpeechmillError: it was not started by `speechmill run`.
    """
    try:
        return Plan(**read_json(run_dir / FILE))
    except (OSError, TypeError, ValueError) as error:
        raise SpeechmillError(
            f"{run_dir}: no run that speechmill started ({FILE}: {error}); start it with speechmill run"
        ) from error


def _supervise(plan: Plan, background: bool) -> int:
    if not background:
        return Supervisor(plan).run()
    log = Path(plan.run_dir) / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "speechmill", "supervise", plan.run_dir]
    child = subprocess.Popen(
        command,
        cwd=plan.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(f"process {child.pid} goes on without this terminal: speechmill status {plan.run_dir}; output: {log}")
    return 0


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


def _update(config: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _update(config[key], value)
        else:
            config[key] = value
