"""The `speechmill` command: assembles the groups of commands, and turns errors into messages and exit statuses."""

from __future__ import annotations

import argparse
import os
import sys

from speechmill.cli import remote, results, run, serve, watch
from speechmill.errors import SpeechmillError

GROUPS = (run, watch, results, serve)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = remote.main(given) if remote.is_meant(given) else _here(given)
        sys.stdout.flush()
        return status
    except SpeechmillError as error:
        print(f"speechmill: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # piped into head, for example
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _here(given: list[str]) -> int:
    parser = _parser()
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end], argparse.Namespace(extra=given[end + 1 :]))
    if end < len(given) and not getattr(options, "takes_extra", False):
        parser.error("only run, remove and serve accept -- and arguments for snakemake")
    try:
        return int(options.handler(options))
    except argparse.ArgumentError as error:  # options that are valid alone but not together
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    """Every group adds its commands.

    A command sets `handler`, which takes the parsed options and returns the exit status. It sets `takes_extra` if
    arguments after `--` go to snakemake. Handlers import what they need when they are called, so that `--help` is fast.
    """
    parser = argparse.ArgumentParser(
        prog="speechmill", description="Start, watch and stop runs, and work with their results.", epilog=remote.HINT
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add(commands)
    return parser
