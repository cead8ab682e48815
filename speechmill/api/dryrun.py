"""What Snakemake would do: a dry run, in a process of its own."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from speechmill.runs.plan import Plan
from speechmill.utils.text import plain

JOBS = re.compile(r"^(\w+) +(\d+)$", re.MULTILINE)
QUOTED_LINES = 20


@dataclass(frozen=True)
class DryRun:
    """Whether a run could begin, and how many jobs of each rule it would have, as far as that is known yet."""

    valid: bool
    problems: list[str]
    jobs: dict[str, int]


def dry_run(plan: Plan, timeout: float) -> DryRun:
    """Ask Snakemake; nothing of the run is changed."""
    command = plan.command(arguments=["--dry-run", "--quiet", "rules"])
    try:
        done = subprocess.run(
            command,
            cwd=plan.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return DryRun(False, [f"the dry run did not end within {timeout:.0f} s: try speechmill run -- -n"], {})
    output = done.stdout + done.stderr
    if done.returncode:
        lines = [plain(line) for line in output.splitlines() if line.strip()]
        return DryRun(False, lines[-QUOTED_LINES:] or [f"snakemake ended with {done.returncode}"], {})
    table = output.partition("Job stats:")[2]
    counts = {name: int(number) for name, number in JOBS.findall(table) if name != "total"}
    return DryRun(True, [], counts)
