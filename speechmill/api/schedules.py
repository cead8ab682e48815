"""Runs that the clock begins: cron expressions in UTC. What was missed is not made up for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from croniter import CroniterError, croniter

from speechmill.api.service import Service
from speechmill.api.store import Busy
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.text import plain


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
        service.store.note_schedule(schedule["id"], _begin(service, schedule))


def shown(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule as it is told."""
    due = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(schedule["next_due"]))
    about = {"id": schedule["id"], "dataset_name": schedule["dataset"], "cron": schedule["cron"], "next_due": due}
    names = ("created", "caller", "last_due", "last_outcome")
    return about | {"config": json.loads(schedule["config"])} | {name: schedule[name] for name in names}


def _begin(service: Service, schedule: Mapping[str, Any]) -> str:
    key = f"schedule {schedule['id']} {schedule['next_due']:.0f}"
    try:
        run = service.trigger(schedule["caller"], schedule["dataset"], json.loads(schedule["config"]), key)
        return f"began {run.id}"
    except Busy as error:
        return f"skipped: {error}"
    except (SpeechmillError, OSError) as error:
        return f"failed: {plain(error)}"
