"""What the API says of a run: its row in the table, and what stands in its folder."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechmill.api.records import Reading, read
from speechmill.api.store import Run
from speechmill.cluster.queue import RUNNING
from speechmill.monitor.record import RunReader
from speechmill.runlog.attempts import failure_text, given_up, read_attempts
from speechmill.runlog.joblog import TAIL_BYTES, human, parse
from speechmill.runs.plan import LOG
from speechmill.utils.text import plain

# Of the record: what stays true of a run when another one has worked in its folder.
OF_FOLDER = ("stages", "clips", "hours", "published", "alerts", "seconds_left")
ABOUT_TASK = tuple(
    "attempt submitted reason log asked peak_mb cpu_seconds gpu_peak_mb clips audio_seconds gpus".split()
)
QUOTED_LINES = 12
Json = dict[str, Any]


def summary(run: Run) -> Json:
    """A run in a list of runs."""
    names = ("dataset", "state", "created", "started", "ended", "run_dir", "last_error")
    return {"run_id": run.id} | {name: getattr(run, name) for name in names} | {"estimated_duration_hours": run.hours}


def status(run: Run, history: Sequence[Mapping[str, Any]], reading: Reading) -> Json:
    """All that is known of a run, but its tasks."""
    found = _facts(run, reading)
    changes = [{name: change[name] for name in ("state", "time", "why")} for change in history]
    about = summary(run) | {"state_history": changes, "restarts": run.restarts}
    return about | {name: found.get(name) for name in (*OF_FOLDER, "rules", "retries")}


def metrics(run: Run, reading: Reading) -> Json:
    """What every task took, and what every stage does per hour of the clock."""
    stages = _facts(run, reading).get("stages") or []
    rates = ("audio_hours_per_hour", "clips_per_hour")
    return {
        "run_id": run.id,
        "dataset": run.dataset,
        "state": run.state,
        "tasks": tasks(run, reading),
        "throughput": {stage["stage"]: {name: stage[name] for name in rates} for stage in stages if stage[rates[0]]},
        "clips": {stage["stage"]: stage["clips"] for stage in stages if stage["clips"]},
        "hours": {stage["stage"]: stage["hours"] for stage in stages if stage["hours"]},
    }


def tasks(run: Run, reading: Reading) -> list[Json]:
    """The run's pieces of work in the order of their first attempt: the last attempt of each, and how many came before."""
    return reading.once(("tasks", run.id, run.ended, run.is_active), lambda: _tasks(run, reading))


def _tasks(run: Run, reading: Reading) -> list[Json]:
    queue = {job["id"]: job["state"] for job in (reading.record or {}).get("slurm_jobs", [])}
    attempts: dict[tuple[Any, ...], list[Json]] = defaultdict(list)
    for job in attempts_of(run, reading.jobs):
        attempts[job["stage"], job["batch"], job["file"]].append(job)
    return [_task(run, made, queue) for made in attempts.values()]


def attempts_of(run: Run, jobs: Iterable[Json]) -> list[Json]:
    """Those of the attempts in a folder that were made in this run."""
    return [
        job for job in jobs if run.created <= job["submitted"] and (run.ended is None or job["submitted"] <= run.ended)
    ]


def snapshot(run_dir: Path, run: Run) -> Json:
    """What is kept of a run when it ends, for when another one works in its folder."""
    return _facts(run, read(RunReader(run_dir))) | {"seconds_left": None}


def last_error_of(run_dir: Path, run: Run, log_from: int | None) -> str | None:
    """Why a run failed: its last job that failed for good, else what Snakemake, whose output begins there, said last."""
    lines = [line for line in read_attempts(run_dir) if line["time"] >= (run.started or run.created)]
    if failed := given_up(lines):
        return failure_text(failed[-1], quote=False)
    if log_from is None:
        return None
    with open(run_dir / LOG, "rb") as file:
        file.seek(max(log_from, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        said = [line["text"] for line in parse(file.read()) if line["text"].strip()]
    return " / ".join(plain(text) for text in said[-QUOTED_LINES:]) or None


def log_line(line: Mapping[str, Any]) -> Json:
    """A line of a log, with how a person reads it."""
    return dict(line) | {"human": human(line)}


def _facts(run: Run, reading: Reading) -> Json:
    """Of the folder; of a run that has ended, as it was then."""
    if run.final and (kept := json.loads(run.final)):
        return kept
    return reading.once(("facts", run.id, run.ended), lambda: _facts_of(run, reading))


def _facts_of(run: Run, reading: Reading) -> Json:
    made = attempts_of(run, reading.jobs)
    rules: dict[str, Counter[str]] = defaultdict(Counter)
    for job in made:
        rules[job["stage"]][job["status"]] += 1
    first = len({(job["stage"], job["batch"], job["file"]) for job in made})
    own = {"rules": {rule: dict(count) for rule, count in sorted(rules.items())}, "retries": len(made) - first}
    return {name: (reading.record or {}).get(name) for name in OF_FOLDER} | own | {"stages": _stages(reading)}


def _stages(reading: Reading) -> list[Json]:
    return (reading.record or {}).get("stages") or []


def _task(run: Run, made: Sequence[Json], queue: Mapping[str, str]) -> Json:
    last = made[-1]
    state = last["status"]
    if state == "submitted":
        state = "running" if last["slurm_job"] is None or queue.get(last["slurm_job"]) in RUNNING else "waiting"
        state = state if run.is_active else "lost"
    return {
        "task": last["stage"],
        "batch": last["batch"],
        "file": last["file"],
        "status": state,
        "start": last.get("began") or (last["submitted"] if last["slurm_job"] is None else None),
        "end": last["ended"],
        "duration": last.get("seconds"),
        "retries": len(made) - 1,
        "host": last.get("node"),
        "device": last.get("device"),
        "slurm_job": last["slurm_job"],
    } | {name: last.get(name) for name in ABOUT_TASK}
