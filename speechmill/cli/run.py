"""Commands that start, resume and stop a run: run, plan, resume, drain, cancel, supervise."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechmill.cli.options import add_background, add_data_set, add_json, add_run_dir, add_start

if TYPE_CHECKING:
    from speechmill.runs.plan import Plan


def add(commands: Any) -> None:
    command = commands.add_parser("run", help="run the workflow on a data set and supervise it")
    add_start(command)
    command.set_defaults(handler=_run)

    command = commands.add_parser("plan", help="estimate hours, GPU hours, disk and upload of a run, without starting")
    add_data_set(command)
    command.add_argument(
        "--history",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="earlier runs to measure rates on (default: all beside it)",
    )
    add_json(command)
    command.set_defaults(handler=_plan)

    command = commands.add_parser("resume", help="resume a run whose Snakemake died or was stopped")
    add_background(command)
    command.add_argument("--cancel", action="store_true", help="cancel its Slurm jobs instead of waiting for them")
    add_run_dir(command)
    command.set_defaults(handler=_resume)

    for name, text in (
        ("drain", "start no new jobs; the run ends when its running jobs have ended"),
        ("cancel", "end a run and all of its jobs now"),
    ):
        command = commands.add_parser(name, help=text)
        add_run_dir(command)
        command.set_defaults(handler=_stop)

    # Without a help text, `speechmill --help` does not list it: --background and the API start it.
    command = commands.add_parser("supervise")
    add_run_dir(command)
    command.add_argument("--plan", help="JSON; default: run.json, of an earlier start")
    command.add_argument("--resume", action="store_true")
    command.add_argument("--cancel", action="store_true")
    command.add_argument("--result", help="file of the run in which its end is written, for the API")
    command.set_defaults(handler=_supervise)


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the options of `add_start` describe."""
    from speechmill.runs.plan import make_plan

    times = {"poll_seconds": options.poll_seconds, "stall_seconds": options.stall_seconds}
    return make_plan(options.dataset, options.profile, options.directory, options.config, options.extra, **times)


def _run(options: argparse.Namespace) -> int:
    from speechmill.runs import start

    return start.start(plan_of(options), options.background)


def _plan(options: argparse.Namespace) -> int:
    from speechmill.estimate.run_estimate import earlier_runs, estimate, estimate_text
    from speechmill.runs.plan import merged_config

    config = merged_config([f"dataset={options.dataset}", *options.config])
    run_dir = options.directory / config["outdir"] / config["dataset"]
    history = earlier_runs(run_dir) if options.history is None else options.history
    found = estimate(config, run_dir, history, profile=options.profile, directory=options.directory)
    print(json.dumps(asdict(found), indent=2) if options.json else estimate_text(found))
    return 0


def _resume(options: argparse.Namespace) -> int:
    from speechmill.runs import start

    return start.resume(options.run, options.cancel, options.background)


def _stop(options: argparse.Namespace) -> int:
    from speechmill.runs import start

    start.stop(options.run, options.command)
    return 0


def _supervise(options: argparse.Namespace) -> int:
    from speechmill.runs.plan import plan_from, read_plan
    from speechmill.runs.supervisor import Supervisor

    plan = plan_from(json.loads(options.plan)) if options.plan else read_plan(options.run)
    return Supervisor(plan, options.result, options.resume, options.cancel).run()
