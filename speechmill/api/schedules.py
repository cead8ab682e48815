"""Runs that the clock begins: cron expressions in UTC. What was missed is not made up for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from croniter import CroniterError, croniter

from speechmill.api.guard import note_change
from speechmill.api.models import ScheduleRequest
from speechmill.api.problems import Problem
from speechmill.api.service import Service
from speechmill.api.store import Busy
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.utils.text import plain

MISSED_SECONDS = 600.0  # after which what was due is left out: no server was there


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
    try:
        return service.store.add_schedule(dataset, request.cron, json.dumps(request.config), caller, due)
    except SpeechmillError as error:
        raise Problem(409, str(error)) from error


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
        note_change(service.audit, who, None, f"schedule {schedule['id']}", began=run.id)
        return f"began {run.id}"
    except Busy as error:
        return f"skipped: {error}"
    except (SpeechmillError, OSError) as error:
        return f"failed: {plain(error)}"
