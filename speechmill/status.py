"""How far a run is: from its files, the account of its attempts and Slurm's queue, whoever started it."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from speechmill import owner, slurm
from speechmill.attempts import read_attempts
from speechmill.errors import SpeechmillError
from speechmill.manifest import read_batches
from speechmill.parts import read_progress

STAGES = {"enhance": "ledger/*.enhance.parquet", "score": "scores/*.parquet", "rank": "ranking/*.parquet"}
SENT = {"send": "published/sent/*.json"}  # where shards are sent ahead
AT_WORK = {"enhance": "enhanced", "score": "scores"}  # folders where jobs tell how far they are
FRESH_SECONDS = 120  # a job that told nothing for longer has ended, or hangs
SINGLE = {"report": "report/summary.json", "publish": "published/UPLOADED.json"}


def status(run_dir: Path) -> dict[str, Any]:
    """State, stages and last failures of a run.

    Raises:
        SpeechmillError: there is no run in this folder.
    """
    if not (run_dir / "preflight.json").exists() and not (run_dir / "logs").exists():
        raise SpeechmillError(f"{run_dir}: there is no run here")
    holder = owner.read_owner(run_dir)
    table = run_dir / "manifest" / "batches.tsv"
    batches = read_batches(table) if table.exists() else None
    names = {row["batch"] for row in batches or []}
    queue, queue_error = _queue(run_dir)
    now: dict[str, Counter[str]] = defaultdict(Counter)
    for job in queue:
        now[job.work.split(" ")[0]][("running" if job.state in slurm.RUNNING else "waiting")] += 1
    failed, last = _failures(run_dir)
    stages = []
    of_batches = STAGES | (SENT if (run_dir / "published" / "sent").exists() else {})
    for name, pattern in (of_batches | SINGLE).items():
        found = {path.name.split(".")[0] for path in run_dir.glob(pattern)}
        done = len(found & names) if name in of_batches else len(found)
        total = 1 if name in SINGLE else len(names) if batches is not None else None
        stages.append({"stage": name, "done": done, "total": total, **now[name], "failed_attempts": failed[name]})
    return {
        "run": str(run_dir),
        "state": _state(run_dir, holder, queue),
        "owner": str(holder) if holder else None,
        "clips": sum(int(row["clips"] or 0) for row in batches) if batches is not None else None,
        "stages": stages,
        "at_work": _at_work(run_dir),
        "slurm_jobs": [{"id": job.id, "state": job.state, "node": job.node, "work": job.work} for job in queue],
        "slurm_error": queue_error,
        "last_failures": last,
    }


def status_text(found: dict[str, Any], as_json: bool = False) -> str:
    """The status for a person, or as JSON."""
    if as_json:
        return json.dumps(found, indent=2)
    clips = f", {found['clips']:,} clips" if found["clips"] is not None else ""
    lines = [f"{found['run']}: {found['state']}{clips}" + (f" ({found['owner']})" if found["owner"] else "")]
    lines.append(f"  {'stage':<9}{'done':>8} {'of':>8} {'':<22}{'running':>8}{'waiting':>8}{'failed attempts':>17}")
    for row in found["stages"]:
        share = row["done"] / row["total"] if row["total"] else 0
        bar = "#" * round(20 * share)
        lines.append(
            f"  {row['stage']:<9}{row['done']:>8} {row['total'] if row['total'] is not None else '?':>8} [{bar:<20}]"
            f"{row.get('running', 0):>8}{row.get('waiting', 0):>8}{row['failed_attempts']:>17}"
        )
    for job in found["at_work"]:
        left = f", {job['seconds_left'] / 60:.0f} min left" if job["seconds_left"] is not None else ""
        of = f" of {job['total']:,}" if job["total"] is not None else ""
        rate = f"{job['rows_per_second']:.1f} clips/s"
        lines.append(f"  {job['stage']} {job['batch']}: {job['rows']:,}{of} clips, {rate}{left}")
    for failure in found["last_failures"]:
        work = " ".join(part for part in (failure["stage"], failure["batch"] or failure.get("file")) if part)
        job = f", Slurm job {failure['slurm_job']}" if failure["slurm_job"] else ""
        lines.append(
            f"  failed: {work}, attempt {failure['attempt']}{job}, {failure['time'][:19]} UTC; {failure['log']}"
        )
    if found["slurm_error"]:
        lines.append(f"  {found['slurm_error']}")
    return "\n".join(lines)


def _at_work(run_dir: Path) -> list[dict[str, Any]]:
    """How far the heavy jobs at work are, by stage and batch."""
    return [
        {"stage": stage, "batch": batch, **told}
        for stage, folder in AT_WORK.items()
        for batch, told in read_progress(run_dir / folder).items()
        if time.time() - told["time"] < FRESH_SECONDS
    ]


def _state(run_dir: Path, holder: owner.Owner | None, queue: list[slurm.Job]) -> str:
    if holder:
        return "running" if holder.is_alive else f"interrupted: speechmill resume {run_dir}"
    if (run_dir / SINGLE["publish"]).exists():
        return "finished"
    return "stopped, with Slurm jobs left" if queue else "stopped"


def _queue(run_dir: Path) -> tuple[list[slurm.Job], str | None]:
    """Living Slurm jobs of the run, and what Slurm said where it did not answer. No Slurm here is no error."""
    from shutil import which

    if which("squeue") is None:
        return [], None
    try:
        found = slurm.jobs(slurm.run_prefix(run_dir.resolve().name, run_dir))
    except slurm.SlurmError as error:
        return [], str(error)
    return [job for job in found if job.state in slurm.WAITING | slurm.RUNNING], None


def _failures(run_dir: Path) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Failed attempts by stage, and the last five."""
    counts: Counter[str] = Counter()
    last: list[dict[str, Any]] = []
    for line in read_attempts(run_dir):
        if line["event"] == "failed":
            counts[line["stage"]] += 1
            work = line["batch"] or line.get("file")
            name = f"batches/{work}" if work else line["stage"]
            last = [*last[-4:], line | {"log": str(run_dir / "logs" / f"{name}.log")}]
    return counts, last
