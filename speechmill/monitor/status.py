"""How far a run is, for a person: the record of a run (`speechmill.monitor.record`) as a table, once or live."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from speechmill.monitor.record import record, record_and_jobs
from speechmill.runlog.attempts import failure_text
from speechmill.utils.text import plain
from speechmill.utils.times import span

WIDTH = 110  # where the output is no terminal
STATES = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "red"}
GOOD = ("passed", "scored", "accepted")
SHOWN_AT_WORK = 8


def status_json(run_dir: Path) -> str:
    """The record, and every attempt of every job."""
    found, jobs = record_and_jobs(run_dir)
    return json.dumps(found | {"jobs": jobs}, indent=2)


def status_text(run_dir: Path) -> str:
    """The table without colours, for files and pipes."""
    shown = io.StringIO()
    console = Console(file=shown, width=WIDTH, color_system=None, legacy_windows=False)
    console.print(view(record(run_dir)), soft_wrap=True)
    lines = shown.getvalue().replace("\N{NO-BREAK SPACE}", " ").splitlines()
    return "\n".join(line.rstrip() for line in lines)


def show(run_dir: Path, watch: bool = False, seconds: float = 5.0) -> None:
    """Print the table; with `watch` keep it up to date until the run is no longer at work."""
    console = Console()
    if not console.is_terminal:
        print(status_text(run_dir))
    elif not watch:
        console.print(view(record(run_dir)))
    else:
        found = record(run_dir)
        with Live(view(found), console=console, auto_refresh=False) as live:
            while found["state"] == "running":
                time.sleep(seconds)
                found = record(run_dir)
                live.update(view(found), refresh=True)


def view(found: Mapping[str, Any]) -> RenderableType:
    """The record as something that rich can print."""
    parts: list[RenderableType] = [_headline(found), _stages(found)]
    shown = {row["stage"] for row in found["stages"]}
    if others := [f"{rule} {sum(now.values())}" for rule, now in found["jobs_now"].items() if rule not in shown]:
        parts.append(Text(f"  also at work: {', '.join(others)}"))
    for job in found["at_work"][:SHOWN_AT_WORK]:
        of = f" of {job['total']:,}" if job["total"] is not None else ""
        left = f", {span(job['seconds_left'])} left" if job["seconds_left"] is not None else ""
        parts.append(
            Text(
                f"  {job['stage']} {job['batch']}: {job['rows']:,}{of} clips, {job['rows_per_second']:.1f} clips/s{left}"
            )
        )
    if len(found["at_work"]) > SHOWN_AT_WORK:
        parts.append(Text(f"  and {len(found['at_work']) - SHOWN_AT_WORK} more jobs at work"))
    given_up = {(line["stage"], line["batch"], line.get("file")) for line in found["given_up"]}
    for line in found["last_failures"]:
        for_good = (line["stage"], line["batch"], line.get("file")) in given_up
        text = f"  {line['time'][11:19]} UTC {failure_text(line, quote=False)}"
        parts.append(Text(plain(text, 2000), style="red" if for_good else "yellow"))
    parts += [Text(f"  {text}", style="yellow") for text in _troubles(found)]
    if found["state"] == "interrupted":
        parts.append(Text(f"  go on: speechmill resume {found['run']}"))
    elif found["slurm_jobs"] and found["state"] != "running":
        parts.append(Text(f"  {len(found['slurm_jobs'])} Slurm jobs of it are left", style="yellow"))
    return Group(*parts)


def _headline(found: Mapping[str, Any]) -> Text:
    text = Text(f"{found['run']}: ")
    text.append(found["state"], style=f"bold {STATES.get(found['state'], 'yellow')}")
    about = [f"{found['clips']:,} clips"] if found["clips"] is not None else []
    about += [f"start {found['starts']}"] if found["starts"] > 1 else []
    about += [str(found["owner"])] if found["owner"] else []
    if found["state"] == "running" and found["seconds_left"]:
        about.append(f"about {span(found['seconds_left'])} left")
    return text.append("".join(f", {part}" for part in about))


def _stages(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=True, header_style="bold")
    for name in ("stage", "done", "", "now", "failed", "clips", "hours", "hours/h"):
        table.add_column(name, justify="right" if name in ("done", "hours", "hours/h") else "left")
    for row in found["stages"]:
        total = row["total"]
        bar = ProgressBar(
            total=total or 1, completed=row["done"], width=16, complete_style="cyan", finished_style="green"
        )
        now = [f"{row[name]:,} {name}" for name in ("running", "waiting") if row[name]]
        failed = [f"{row['failed_attempts']:,}"] if row["failed_attempts"] else []
        failed += [f"{row['given_up']:,} for good"] if row["given_up"] else []
        table.add_row(
            row["stage"],
            f"{row['done']:,} of {'?' if total is None else f'{total:,}'}",
            bar,
            _listed(now),
            Text(_listed(failed), style="red" if row["given_up"] else "yellow"),
            _listed(f"{row['clips'][state]:,} {state}" for state in _good_first(row["clips"])),
            f"{sum(row['hours'].values()):,.2f}" if row["hours"] else "",
            f"{row['audio_hours_per_hour']:,.1f}" if row["audio_hours_per_hour"] else "",
        )
    return table


def _listed(parts: Iterable[str]) -> str:
    """Parts in one line, or in more that break between them."""
    return ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def _good_first(states: Iterable[str]) -> list[str]:
    return sorted(states, key=lambda name: (name not in GOOD, name))


def _troubles(found: Mapping[str, Any]) -> list[str]:
    """What watching the run has trouble with itself."""
    texts = [plain(found["slurm_error"])] if found["slurm_error"] else []
    alerts = found["alerts"] or {"open": [], "trouble": []}
    texts += [f"alert: {plain(cause['title'])}" for cause in alerts["open"]]
    texts += [
        f"alerts do not arrive at {trouble['channel']}: {plain(trouble['error'])}" for trouble in alerts["trouble"]
    ]
    panoptes = found["panoptes"]
    if panoptes and panoptes["untold"] and panoptes["last_error"]:  # else they are on their way
        texts.append(f"Panoptes was not told of {panoptes['untold']} events: {plain(panoptes['last_error'])}")
    return texts
