"""The machine that this process runs on. The only reader of Slurm's environment variables (SLURM_*, SLURMD_*)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def node_name() -> str:
    """Return the Slurm node name in a Slurm job, else the host name."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def slurm_job(environment: Mapping[str, str] | None = None) -> str | None:
    """The number of the Slurm job that a process belongs to; None outside of Slurm.

    Args:
        environment: of the process; default: of this one.
    """
    return (os.environ if environment is None else environment).get("SLURM_JOB_ID") or None


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if the process is gone or another user's."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
