"""Runs that the clock begins, and where their schedules are kept."""

import dataclasses
import json

import pytest

from speechmill.api import schedules
from speechmill.api.models import ScheduleRequest
from speechmill.api.schedules import begin_due, next_due
from speechmill.api.service import Service
from speechmill.errors import ConfigError


def test_what_is_due_is_begun_once_and_what_was_missed_is_not_made_up_for(service):
    midnight = 1_767_225_600.0  # 2026-01-01 00:00 UTC
    service.store.add_schedule("demo", "@daily", "{}", "tester", next_due("@daily", midnight))
    begin_due(service, midnight + 3600)
    assert len(service.store.active("demo")) == 0
    begin_due(service, midnight + 4 * 86400 + 3600)  # nobody was there at midnight
    (schedule,) = service.store.schedules()
    assert (schedule["last_outcome"].split(":")[0], service.store.active("demo")) == ("missed", [])
    begin_due(service, midnight + 5 * 86400 + 60)
    (run,) = service.store.active("demo")
    begin_due(service, midnight + 5 * 86400 + 120)
    (schedule,) = service.store.schedules()
    assert schedule["last_outcome"] == f"began {run.id}"
    assert schedule["next_due"] == midnight + 6 * 86400
    begin_due(service, midnight + 6 * 86400 + 1)
    (schedule,) = service.store.schedules()
    assert schedule["last_outcome"].startswith("skipped: demo has an active run")
    assert service.store.active("demo") == [run]


def test_a_schedule_begins_nothing_once_its_token_is_gone_or_may_no_longer_trigger(service):
    midnight = 1_767_225_600.0
    service.store.add_schedule("demo", "@daily", "{}", "tester", midnight)
    tokens = service.settings.tokens
    for day, text in enumerate(["", tokens.read_text().replace("read,trigger", "read")]):
        tokens.write_text(text)
        begin_due(service, midnight + day * 86400 + 1)
        (schedule,) = service.store.schedules()
        assert schedule["last_outcome"] == "skipped: tester has no token any more that may trigger"
    assert service.store.active("demo") == []
    assert service.settings.audit.read_text() == ""


def test_what_a_schedule_begins_is_in_the_audit_log(service):
    number = service.store.add_schedule("demo", "@daily", "{}", "tester", 1_767_225_600.0)
    begin_due(service, 1_767_225_601.0)
    (run,) = service.store.active("demo")
    (line,) = map(json.loads, service.settings.audit.read_text().splitlines())
    assert (line["who"], line["what"], line["began"]) == ("tester", f"schedule {number}", run.id)


@pytest.mark.parametrize(
    "cron", ["", "@never", "* * *", "61 * * * *", "0 0 30 2 *", "* * * * * *", "a\nb", "@daily @daily"]
)
def test_what_is_no_time_is_refused(cron):
    with pytest.raises(ConfigError, match="@daily"):
        next_due(cron, 0.0)


def with_a_new_data_base(service):
    """A service on the same folders, whose data base was lost."""
    state_dir = service.settings.state_dir.with_name("new state")
    state_dir.mkdir(exist_ok=True)
    return Service(dataclasses.replace(service.settings, state_dir=state_dir))


def schedule(service, cron, **config):
    return schedules.add(service, ScheduleRequest(dataset_name="demo", cron=cron, config=config), "tester")


def test_schedules_survive_the_loss_of_the_data_base_but_not_their_deletion(service):
    kept = [schedule(service, "30 2 * * *", rank={"threshold": 0.25}), schedule(service, "@weekly")]
    assert schedules.delete(service, schedule(service, "@hourly")["id"])
    new = with_a_new_data_base(service)
    assert schedules.restore(new) == 2
    assert new.store.schedules() == sorted(kept, key=lambda each: each["id"])
    assert schedules.restore(new) == 0
    assert all(schedules.delete(new, each["id"]) for each in kept)
    assert schedules.restore(service) == schedules.restore(new) == 0


def test_schedules_are_in_their_folder_again_when_a_server_starts(service):
    made = schedule(service, "@daily")
    file = service.result_folder("demo") / schedules.FILE
    file.unlink()
    schedules.save_all(service)
    new = with_a_new_data_base(service)
    assert schedules.restore(new) == 1
    assert new.store.schedules() == [made]


def test_a_schedule_that_its_folder_cannot_keep_is_not_made(service):
    folder = service.result_folder("demo")
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("not a folder")
    with pytest.raises(OSError, match="demo"):
        schedule(service, "@daily")
    assert service.store.schedules() == []


DAMAGES = [
    ({"dataset_name": "../demo"}, "dataset_name"),
    ({"dataset_name": "demo2"}, "it is of demo2"),
    ({"id": "1; rm -rf"}, "id"),
    ({"cron": "* * *"}, "five fields"),
    ({"caller": "a\nb"}, "caller"),
    ({"created": "yesterday"}, "created"),
    ({"config": {"outdir": "/tmp"}}, "outdir"),
    ({"config": {"rank": {"threshold": 7}}}, "rank.threshold"),
    ({"config": [1]}, "config"),
    ({"shell": "true"}, "shell"),
]


def test_of_what_a_folder_tells_only_valid_schedules_are_taken(service, capsys):
    whole = schedule(service, "@daily")
    file = service.result_folder("demo") / schedules.FILE
    (told,) = json.loads(file.read_text())["schedules"]
    damaged = [told | {"id": f"20260101000000-{n:08x}"} | damage for n, (damage, _) in enumerate(DAMAGES)]
    file.write_text(json.dumps({"schedules": [*damaged, told, None]}))
    new = with_a_new_data_base(service)
    assert schedules.restore(new) == 1
    assert new.store.schedules() == [whole]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(DAMAGES) + 1
    assert all("left out" in line and said in line for line, (_, said) in zip(lines, DAMAGES, strict=False))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schedules": 5}', '{"schedules": [5]}', '{"schedules": [', "[" * 100_000, "\xff"]
)
def test_a_damaged_file_of_schedules_is_left_out(service, capsys, text):
    file = service.result_folder("demo") / schedules.FILE
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="latin-1")
    assert schedules.restore(service) == 0
    assert "left out" in capsys.readouterr().err


def test_a_schedule_is_in_utc():
    assert next_due("30 2 * * *", 1_767_225_600.0) == 1_767_225_600.0 + 2.5 * 3600
