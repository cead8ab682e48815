"""`speechmill --api URL ...`: the commands that start, watch and stop runs, through the REST API of another machine."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from speechmill.client import ApiError, Client, Event, Status
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.joblog import human
from speechmill.text import plain

COMMANDS = ("run", "status", "cancel", "drain", "resume", "logs")
RUN_ID = re.compile(r"[0-9]{14}-[0-9a-f]{8}")
LISTED = 20
HINT = f"speechmill --api URL COMMAND does {', '.join(COMMANDS[:-1])} and {COMMANDS[-1]} through a server (serve)."


def is_meant(given: Sequence[str]) -> bool:
    """Whether arguments of `speechmill` are for a server: after --api, or, with SPEECHMILL_API set, those of a command
    that has a run's id where it could have a run's folder."""
    if given[:1] == ["--api"] or (given and given[0].startswith("--api=")):
        return True
    if not os.environ.get("SPEECHMILL_API") or not given or given[0] not in COMMANDS:
        return False
    has_id = any(RUN_ID.fullmatch(argument) for argument in given[1:])
    return given[0] == "run" or has_id or not any(Path(argument).is_dir() for argument in given[1:])


def main(given: Sequence[str]) -> int:
    """Do what the arguments say; returns the exit status.

    Raises:
        SpeechmillError: the server refuses, or does not answer.
    """
    options = _parser().parse_args(given)
    try:
        with Client.from_environment(options.api) as client:
            return _call(client, options)
    except ApiError as error:
        raise SpeechmillError(plain(error, 2000)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speechmill", description=__doc__, epilog="The token is read from the file SPEECHMILL_API_TOKEN_FILE."
    )
    parser.add_argument("--api", metavar="URL", help="the server's address (default: SPEECHMILL_API)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the workflow on a corpus, and tell how it goes until it is over")
    run.add_argument("dataset", help="name of a corpus of the server")
    run.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="settings, as for snakemake")
    run.add_argument("--key", help="Idempotency-Key: the same one begins one run only")
    status = commands.add_parser("status", help="how far a run is; without RUN: the last runs")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="tell how it goes until it is over")
    how.add_argument("--json", action="store_true", help="for programs: the server's answer")
    cancel = commands.add_parser("cancel", help="end a run now, with every job of it")
    drain = commands.add_parser("drain", help="begin nothing new; running jobs end")
    resume = commands.add_parser("resume", help="go on with a run that failed or was stopped")
    logs = commands.add_parser("logs", help="what the log of a run says, or that of one batch or stage")
    logs.add_argument("--problems", action="store_true", help="warnings and errors alone, with clip and file")
    logs.add_argument("--tail", type=int, metavar="N", help="the last N lines")
    logs.add_argument("--json", action="store_true", help="one JSON object per line")
    for command in (run, resume):
        command.add_argument("--background", action="store_true", help="return at once")
    for command in (status, cancel, drain, resume, logs):
        optional = {"nargs": "?"} if command is status else {}
        command.add_argument("run", type=_run_id, metavar="RUN", help="id of the run", **optional)  # type: ignore[arg-type]
    logs.add_argument("name", nargs="?", metavar="NAME", help="a batch, or a stage of the whole run")
    return parser


def _run_id(text: str) -> str:
    if not RUN_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no id of a run, such as 20261128120000-0123abcd; speechmill --api URL status lists them"
        )
    return text


def _call(client: Client, options: argparse.Namespace) -> int:
    if options.command == "run":
        begun = client.trigger(options.dataset, settings(options.config), options.key)
        hours = begun.estimated_duration_hours
        print(f"run {begun.run_id} of {begun.dataset}" + (f", about {hours:.1f} h" if hours is not None else ""))
        return 0 if options.background else _follow(client, begun.run_id)
    if options.command == "resume":
        print(f"run {options.run}: {client.resume(options.run)}")
        return 0 if options.background else _follow(client, options.run)
    if options.command in ("cancel", "drain"):
        state = client.cancel(options.run, "now" if options.command == "cancel" else "drain")
        if options.command == "cancel":
            state = client.wait(options.run, poll_seconds=1).state
        print(f"run {options.run}: {state}")
    elif options.command == "logs":
        for line in client.logs(options.run, options.name, options.tail, options.problems):
            print(json.dumps(line, ensure_ascii=False) if options.json else human(line, color=sys.stdout.isatty()))
    elif options.run and options.watch:
        return _follow(client, options.run)
    elif options.run is None:
        _list(client, options.json)
    else:
        _show(client.status(options.run), options.json)
    return 0


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """key=value as for snakemake --config, as the configuration of a request."""
    given: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--config {pair}: the value is no YAML ({error})") from error
        if not separator:
            raise ConfigError(f"--config {pair}: expected key=value")
    return given


def _follow(client: Client, run_id: str) -> int:
    """Tell what happens in a run until it is over; exit status 1: it did not succeed."""
    try:
        for text in told(client.events(run_id)):
            print(text, flush=True)
        status = client.wait(run_id)
    except KeyboardInterrupt:
        print(f"\nrun {run_id} goes on; to end it: speechmill --api {client.url} cancel {run_id}", file=sys.stderr)
        return 130
    _show(status, False)
    return 0 if status.succeeded else 1


def told(events: Iterator[Event]) -> Iterator[str]:
    """What of the events a person wants to hear: states, and jobs that failed."""
    for event in events:
        if event.kind == "state":
            why = f": {plain(event.data['why'])}" if event.data.get("why") else ""
            yield f"{_clock(event.data.get('time'))} {plain(event.data.get('state'))}{why}"
        elif event.kind == "job" and event.data.get("event") == "failed":
            about = (plain(event.data[name]) for name in ("stage", "batch", "file", "reason") if event.data.get(name))
            yield f"{_clock(event.data.get('time'))} failed: {' '.join(about)}"


def _clock(time: Any) -> str:
    return str(time or "")[11:19].ljust(8)


def _list(client: Client, as_json: bool) -> None:
    for count, run in enumerate(client.runs(limit=LISTED)):
        if count == LISTED:
            break
        if as_json:
            print(json.dumps(run.raw))
        else:
            print(f"{run.run_id}  {plain(run.state):10} {plain(run.created)[:19]}  {plain(run.dataset)}")


def _show(status: Status, as_json: bool) -> None:
    from speechmill.status import view

    if as_json:
        print(json.dumps(status.raw, indent=2))
        return
    Console().print(view(_record(status)), soft_wrap=not sys.stdout.isatty())
    if status.last_error:
        print(f"  {plain(status.last_error, 2000)}")
    if status.published:
        print(f"  published: {plain(status.published.get('target'))}")


def _record(status: Status) -> dict[str, Any]:
    """What the server says as the record of a run, as far as it says it."""
    alerts = status.alerts or {}
    return {
        "run": f"{plain(status.dataset)} {status.run_id}",
        "state": plain(status.state),
        "starts": 1 + (status.restarts or 0),
        "clips": status.clips if isinstance(status.clips, int) else None,
        "stages": status.stages,
        "seconds_left": status.seconds_left,
        "alerts": {"open": alerts.get("open") or [], "trouble": alerts.get("trouble") or []},
        **dict.fromkeys(("owner", "slurm_error", "panoptes")),
        **{name: [] for name in ("at_work", "given_up", "last_failures", "slurm_jobs")},
        "jobs_now": {},
    }
