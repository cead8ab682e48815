"""The settings of a server, and the files of its state directory."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path

PORT = 8571


def default_state_dir() -> Path:
    """On a local disk, because SQLite's locks do not work on network file systems."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "speechmill"


@dataclass(frozen=True)
class Settings:
    """Of one server. `extra`: arguments for snakemake, as after -- of `speechmill run`."""

    state_dir: Path
    directory: Path  # in which runs work, and paths of the configuration begin
    profile: str = "slurm"
    extra: tuple[str, ...] = ()
    poll_seconds: float = 15
    stall_seconds: float = 600
    requests_per_second: float = 100  # of one token
    changes_per_minute: float = 60
    failures_per_minute: float = 12  # of an address, without a valid token
    body_bytes: int = 64_000
    dry_run_seconds: float = 300

    @property
    def tokens(self) -> Path:
        return self.state_dir / "tokens"

    @property
    def audit(self) -> Path:
        return self.state_dir / "audit.jsonl"

    @property
    def supervisor_log(self) -> Path:
        """Tracebacks of supervisors."""
        return self.state_dir / "supervisors.log"


def make_state_dir(path: Path) -> None:
    """Create the directory, which only its owner can enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


def add_options(command: argparse.ArgumentParser) -> None:
    """Of `speechmill serve`."""
    command.epilog = "Arguments after -- go to snakemake."
    command.add_argument("--state-dir", type=Path, default=default_state_dir(), help="on a disk of this machine")
    command.add_argument(
        "--network-state-dir", action="store_true", help="insist on a --state-dir on a network file system"
    )
    command.add_argument("--directory", type=Path, default=Path(), help="working directory of runs (default: this one)")
    command.add_argument("--profile", default="slurm", help="slurm (default), local, or the path of a profile")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    command.add_argument("--port", type=int, default=PORT, help=f"0 takes any that is free (default: {PORT})")
    command.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate, to listen beyond this machine")
    command.add_argument("--tls-key", type=Path, metavar="PEM", help="its key")
    command.add_argument(
        "--insecure-bind", action="store_true", help="listen beyond this machine without TLS: tokens can be read"
    )
    command.add_argument("--requests-per-second", type=_rate, default=100, help="of one token (default: 100)")
    command.add_argument("--changes-per-minute", type=_rate, default=60, help="of one token (default: 60)")
    command.add_argument("--poll-seconds", type=float, default=15, help=argparse.SUPPRESS)
    command.add_argument("--stall-seconds", type=float, default=600, help=argparse.SUPPRESS)
    command.add_argument("--new-token", metavar="NAME", help="make a token, print it once, and end")
    command.add_argument("--scopes", default="read", help="of --new-token: read (default) or read,trigger")
