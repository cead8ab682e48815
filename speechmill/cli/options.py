"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_run_dir(command: argparse.ArgumentParser, finished: bool = False) -> None:
    """RUN, the folder of a run."""
    kind = "a finished run" if finished else "the run"
    command.add_argument("run", type=Path, metavar="RUN", help=f"folder of {kind}, such as results/demo")


def add_background(command: argparse.ArgumentParser) -> None:
    command.add_argument("--background", action="store_true", help="return at once; the run continues")


def add_json(command: argparse._ActionsContainer, text: str = "print JSON") -> None:
    command.add_argument("--json", action="store_true", help=text)


def add_data_set(command: argparse.ArgumentParser) -> None:
    """The data set, the profile and the settings of a run."""
    command.add_argument("dataset", help="a file of config/datasets/, without .yaml")
    command.add_argument("--profile", default="slurm", help="slurm (default), local, or the path of a profile")
    command.add_argument("--directory", type=Path, default=Path(), help="working directory (default: the current one)")
    command.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="settings, as for snakemake")


def add_start(command: argparse.ArgumentParser) -> None:
    """Everything that a new run takes, including arguments for snakemake."""
    add_data_set(command)
    command.add_argument(
        "--poll-seconds", type=float, default=15, help="time between two queries of Slurm (default: 15)"
    )
    command.add_argument(
        "--stall-seconds", type=float, default=600, help="time without progress before a restart (default: 600)"
    )
    add_background(command)
    command.epilog = "Arguments after -- go to snakemake."
    command.set_defaults(takes_extra=True)
