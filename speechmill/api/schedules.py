"""Runs that the clock begins: cron expressions in UTC. What was missed is not made up for.

They are in the data base, and for its loss in a file of their corpus's folder, `{run}/schedules.json`. It never has one
that was deleted: it is written after what is added, and before what is deleted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from croniter import CroniterError, croniter
from pydantic import ValidationError

from speechmill.api import audit_log
from speechmill.api.guard import check_json
from speechmill.api.models import SavedSchedule, ScheduleRequest
from speechmill.api.problems import Problem
from speechmill.api.service import Service
from speechmill.api.store import Busy
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.files import write_json
from speechmill.text import plain

FILE = "schedules.json"
MISSED_SECONDS = 600.0  # after which what was due is left out: no server was there
LONGEST = 10_000_000  # bytes: 100 requests of the largest size


def next_due(cron: str, now: float) -> float:
    """When an expression is due next.

    Raises:
        ConfigError: it is none, or never due.
    """
    try:
        if len(cron.split()) not in (1, 5):
            raise ValueError("five fields")
        return float(croniter(cron, now).get_next(float))
    except (CroniterError, ValueError, KeyError, AttributeError, OverflowError, TypeError) as error:
        raise ConfigError(
            f"{plain(cron, 100)!r} is no time of a schedule ({plain(error, 200)}): five fields of cron in UTC such as "
            '"30 2 * * *", or @hourly, @daily, @weekly, @monthly'
        ) from error


def begin_due(service: Service, now: float | None = None) -> None:
    """Begin what is due. A corpus that is being worked on is left out this time."""
    now = time.time() if now is None else now
    for schedule in service.store.schedules(due_at=now):
        if not service.store.advance_schedule(schedule, next_due(schedule["cron"], now)):
            continue
        missed = now - schedule["next_due"] > MISSED_SECONDS
        service.store.note_schedule(schedule["id"], "missed: nobody was there" if missed else _begin(service, schedule))


def add(service: Service, request: ScheduleRequest, caller: str) -> Mapping[str, Any]:
    """The schedule that was made.

    Raises:
        ConfigError: no run could be begun like this, or never.
        Problem: there are too many.
    """
    dataset = request.dataset_name
    due = next_due(request.cron, time.time())
    service.check(dataset, request.config)
    with service.saving:
        try:
            name = service.store.add_schedule(dataset, request.cron, json.dumps(request.config), caller, due)
        except SpeechmillError as error:
            raise Problem(409, str(error)) from error
        found = {schedule["id"]: schedule for schedule in service.store.schedules()}
        try:
            _save(service, dataset, found.values())
        except OSError:
            service.store.delete_schedule(name)
            raise
        return found[name]


def delete(service: Service, name: str) -> bool:
    """Whether there was one."""
    with service.saving:
        found = {schedule["id"]: schedule for schedule in service.store.schedules()}
        if gone := found.pop(name, None):
            with suppress(ConfigError):  # its corpus is no longer there: neither is what is told of it
                _save(service, gone["dataset"], found.values())
        return service.store.delete_schedule(name)


def save_all(service: Service) -> None:
    """What folders tell is what the data base has: some may have been deleted, or are older than these files."""
    found = service.store.schedules()
    for dataset in dict.fromkeys(schedule["dataset"] for schedule in found):
        try:
            _save(service, dataset, found)
        except (SpeechmillError, OSError) as error:
            _warn(f"the schedules of {dataset} cannot be kept in its folder: {plain(error)}")


def restore(service: Service) -> int:
    """Take the schedules that the corpora's folders tell of into the data base; how many were not there."""
    count = 0
    for dataset, folder in service.result_folders().items():
        for schedule in _saved(folder / FILE):
            try:
                if schedule.dataset_name != dataset:
                    raise ConfigError(f"it is of {schedule.dataset_name}")
                due = next_due(schedule.cron, time.time())
                service.check(dataset, schedule.config)
                about = (json.dumps(schedule.config), schedule.caller, schedule.created)
                count += service.store.restore_schedule(schedule.id, dataset, schedule.cron, *about, due)
            except SpeechmillError as error:
                _warn(f"{folder / FILE}: {schedule.id} is left out: {plain(error)}")
    return count


def shown(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule as it is told."""
    due = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(schedule["next_due"]))
    about = {"id": schedule["id"], "dataset_name": schedule["dataset"], "cron": schedule["cron"], "next_due": due}
    names = ("created", "caller", "last_due", "last_outcome")
    return about | {"config": json.loads(schedule["config"])} | {name: schedule[name] for name in names}


def _begin(service: Service, schedule: Mapping[str, Any]) -> str:
    key, who = f"schedule {schedule['id']} {schedule['next_due']:.0f}", schedule["caller"]
    if not any(caller.name == who and "trigger" in caller.scopes for _, caller in service.tokens.known()):
        return f"skipped: {who} has no token any more that may trigger"
    try:
        run = service.trigger(who, schedule["dataset"], json.loads(schedule["config"]), key)
        audit_log.note(service.audit, who, None, f"schedule {schedule['id']}", began=run.id)
        return f"began {run.id}"
    except Busy as error:
        return f"skipped: {error}"
    except (SpeechmillError, OSError) as error:
        return f"failed: {plain(error)}"


def _save(service: Service, dataset: str, schedules: Iterable[Mapping[str, Any]]) -> None:
    """Write those of a corpus into its folder."""
    told = [
        {"id": each["id"], "dataset_name": dataset, "cron": each["cron"], "config": json.loads(each["config"])}
        | {"caller": each["caller"], "created": each["created"]}
        for each in schedules
        if each["dataset"] == dataset
    ]
    write_json(service.result_folder(dataset) / FILE, {"schedules": told})


def _saved(path: Path) -> Iterator[SavedSchedule]:
    """What a file tells; what is none of ours is left out."""
    try:
        with open(path, "rb") as file:
            told = check_json(file.read(LONGEST))
        listed = told["schedules"] if isinstance(told, dict) else None
        if not isinstance(listed, list):
            raise ValueError("it has no list of schedules")
    except FileNotFoundError:
        return
    except (OSError, Problem, KeyError, ValueError) as error:
        _warn(f"{path} is left out: {plain(error)}")
        return
    for each in listed:
        try:
            yield SavedSchedule.model_validate(each)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            _warn(f"{path}: a schedule is left out: {plain(problems)}")


def _warn(text: str) -> None:
    print(f"speechmill: {text}", file=sys.stderr, flush=True)
