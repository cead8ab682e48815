"""`speechmill --api URL ...`: start, watch and stop runs through the REST API of another machine."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechmill.errors import ConfigError, SpeechmillError
from speechmill.utils.text import plain

if TYPE_CHECKING:
    from speechmill.client import Client, Event, Status

COMMANDS = ("run", "status", "cancel", "drain", "resume", "logs")
RUN_ID = re.compile(r"[0-9]{14}-[0-9a-f]{8}")
LISTED = 20
HINT = f"speechmill --api URL COMMAND sends {', '.join(COMMANDS[:-1])} and {COMMANDS[-1]} to a server (see serve)."


def is_meant(given: Sequence[str]) -> bool:
    """Whether the arguments of `speechmill` are for a server.

    They are if they begin with --api. With SPEECHMILL_API set, so are `run`, and other commands of the server that name
    the id of a run or no existing folder.
    """
    if given[:1] == ["--api"] or (given and given[0].startswith("--api=")):
        return True
    if not os.environ.get("SPEECHMILL_API") or not given or given[0] not in COMMANDS:
        return False
    has_id = any(RUN_ID.fullmatch(argument) for argument in given[1:])
    return given[0] == "run" or has_id or not any(Path(argument).is_dir() for argument in given[1:])


def main(given: Sequence[str]) -> int:
    """Run the command on the server; returns the exit status.

    Raises:
        SpeechmillError: the server refuses the request, or does not answer.
    """
    from speechmill.client import ApiError, Client

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
    run = commands.add_parser("run", help="run the workflow on a corpus, and print its events until it ends")
    run.add_argument("dataset", help="name of a corpus that the server offers")
    run.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="settings, as for snakemake")
    run.add_argument("--key", help="Idempotency-Key: requests with the same key start one run")
    status = commands.add_parser("status", help="progress of a run; without RUN: the latest runs")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="print its events until it ends")
    how.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    cancel = commands.add_parser("cancel", help="end a run and all of its jobs now")
    drain = commands.add_parser("drain", help="start no new jobs; the run ends when its running jobs have ended")
    resume = commands.add_parser("resume", help="resume a run that failed or was stopped")
    logs = commands.add_parser("logs", help="the log of a run, or of one batch or stage")
    logs.add_argument("--problems", action="store_true", help="only warnings and errors, with clip and file")
    logs.add_argument("--tail", type=int, metavar="N", help="the last N lines")
    logs.add_argument("--json", action="store_true", help="print one JSON object per line")
    for command in (run, resume):
        command.add_argument("--background", action="store_true", help="return at once; the run continues")
    for command in (status, cancel, drain, resume, logs):
        optional = {"nargs": "?"} if command is status else {}
        command.add_argument("run", type=_run_id, metavar="RUN", help="id of the run", **optional)  # type: ignore[arg-type]
    logs.add_argument("name", nargs="?", metavar="NAME", help="a batch, or a stage of the whole run")
    return parser


def _run_id(text: str) -> str:
    if not RUN_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the id of a run (such as 20261128120000-0123abcd); list the ids: speechmill --api URL status"
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
        from speechmill.runlog.joblog import human

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
    """Parse the pairs of --config into the configuration of a request.

    Raises:
        ConfigError: a pair has no value, or its value is not valid YAML.
    """
    import yaml

    given: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--config {pair}: the value is not valid YAML ({error})") from error
        if not separator:
            raise ConfigError(f"--config {pair}: expected key=value")
    return given


def _follow(client: Client, run_id: str) -> int:
    """Print the events of a run until it ends; exit status 1: it did not succeed."""
    try:
        for text in event_lines(client.events(run_id)):
            print(text, flush=True)
        status = client.wait(run_id)
    except KeyboardInterrupt:
        print(f"\nrun {run_id} continues; to end it: speechmill --api {client.url} cancel {run_id}", file=sys.stderr)
        return 130
    _show(status, False)
    return 0 if status.succeeded else 1


def event_lines(events: Iterator[Event]) -> Iterator[str]:
    """A line for each change of state and for each failed job; other events are left out."""
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
    if as_json:
        print(json.dumps(status.raw, indent=2))
        return
    from rich.console import Console

    from speechmill.monitor.status import view

    Console().print(view(_record(status)), soft_wrap=not sys.stdout.isatty())
    if status.last_error:
        print(f"  {plain(status.last_error, 2000)}")
    if status.published:
        print(f"  published: {plain(status.published.get('target'))}")


def _record(status: Status) -> dict[str, Any]:
    """The server's status as the record of a run, without what the server does not report."""
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
