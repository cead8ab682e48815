"""Runs that the clock begins."""

import json

import pytest

from speechmill.api.schedules import begin_due, next_due
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
    number = service.store.add_schedule("demo", "@daily", "{}", "tester", 1_767_225_600.0)["id"]
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


def test_a_schedule_is_in_utc():
    assert next_due("30 2 * * *", 1_767_225_600.0) == 1_767_225_600.0 + 2.5 * 3600
