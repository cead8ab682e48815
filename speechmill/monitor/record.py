"""What is known of a run, from its files alone: jobs, stages, clips and hours by state, rates, time left.

Whoever asks gets the same answer, while it runs and after, on any machine that sees its folder: the account of its
attempts (`speechmill.attempts`), the files of its batches, what its jobs at work tell, and Slurm's queue where there is one.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from speechmill import owner, slurm
from speechmill.attempts import given_up, jobs, read_attempts
from speechmill.errors import SpeechmillError
from speechmill.files import read_json
from speechmill.manifest import read_batches
from speechmill.monitor.alerts import alerts_state
from speechmill.parts import read_progress
from speechmill.times import unix

STAGES = {"enhance": "ledger/*.enhance.parquet", "score": "scores/*.parquet", "rank": "ranking/*.parquet"}
SENT = {"send": "published/sent/*.json"}  # where shards are sent ahead
SINGLE = {"report": "report/summary.json", "publish": "published/UPLOADED.json"}
HEAVY = {"enhance": "enhanced", "score": "scores"}  # and the folders where these jobs tell how far they are
FRESH_SECONDS = 120  # a job that told nothing for longer has ended, or hangs
RECENT_SECONDS = 3600.0  # over which rates are taken, or three times as long as a job takes
QUEUE_SECONDS = 15.0  # between two questions to Slurm
KEPT_FAILURES = 5
Line = Mapping[str, Any]


def record(run_dir: Path, now: float | None = None, ask_slurm: bool = True) -> dict[str, Any]:
    """The record of a run, as `record_and_jobs` tells it."""
    return record_and_jobs(run_dir, now, ask_slurm)[0]


def record_and_jobs(
    run_dir: Path, now: float | None = None, ask_slurm: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a run, and every attempt of every job. Times are ISO 8601 in UTC, `hours` and `audio_*` those of audio.

    Slurm is asked at most every QUEUE_SECONDS, and not at all without `ask_slurm`.

    Raises:
        SpeechmillError: there is no run in this folder.
    """
    if not (run_dir / "preflight.json").exists() and not (run_dir / "logs").exists():
        raise SpeechmillError(f"{run_dir}: there is no run here")
    now = time.time() if now is None else now
    lines = list(read_attempts(run_dir))
    starts = [line for line in lines if line["event"] == "began"]
    holder = owner.read_owner(run_dir)
    alive = bool(holder and holder.is_alive)
    queue, queue_error = _queue(run_dir, lines) if ask_slurm else ([], None)
    batches = _batches(run_dir)
    at_work = _at_work(run_dir, now)
    done = jobs(lines)
    failed = [dict(line) for line in given_up(lines)]
    now_at_work = _jobs_now(queue, done, alive)
    stages = _stages(run_dir, batches, now_at_work, done, failed)
    since = unix(starts[-1]["time"]) if starts else now
    _add_rates(stages, done, at_work, since, now if alive or not lines else unix(lines[-1]["time"]))
    finished = [job["ended"] for job in done if job["status"] == "finished"]
    summary, published = (_json(run_dir / path) for path in SINGLE.values())
    found = {
        "run": str(run_dir),
        "dataset": run_dir.resolve().name,
        "state": _state(run_dir, holder, queue, lines),
        "owner": str(holder) if holder else None,
        "started": starts[0]["time"] if starts else None,
        "this_start": starts[-1]["time"] if starts else None,
        "starts": len(starts),
        "last_finished": max(finished, default=None),
        "clips": sum(int(row["clips"] or 0) for row in batches) if batches is not None else None,
        "hours": next((sum(stage["hours"].values()) for stage in stages if stage["stage"] == "enhance"), None),
        "stages": stages,
        "rules": _rules(done),
        "jobs_now": now_at_work,
        "seconds_left": _seconds_left(stages),
        "at_work": at_work,
        "slurm_jobs": [{"id": job.id, "state": job.state, "node": job.node, "work": job.work} for job in queue],
        "slurm_error": queue_error,
        "rates": _rates(done),
        "given_up": failed,
        "last_failures": [line for line in lines if line["event"] == "failed"][-KEPT_FAILURES:],
        "summary": {key: summary.get(key) for key in ("clips", "hours", "rejected_by", "errored_by")}
        if summary
        else None,
        "published": {key: value for key, value in published.items() if key != "files"} if published else None,
        "report": str(run_dir / "report" / "report.html") if summary else None,
        "disk_free_bytes": shutil.disk_usage(run_dir).free,
        "panoptes": _panoptes(run_dir),
        "alerts": _alerts(run_dir),
    }
    return found, done


def _jobs_now(queue: Sequence[slurm.Job], done: Sequence[Mapping[str, Any]], alive: bool) -> dict[str, dict[str, int]]:
    """Jobs running and waiting now, by rule: on Slurm as it says, beside Snakemake while that lives."""
    now: dict[str, Counter[str]] = defaultdict(Counter)
    for queued in queue:
        now[queued.work.split(" ")[0]]["running" if queued.state in slurm.RUNNING else "waiting"] += 1
    for job in done if alive else ():
        if job["status"] == "submitted" and not job.get("slurm_job"):
            now[job["stage"]]["running"] += 1
    return {rule: {"running": count["running"], "waiting": count["waiting"]} for rule, count in sorted(now.items())}


def _stages(
    run_dir: Path,
    batches: Sequence[Mapping[str, str]] | None,
    now: Mapping[str, Mapping[str, int]],
    done: Sequence[Mapping[str, Any]],
    failed: Sequence[Line],
) -> list[dict[str, Any]]:
    """One entry per stage: batches done and at work, and what the last success of each batch said."""
    names = {row["batch"] for row in batches or []}
    last = {(job["stage"], job["batch"]): job for job in done if job["status"] == "finished"}
    stages = []
    of_batches = STAGES | (SENT if (run_dir / "published" / "sent").exists() else {})
    for name, pattern in (of_batches | SINGLE).items():
        found = {path.name.split(".")[0] for path in run_dir.glob(pattern)}
        total = 1 if name in SINGLE else len(names) if batches is not None else None
        clips: Counter[str] = Counter()
        seconds: Counter[str] = Counter()
        for (stage, batch), job in last.items():
            if stage == name and (batch in found or name in SINGLE):
                clips.update(job.get("clips") or {})
                seconds.update(job.get("audio_seconds") or {})
        stages.append(
            {
                "stage": name,
                "done": len(found & names) if name in of_batches else len(found),
                "total": total,
                **now.get(name, {"running": 0, "waiting": 0}),
                "failed_attempts": sum(job["stage"] == name and job["status"] == "failed" for job in done),
                "given_up": sum(line["stage"] == name for line in failed),
                "clips": dict(clips),
                "hours": {state: round(value / 3600, 6) for state, value in seconds.items()},
                "seconds": round(sum(job.get("seconds") or 0 for job in done if job["stage"] == name), 3),
                "clips_per_hour": None,
                "audio_hours_per_hour": None,
                "seconds_left": None,
            }
        )
    return stages


def _add_rates(
    stages: Sequence[dict[str, Any]],
    done: Sequence[Mapping[str, Any]],
    at_work: Sequence[Mapping[str, Any]],
    since: float,
    now: float,
) -> None:
    """What heavy stages do per hour of the clock, lately and in this start, and how long their batches will take.

    Counted is what this start did: neither rows that a job took over from earlier attempts, nor the time that the first
    jobs waited in the queue.
    """
    for stage in stages:
        if stage["stage"] not in HEAVY:
            continue
        mine = [
            job for job in done if job["stage"] == stage["stage"] and job["status"] == "finished" and job.get("clips")
        ]
        took = median([job.get("seconds") or 0.0 for job in mine]) if mine else 0.0
        begin = max(now - max(RECENT_SECONDS, 3 * took), since)
        recent = [job for job in mine if unix(job["ended"]) > begin]
        if recent:
            begin = max(begin, min(unix(job.get("began") or job["submitted"]) for job in recent))
        working = [job for job in at_work if job["stage"] == stage["stage"]]
        rows = sum(job["rows"] for job in working)
        clips = sum(_worked(job) for job in recent) + rows - sum(job.get("resumed", 0) for job in working)
        hours = (now - begin) / 3600
        if not recent or hours <= 0 or clips <= 0 or stage["total"] is None:
            continue
        all_clips = sum(sum(job["clips"].values()) for job in mine)
        per_clip = sum(_audio_seconds(job) for job in mine) / all_clips
        stage["clips_per_hour"] = round(clips / hours, 1)
        stage["audio_hours_per_hour"] = round(clips * per_clip / 3600 / hours, 3)
        left = max((stage["total"] - stage["done"]) * all_clips / len(mine) - rows, 0)
        stage["seconds_left"] = round(left / clips * hours * 3600)


def _worked(job: Mapping[str, Any]) -> int:
    """Clips that this attempt itself did."""
    return max(sum(job["clips"].values()) - (job.get("resumed") or 0), 0)


def _seconds_left(stages: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the heavy stages, which work side by side: the longest. None until one of them has a rate."""
    left = [stage["seconds_left"] for stage in stages if stage["seconds_left"] is not None]
    return max(left, default=None)


def _rates(done: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each finished heavy job did in its own time, in the order of their ends."""
    found = []
    for job in done:
        if job["stage"] in HEAVY and job["status"] == "finished" and job.get("clips") and job.get("seconds"):
            clips = _worked(job)
            share = clips / sum(job["clips"].values()) if clips else 0.0
            about = {"clips": clips, "audio_seconds": round(_audio_seconds(job) * share, 3)}
            found.append({"time": job["ended"], "stage": job["stage"], "seconds": job["seconds"]} | about)
    return sorted(found, key=lambda rate: str(rate["time"]))


def _audio_seconds(job: Mapping[str, Any]) -> float:
    return round(sum((job.get("audio_seconds") or {}).values()), 3)


def _rules(done: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Attempts of every rule by status."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for job in done:
        counts[job["stage"]][job["status"]] += 1
    return {rule: dict(count) for rule, count in sorted(counts.items())}


def _state(run_dir: Path, holder: owner.Owner | None, queue: Sequence[slurm.Job], lines: Sequence[Line]) -> str:
    """running | interrupted | finished | failed | stopped."""
    if owner.is_supervised(run_dir) or (holder and holder.is_alive):
        return "running"
    if holder:
        return "interrupted"
    events = [line for line in lines if line["stage"] == "run"]
    began = next((line for line in reversed(events) if line["event"] == "began"), {})
    outcome = events[-1].get("outcome") if events else "succeeded"  # a run from before there was this account
    if outcome == "failed" or began.get("withholds"):
        return "failed"
    done = outcome == "succeeded" and (run_dir / str(began.get("goal", SINGLE["publish"]))).exists()
    return "finished" if done and not queue else "stopped"


def _queue(run_dir: Path, lines: Iterable[Line]) -> tuple[list[slurm.Job], str | None]:
    """Living Slurm jobs of the run, and what Slurm said where it did not answer. No Slurm here is no error."""
    if shutil.which("squeue") is None or not any(line.get("slurm_job") for line in lines):
        return [], None
    prefix = slurm.run_prefix(run_dir.resolve().name, run_dir)
    asked, found, error = _answers.get(prefix, (-QUEUE_SECONDS, [], None))
    if time.monotonic() - asked >= QUEUE_SECONDS:
        try:
            found, error = slurm.jobs(prefix), None
        except slurm.SlurmError as problem:
            found, error = [], str(problem)
        _answers[prefix] = (time.monotonic(), found, error)
    return [job for job in found if job.state in slurm.WAITING | slurm.RUNNING], error


_answers: dict[str, tuple[float, list[slurm.Job], str | None]] = {}  # of Slurm, by prefix: many looks are one question


def _batches(run_dir: Path) -> list[dict[str, str]] | None:
    table = run_dir / "manifest" / "batches.tsv"
    return read_batches(table) if table.exists() else None


def _at_work(run_dir: Path, now: float) -> list[dict[str, Any]]:
    """How far the heavy jobs at work are, by stage and batch."""
    return [
        {"stage": stage, "batch": batch, **told}
        for stage, folder in HEAVY.items()
        for batch, told in read_progress(run_dir / folder).items()
        if now - told["time"] < FRESH_SECONDS
    ]


def _alerts(run_dir: Path) -> dict[str, Any] | None:
    try:
        return alerts_state(run_dir)
    except (SpeechmillError, KeyError, TypeError, ValueError, AttributeError) as error:
        trouble = {"channel": "the outbox", "error": f"logs/alerts.json is damaged: {error}", "time": time.time()}
        return {"open": [], "undelivered": 0, "trouble": [trouble]}


def _panoptes(run_dir: Path) -> dict[str, Any] | None:
    """What Panoptes was not told of the last start, and why."""
    found = _json(run_dir / "logs" / "panoptes.json")
    if found is None:
        return None
    counts = [found.get(name) for name in ("dropped", "undelivered")]
    error = found.get("last_error")
    return {
        "address": str(found.get("address")),
        "workflow": found.get("workflow"),
        "untold": sum(count for count in counts if isinstance(count, int)),
        "last_error": None if error is None else str(error),
    }


def _json(path: Path) -> dict[str, Any] | None:
    """A file of the run, where it is there and whole."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
