"""What is known of a run, from its files alone: jobs, stages, clips and hours by state, rates, time left.

Whoever asks gets the same answer, while it runs and after, on any machine that sees its folder: the account of its
attempts (`speechmill.runlog.attempts`), the files of its batches, what its jobs at work tell, and Slurm's queue where there is one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from speechmill.cluster.queue import Job, job_prefix, jobs_in_queue
from speechmill.engine.checkpoint import read_progress
from speechmill.errors import SpeechmillError
from speechmill.monitor.alerts import alerts_state
from speechmill.runlog import run_lock
from speechmill.runlog.attempts import FILE, AttemptSummary, Tail
from speechmill.storage.files import read_json
from speechmill.tables.batches import read_batches
from speechmill.utils.times import unix

STAGES = {"enhance": "ledger/*.enhance.parquet", "score": "scores/*.parquet"}  # a job per batch
SENT = {"send": "published/sent/*.json"}  # where shards are sent ahead
SINGLE = {"rank": "ranking/ranked.tsv", "report": "report/summary.json", "publish": "published/UPLOADED.json"}
HEAVY = {"enhance": "enhanced", "score": "scores"}  # and the folders where these jobs tell how far they are
FRESH_SECONDS = 120  # a job that told nothing for longer has ended, or hangs
RECENT_SECONDS = 3600.0  # over which rates are taken, or three times as long as a job takes
SETTLED_SECONDS = 2.0  # no file system tells times of changes more coarsely
Line = Mapping[str, Any]
T = TypeVar("T")


def record(run_dir: Path, now: float | None = None, ask_slurm: bool = True) -> dict[str, Any]:
    """The record of a run, as `RunReader.read` tells it."""
    return record_and_jobs(run_dir, now, ask_slurm)[0]


def record_and_jobs(
    run_dir: Path, now: float | None = None, ask_slurm: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a run, and every attempt of every job, as `RunReader.read` tells them."""
    return RunReader(run_dir).read(now, ask_slurm)


class RunReader:
    """Reads a run, again and again: of its account what is new, of its folders and files what has changed.

    What it gives is not changed by later readings. Not for several threads at once.
    """

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._tail = Tail(run_dir / FILE)
        self._account = AttemptSummary()
        self._folders: dict[str, _Folder] = {}
        self._files: dict[Path, tuple[tuple[int, ...], Any]] = {}
        self._works: dict[int, _Work] = {}

    def read(self, now: float | None = None, ask_slurm: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The record, and every attempt of every job. Times are ISO 8601 in UTC, `hours` and `audio_*` those of audio.

        Slurm is asked at most every `cluster.queue.ANSWER_SECONDS`, and not at all without `ask_slurm`.

        Raises:
            SpeechmillError: there is no run in this folder.
        """
        run_dir = self.run_dir
        if not (run_dir / "preflight.json").exists() and not (run_dir / "logs").exists():
            raise SpeechmillError(f"{run_dir}: there is no run here")
        now = time.time() if now is None else now
        account = self._read_account()
        starts = account.starts
        holder = run_lock.read_owner(run_dir)
        alive = bool(holder and holder.is_alive)
        prefix = job_prefix(run_dir.resolve().name, run_dir)
        queue, queue_error = jobs_in_queue(prefix) if ask_slurm and account.is_on_slurm else ([], None)
        batches = self._file(run_dir / "manifest" / "batches.tsv", _clips_of_batches)
        at_work = self._at_work(now)
        done = account.jobs()
        failed = [dict(line) for line in account.given_up()]
        now_at_work = _jobs_now(queue, done, alive)
        stages = _stages(self._batches_done(), batches, now_at_work, done, failed)
        since = unix(starts[-1]["time"]) if starts else now
        works = self._heavy_works(done)
        _add_rates(stages, works, at_work, since, now if alive or account.time is None else unix(account.time))
        finished = [job["ended"] for job in done if job["status"] == "finished"]
        summary, published = (self._file(run_dir / SINGLE[stage], _json) for stage in ("report", "publish"))
        found = {
            "run": str(run_dir),
            "dataset": run_dir.resolve().name,
            "state": _state(run_dir, holder, queue, account),
            "owner": str(holder) if holder else None,
            "version": (starts[-1].get("versions") or {}).get("speechmill") if starts else None,
            "started": starts[0]["time"] if starts else None,
            "this_start": starts[-1]["time"] if starts else None,
            "starts": len(starts),
            "last_finished": max(finished, default=None),
            "clips": sum(batches.values()) if batches is not None else None,
            "hours": next((sum(stage["hours"].values()) for stage in stages if stage["stage"] == "enhance"), None),
            "stages": stages,
            "rules": _rules(done),
            "jobs_now": now_at_work,
            "seconds_left": _seconds_left(stages),
            "at_work": at_work,
            "slurm_jobs": [{"id": job.id, "state": job.state, "node": job.node, "work": job.work} for job in queue],
            "slurm_error": queue_error,
            "rates": _rates(works),
            "given_up": failed,
            "last_failures": list(account.failures),
            "summary": {key: summary.get(key) for key in ("clips", "hours", "rejected_by", "errored_by")}
            if summary
            else None,
            "published": {key: value for key, value in published.items() if key != "files"} if published else None,
            "report": str(run_dir / "report" / "report.html") if summary else None,
            "disk_free_bytes": shutil.disk_usage(run_dir).free,
            "panoptes": self._file(run_dir / "logs" / "panoptes.json", _panoptes),
            "alerts": _alerts(run_dir),
        }
        return found, done

    def _read_account(self) -> AttemptSummary:
        is_new, lines = self._tail.read()
        if is_new:
            self._account = AttemptSummary()
            self._works = {}
        for _, line in lines:
            self._account.add(line)
        return self._account

    def _heavy_works(self, done: Sequence[Mapping[str, Any]]) -> list[_Work]:
        """The finished heavy jobs, of which nothing changes any more."""
        for number, job in enumerate(done):
            if job["status"] == "finished" and number not in self._works and job["stage"] in HEAVY and job.get("clips"):
                self._works[number] = _work(job)
        return list(self._works.values())

    def _batches_done(self) -> dict[str, set[str]]:
        """What each stage has done, by the names of its files."""
        sent = SENT if (self.run_dir / "published" / "sent").exists() else {}
        found = {}
        for stage, pattern in (STAGES | sent).items():
            folder, _, ending = pattern.rpartition("/*")
            names = [name for name in self._names(folder) if name.endswith(ending) and not name.startswith(".")]
            found[stage] = {name.split(".")[0] for name in names}
        return found | {stage: {stage} if (self.run_dir / path).exists() else set() for stage, path in SINGLE.items()}

    def _at_work(self, now: float) -> list[dict[str, Any]]:
        """How far the heavy jobs at work are, by stage and batch."""
        return [
            {"stage": stage, "batch": batch, **told}
            for stage, folder in HEAVY.items()
            for batch, told in read_progress(self.run_dir / folder, self._names(folder)).items()
            if now - told["time"] < FRESH_SECONDS
        ]

    def _names(self, folder: str) -> list[str]:
        return self._folders.setdefault(folder, _Folder(self.run_dir / folder)).names()

    def _file(self, path: Path, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of a file, once for each time that it is written; None where it is not there."""
        try:
            found = path.stat()
        except OSError:
            return None
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        kept = self._files.get(path)
        if kept is None or kept[0] != state:
            kept = self._files[path] = (state, read(path))
        value: T | None = kept[1]
        return value


class _Work(NamedTuple):
    """A finished heavy job: the clips that it has and those that it did itself, and when it was at work."""

    stage: str
    time: str
    began: float
    ended: float
    seconds: float
    clips: int
    own_clips: int
    audio_seconds: float


def _work(job: Mapping[str, Any]) -> _Work:
    clips = sum(job["clips"].values())
    return _Work(
        stage=job["stage"],
        time=job["ended"],
        began=unix(job.get("began") or job["submitted"]),
        ended=unix(job["ended"]),
        seconds=job.get("seconds") or 0.0,
        clips=clips,
        own_clips=max(clips - (job.get("resumed") or 0), 0),
        audio_seconds=round(sum((job.get("audio_seconds") or {}).values()), 3),
    )


class _Folder:
    """The names in a folder, which is listed again when it has changed."""

    def __init__(self, path: Path):
        self.path = path
        self._names: list[str] = []
        self._state: tuple[int, ...] | None = None
        self._since = self._listed = 0.0

    def names(self) -> list[str]:
        now = time.monotonic()
        try:
            found = self.path.stat()
            state = (found.st_dev, found.st_ino, found.st_mtime_ns)
            if state != self._state:
                self._state, self._since = state, now
            elif self._listed - self._since > SETTLED_SECONDS:  # a later change would have another time
                return self._names
            self._names, self._listed = os.listdir(self.path), now
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            self._names, self._state = [], None
        return self._names


def _jobs_now(queue: Sequence[Job], done: Sequence[Mapping[str, Any]], alive: bool) -> dict[str, dict[str, int]]:
    """Jobs running and waiting now, by rule: on Slurm as it says, beside Snakemake while that lives."""
    now: dict[str, Counter[str]] = defaultdict(Counter)
    for queued in queue:
        now[queued.work.split(" ")[0]]["running" if queued.is_running else "waiting"] += 1
    for job in done if alive else ():
        if job["status"] == "submitted" and not job.get("slurm_job"):
            now[job["stage"]]["running"] += 1
    return {rule: {"running": count["running"], "waiting": count["waiting"]} for rule, count in sorted(now.items())}


def _stages(
    found: Mapping[str, set[str]],
    batches: Mapping[str, int] | None,
    now: Mapping[str, Mapping[str, int]],
    done: Sequence[Mapping[str, Any]],
    failed: Sequence[Line],
) -> list[dict[str, Any]]:
    """One entry per stage: batches done and at work, and what the last success of each batch said."""
    clips: dict[str, Counter[str]] = defaultdict(Counter)
    audio: dict[str, Counter[str]] = defaultdict(Counter)
    last = {(job["stage"], job["batch"]): job for job in done if job["status"] == "finished"}
    for (stage, batch), job in last.items():
        if stage in SINGLE or batch in found.get(stage, ()):
            _add(clips[stage], job.get("clips"))
            _add(audio[stage], job.get("audio_seconds"))
    attempts = Counter(job["stage"] for job in done if job["status"] == "failed")
    given_up = Counter(line["stage"] for line in failed)
    seconds: Counter[str] = Counter()
    for job in done:
        seconds[job["stage"]] += job.get("seconds") or 0
    return [
        {
            "stage": name,
            "done": len(names) if name in SINGLE else len(names & (batches or {}).keys()),
            "total": 1 if name in SINGLE else len(batches) if batches is not None else None,
            **now.get(name, {"running": 0, "waiting": 0}),
            "failed_attempts": attempts[name],
            "given_up": given_up[name],
            "clips": dict(clips[name]),
            "hours": {state: round(value / 3600, 6) for state, value in audio[name].items()},
            "seconds": round(seconds[name], 3),
            "clips_per_hour": None,
            "audio_hours_per_hour": None,
            "seconds_left": None,
        }
        for name, names in found.items()
    ]


def _add(sums: Counter[str], more: Mapping[str, Any] | None) -> None:
    for state, value in (more or {}).items():  # Counter.update takes ten times as long
        sums[state] += value


def _add_rates(
    stages: Sequence[dict[str, Any]],
    works: Sequence[_Work],
    at_work: Sequence[Mapping[str, Any]],
    since: float,
    now: float,
) -> None:
    """What heavy stages do per hour of the clock, lately and in this start, and how long their batches will take.

    Counted is what this start did: neither rows that a job took over from earlier attempts, nor the time that the first
    jobs waited in the queue.
    """
    for stage in stages:
        mine = [work for work in works if work.stage == stage["stage"]]
        if not mine:
            continue
        begin = max(now - max(RECENT_SECONDS, 3 * median([work.seconds for work in mine])), since)
        recent = [work for work in mine if work.ended > begin]
        if recent:
            begin = max(begin, min(work.began for work in recent))
        working = [job for job in at_work if job["stage"] == stage["stage"]]
        rows = sum(job["rows"] for job in working)
        clips = sum(work.own_clips for work in recent) + rows - sum(job.get("resumed", 0) for job in working)
        hours = (now - begin) / 3600
        if not recent or hours <= 0 or clips <= 0 or stage["total"] is None:
            continue
        all_clips = sum(work.clips for work in mine)
        per_clip = sum(work.audio_seconds for work in mine) / all_clips
        stage["clips_per_hour"] = round(clips / hours, 1)
        stage["audio_hours_per_hour"] = round(clips * per_clip / 3600 / hours, 3)
        left = max((stage["total"] - stage["done"]) * all_clips / len(mine) - rows, 0)
        stage["seconds_left"] = round(left / clips * hours * 3600)


def _seconds_left(stages: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the heavy stages, which work side by side: the longest. None until one of them has a rate."""
    left = [stage["seconds_left"] for stage in stages if stage["seconds_left"] is not None]
    return max(left, default=None)


def _rates(works: Iterable[_Work]) -> list[dict[str, Any]]:
    """What each finished heavy job did in its own time, in the order of their ends."""
    return [
        {
            "time": work.time,
            "stage": work.stage,
            "seconds": work.seconds,
            "clips": work.own_clips,
            "audio_seconds": round(work.audio_seconds * work.own_clips / work.clips, 3) if work.own_clips else 0.0,
        }
        for work in sorted(works, key=lambda work: work.time)
        if work.seconds
    ]


def _rules(done: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Attempts of every rule by status."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for job in done:
        counts[job["stage"]][job["status"]] += 1
    return {rule: dict(count) for rule, count in sorted(counts.items())}


def _state(run_dir: Path, holder: run_lock.Owner | None, queue: Sequence[Job], account: AttemptSummary) -> str:
    """running | interrupted | finished | failed | stopped."""
    supervisor = run_lock.read_supervisor(run_dir)
    if (supervisor and supervisor.is_alive) or (holder and holder.is_alive):
        return "running"
    if holder or supervisor:
        return "interrupted"
    began = account.starts[-1] if account.starts else {}
    outcome = account.of_run.get("outcome") if account.of_run else "succeeded"  # a run from before this account
    if outcome == "failed" or began.get("withholds"):
        return "failed"
    done = outcome == "succeeded" and (run_dir / str(began.get("goal", SINGLE["publish"]))).exists()
    return "finished" if done and not queue else "stopped"


def _clips_of_batches(table: Path) -> dict[str, int]:
    return {row["batch"]: int(row["clips"] or 0) for row in read_batches(table)}


def _alerts(run_dir: Path) -> dict[str, Any] | None:
    try:
        return alerts_state(run_dir)
    except (SpeechmillError, KeyError, TypeError, ValueError, AttributeError) as error:
        trouble = {"channel": "the outbox", "error": f"logs/alerts.json is damaged: {error}", "time": time.time()}
        return {"open": [], "undelivered": 0, "trouble": [trouble]}


def _panoptes(path: Path) -> dict[str, Any] | None:
    """What Panoptes was not told of the last start, and why."""
    found = _json(path)
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
