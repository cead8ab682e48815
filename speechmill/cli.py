"""The `speechmill` command. Runs are started with `snakemake`; this shows what came of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.files import read_json


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="speechmill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    summary = commands.add_parser("summary", help="a short summary of a finished run")
    summary.add_argument("run", type=Path, help="folder of the run, such as results/demo")
    options = parser.parse_args(arguments)
    try:
        print(summary_text(options.run))
    except SpeechmillError as error:
        print(f"speechmill: {error}", file=sys.stderr)
        return 1
    return 0


def summary_text(run: Path) -> str:
    """Clips and hours by state, the most frequent reasons, and where to look.

    Raises:
        SpeechmillError: the run has no summary yet.
    """
    try:
        summary: dict[str, Any] = read_json(run / "report" / "summary.json")
    except (OSError, ValueError) as error:
        raise SpeechmillError(
            f"{run}: no finished run here (report/summary.json is missing); start it first"
        ) from error
    clips, hours = summary["clips"], summary["hours"]
    lines = [f"{summary['dataset']}: {clips['input']} clips, {hours['input']:.2f} h"]
    for state in ("accepted", "rejected", "errored", "duplicate"):
        share = clips[state] / clips["input"] if clips["input"] else 0.0
        extra = f"  {hours['accepted']:.2f} h" if state == "accepted" else ""
        lines.append(f"  {state:<10}{clips[state]:>9}{share:>8.1%}{extra}")
    for title, counts in (("rejected by", summary["rejected_by"]), ("errored by", summary["errored_by"])):
        if counts:
            top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
            lines.append(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in top))
    lines.append(f"report:    {(run / 'report' / 'report.html').resolve()}")
    sentinel = run / "published" / "UPLOADED.json"
    if sentinel.is_file():
        lines.append(f"published: {Path(read_json(sentinel)['target']).resolve()}")
    return "\n".join(lines)
