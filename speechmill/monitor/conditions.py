"""What in the account of a run a person should be told: the causes that hold now, with the words for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from speechmill.errors import Failure
from speechmill.utils.text import plain
from speechmill.utils.times import clock, span, unix

EVENTS = frozenset({"started", "finished", "failed"})  # they happen; all other causes hold, and end
NOT_RESOLVED = EVENTS | {"deadline"}
CAUSES: dict[str | None, str] = {
    Failure.HUB_REFUSED: "hub",
    Failure.NO_SPACE: "disk",
}  # all others: one cause per stage
RECENT = 5  # heavy jobs whose rate is compared...
EARLIER = 10  # ... with that of so many or more before them
SMALL = 0.1  # a job with less than this share of the usual audio tells nothing of the rate
LINES = 10  # of a log
NAMES = 5  # of batches


@dataclass(frozen=True)
class Cause:
    """`severity` is info | success | warning | failure; `measured`: it may come and go with every look."""

    cause: str
    severity: str
    title: str
    body: str
    measured: bool = False


@dataclass(frozen=True)
class Disk:
    """What the file system of a run has left; `inodes` is None where it does not count them."""

    free_bytes: int
    inodes: int | None


def causes(
    record: Mapping[str, Any],
    settings: Mapping[str, Any],
    now: float,
    disk: Disk | None = None,
    moved: float | None = None,
    last_lines: Sequence[str] = (),
) -> list[Cause]:
    """The causes that hold.

    Args:
        record: the account of the run; its `state` decides which of the events holds.
        settings: the section `alerts` of the configuration.
        now: Unix time.
        moved: when something moved last, as far as was seen: the account forgets jobs that tell nothing any more.
        last_lines: of the run's log, for a run that failed of no job.
    """
    found = [*_failures(record), *_shares(record, settings)]
    if disk and (low := _low_disk(record, settings, disk)):
        found = [cause for cause in found if cause.cause != "disk"] + [low]
    if record["state"] == "running":
        if settings["started"] and record["this_start"]:
            found.append(_started(record))
        found += _stalled(record, settings, now, moved) + _slow(record, settings) + _late(record, settings, now)
    if record["state"] == "finished" and settings["finished"]:
        found.append(_finished(record, now))
    if record["state"] == "failed":
        found.append(_failed(record, last_lines))
    return found


def last_move(record: Mapping[str, Any]) -> float | None:
    """Unix time at which a job finished, told of progress, or the run was started; None before all that."""
    times = [unix(record[key]) for key in ("last_finished", "this_start") if record[key]]
    return max([*times, *(job["time"] for job in record["at_work"])], default=None)


def _failures(record: Mapping[str, Any]) -> list[Cause]:
    """A cause for the Hub, one for the disk and one per stage, of what failed for good."""
    by_cause: dict[str, list[Mapping[str, Any]]] = {}
    for failure in _by_time(record["given_up"]):
        cause = CAUSES.get(failure.get("failure", ""), f"failed:{failure['stage']}")
        by_cause.setdefault(cause, []).append(failure)
    titles = {"hub": "the Hub refuses", "disk": "no room on disk"}
    found = []
    for cause, failures in by_cause.items():
        first = failures[0]
        what = titles.get(cause, f"{first['stage']} failed")
        todo = {
            "hub": "The reason says what to mend. It is not tried again by itself; what was sent or fetched is kept.",
            "disk": "Free space, or have the quota raised (df does not show it).",
        }.get(cause, "Other batches go on. Mend the reason." if first["batch"] else "Mend the reason.")
        more = [_work(failure) for failure in failures[1:]]
        text = [
            f"{_work(first)} failed in attempt {first['attempt']}, the last one.",
            *_account(first),
            f"Failed of this, too: {_names(more)}." if more else "",
            f"{todo} Then: speechmill resume {record['run']}",
        ]
        found.append(_cause(record, cause, "failure", f"{what} ({_work(first)})", text))
    return found


def _shares(record: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Cause]:
    """Too many clips errored, or rejected, in one of the stages."""
    todo = {
        "errored": "Class and message of every such clip: column error_class in {run}/ledger and {run}/scores.",
        "rejected": "Criterion, value and threshold of every such clip: {run}/ledger and {run}/ranking. A new "
        "threshold or profile repeats no enhancement.",
    }
    found = []
    for state, words in todo.items():
        limit = settings[f"{state}_share"]
        lines = []
        for row in record["stages"]:
            total, count = sum(row["clips"].values()), row["clips"].get(state, 0)
            if limit is not None and total >= settings["min_clips"] and count > limit * total:
                lines.append(f"{row['stage']}: {count:,} of {total:,} clips {state} ({count / total:.1%})")
        if lines:
            text = [*lines, f"Told from {limit:.1%} on (alerts.{state}_share).", words.format(run=record["run"])]
            found.append(_cause(record, state, "warning", f"many clips are {state}", text, measured=True))
    return found


def _low_disk(record: Mapping[str, Any], settings: Mapping[str, Any], disk: Disk) -> Cause | None:
    free, inodes = settings["disk_free_gb"], settings["free_inodes"]
    lines = []
    if free is not None and disk.free_bytes < free * 1e9:
        lines.append(f"{disk.free_bytes / 1e9:.1f} GB are free; told below {free:g} (alerts.disk_free_gb).")
    if inodes is not None and disk.inodes is not None and disk.inodes < inodes:
        lines.append(f"{disk.inodes:,} inodes are free; told below {inodes:,} (alerts.free_inodes).")
    if not lines:
        return None
    text = [f"The file system of {record['run']} is nearly full.", *lines, "Free space: jobs fail when it is full."]
    return _cause(record, "disk", "failure", "little room on disk", text, measured=True)


def _stalled(record: Mapping[str, Any], settings: Mapping[str, Any], now: float, moved: float | None) -> list[Cause]:
    limit = settings["stalled_minutes"]
    last = max((time for time in (last_move(record), moved) if time is not None), default=None)
    if limit is None or last is None or now - last < limit * 60:
        return []
    at_work = [row for row in record["stages"] if row["running"] or row["waiting"]]
    text = [
        f"No job has finished or told of progress for {(now - last) / 60:.0f} minutes (alerts.stalled_minutes "
        f"{limit:g}), since {clock(last)}.",
        *(f"{row['stage']}: {row['running']} running, {row['waiting']} waiting" for row in at_work),
        "Jobs that wait: squeue --me -o '%i %T %r %k' says for what. Jobs that run: see their logs, "
        f"{record['run']}/logs/",
    ]
    return [_cause(record, "stalled", "failure", "nothing moves", text)]


def _slow(record: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Cause]:
    """A stage whose last jobs are much slower than those before them."""
    limit = settings["throughput_drop"]
    found = []
    for stage in dict.fromkeys(job["stage"] for job in record["rates"]):
        jobs = [job for job in record["rates"] if job["stage"] == stage and job["seconds"] > 0]
        usual = median(job["audio_seconds"] for job in jobs) if jobs else 0
        rates = [job["audio_seconds"] / job["seconds"] for job in jobs if job["audio_seconds"] > SMALL * usual]
        if limit is None or len(rates) < RECENT + EARLIER:
            continue
        before, recent = median(rates[:-RECENT]), median(rates[-RECENT:])
        if recent < limit * before:
            text = [
                f"The last {RECENT} {stage} jobs did {recent:,.1f} seconds of audio per second, the {len(rates) - RECENT} "
                f"before them {before:,.1f}; told below {limit:.0%} (alerts.throughput_drop).",
                f"Look for a slow node or file system: the logs in {record['run']}/logs/batches/ have node and times.",
            ]
            found.append(_cause(record, f"slow:{stage}", "warning", f"{stage} is slow", text, measured=True))
    return found


def _late(record: Mapping[str, Any], settings: Mapping[str, Any], now: float) -> list[Cause]:
    deadline = settings["deadline"]
    if deadline is None or now < unix(deadline):
        return []
    left = record["seconds_left"]
    text = [
        f"The run was to be done by {deadline} (alerts.deadline).",
        f"It has about {span(left)} left." if left is not None else "What is left is not known yet.",
    ]
    return [_cause(record, "deadline", "warning", "the deadline has passed", text)]


def _started(record: Mapping[str, Any]) -> Cause:
    again = record["starts"] > 1
    clips = f"{record['clips']:,} clips" if record["clips"] is not None else "The number of clips is not known yet"
    text = [f"{clips}; start {record['starts']}, {clock(unix(record['this_start']))}."]
    return _cause(record, "started", "info", "the run goes on" if again else "the run has started", text)


def _finished(record: Mapping[str, Any], now: float) -> Cause:
    lines = []
    if summary := record["summary"]:
        clips, hours = summary["clips"], summary["hours"]
        lines.append(f"{clips['input']:,} clips, {hours['input']:.2f} h came in.")
        lines += [
            f"{state}: {clips[state]:,}" + (f", {hours['accepted']:.2f} h" if state == "accepted" else "")
            for state in ("accepted", "rejected", "errored", "duplicate")
        ]
        for title, counts in (("Rejected", summary["rejected_by"]), ("Errored", summary["errored_by"])):
            top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]
            lines += [f"{title} most by " + ", ".join(f"{name} ({count:,})" for name, count in top)] if top else []
    if published := record["published"]:
        tag = f", tag {published['tag']}" if published.get("tag") else ""
        lines.append(f"Published: {published['target']}{tag}")
    if record["report"]:
        lines.append(f"Report: {record['report']}")
    if record["started"]:
        lines.append(f"First started {clock(unix(record['started']))}, {span(now - unix(record['started']))} ago.")
    return _cause(record, "finished", "success", "the run has finished", lines)


def _failed(record: Mapping[str, Any], last_lines: Sequence[str]) -> Cause:
    if failures := _by_time(record["given_up"]):
        lines = [f"Failed for good: {_names([_work(failure) for failure in failures])}.", *_account(failures[-1])]
    elif last_lines:
        lines = ["No job failed for good. What was said last:", *_quoted(last_lines)]
    else:
        lines = ["No job failed for good: Snakemake's output says why."]
    lines.append(f"Mend the reason, then: speechmill resume {record['run']}")
    return _cause(record, "failed", "failure", "the run has failed", lines)


def _cause(
    record: Mapping[str, Any], cause: str, severity: str, what: str, lines: Sequence[str], measured: bool = False
) -> Cause:
    text = [line for line in lines if line] + [f"More: speechmill status {record['run']}"]
    return Cause(cause, severity, plain(f"{record['dataset']}: {what}", 150), "\n".join(text), measured)


def _by_time(failures: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(failures, key=lambda failure: failure["time"])


def _account(failure: Mapping[str, Any]) -> list[str]:
    """Reason, place, log and its last lines, as far as they are known."""
    job = f"Slurm job {failure['slurm_job']}" if failure.get("slurm_job") else ""
    time = failure["time"][:19].replace("T", " ") + " UTC"
    where = ", ".join(part for part in (failure.get("node"), job, time) if part)
    log = f"Log: {failure['log']}" if failure.get("log") else ""
    reason = plain(failure.get("reason") or "not known", 500)
    return [f"Reason: {reason}", f"Where: {plain(where)}", log, *_quoted(failure.get("lines") or [])]


def _quoted(lines: Sequence[str]) -> list[str]:
    return [f"  | {plain(line, 200)}" for line in lines[-LINES:]]


def _work(failure: Mapping[str, Any]) -> str:
    return plain(" ".join(part for part in (failure["stage"], failure["batch"] or failure.get("file")) if part), 80)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES]) + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")
