"""The command that serves the REST API: serve."""

from __future__ import annotations

import argparse
from typing import Any

from speechmill.api.settings import add_options
from speechmill.errors import SpeechmillError


def add(commands: Any) -> None:
    command = commands.add_parser("serve", help="the REST API: start, watch and stop runs over HTTP")
    add_options(command)
    command.set_defaults(handler=_serve, takes_extra=True)


def _serve(options: argparse.Namespace) -> int:
    try:
        from speechmill.api.serve import serve
    except ImportError as error:
        raise SpeechmillError(f"serve needs more packages: pip install 'speechmill[api]' ({error})") from error
    return serve(options, options.extra)
