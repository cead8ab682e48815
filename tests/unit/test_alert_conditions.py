"""Which causes hold: each with an account of a run that just makes it hold, and one that just does not."""

from datetime import UTC, datetime
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.config import validate_config
from speechmill.errors import ConfigError
from speechmill.monitor.conditions import Disk, causes, last_move

CONFIG = Path(__file__).parents[2] / "config"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


def iso(seconds_ago=0.0):
    return datetime.fromtimestamp(NOW - seconds_ago, UTC).isoformat(timespec="milliseconds")


def account(**changes):
    """The account of a run that goes well."""
    return {
        "run": "/data/results/demo",
        "dataset": "demo",
        "state": "running",
        "started": iso(7200),
        "this_start": iso(7200),
        "starts": 1,
        "clips": 50_000,
        "stages": [],
        "rates": [],
        "seconds_left": 3600.0,
        "last_finished": iso(60),
        "at_work": [],
        "given_up": [],
        "summary": None,
        "published": None,
        "report": None,
    } | changes


def failure(**changes):
    """A line of the account of attempts, as it is written for the last failure of a job."""
    return {
        "time": iso(300),
        "start": iso(7200),
        "event": "failed",
        "stage": "enhance",
        "batch": "b0",
        "attempt": 4,
        "slurm_job": "4711",
        "node": "gpu-17",
        "error_class": "DeviceError",
        "reason": "the GPU is gone",
        "failure": "device_lost",
        "log": "/data/results/demo/logs/batches/b0.log",
        "lines": ["Xid 79", "the GPU is gone"],
        "given_up": True,
    } | changes


def stage(name, **clips):
    return {"stage": name, "done": 1, "total": 5, "running": 2, "waiting": 3, "failed_attempts": 0, "clips": clips}


def settings(**changes):
    config = {"dataset": "demo", "source": {"kind": "folder", "path": "x"}, "alerts": changes}
    return validate_config(config, CONFIG)["alerts"]


def found(record, disk=None, moved=None, lines=(), **changes):
    return {cause.cause: cause for cause in causes(record, settings(**changes), NOW, disk, moved, lines)}


def test_a_run_that_goes_well_has_only_started():
    assert found(account()).keys() == {"started"}
    assert found(account(), started=False) == {}
    assert "goes on" in found(account(starts=2))["started"].title


def test_a_failed_job_is_told_per_stage_with_its_reason_and_log():
    failures = [failure(batch="b1", time=iso(100)), failure(), failure(stage="score", lines=[], node=None)]
    told = found(account(given_up=failures))
    assert told.keys() == {"started", "failed:enhance", "failed:score"}
    text = told["failed:enhance"].body
    assert "enhance b0 failed in attempt 4" in text  # the first of them
    for part in ("the GPU is gone", "  | Xid 79", "gpu-17, Slurm job 4711", "/demo/logs/batches/b0.log", "enhance b1"):
        assert part in text
    assert text.endswith("speechmill status /data/results/demo")


def test_an_account_of_an_older_version_knows_less_of_a_failure():
    bare = {key: failure()[key] for key in ("time", "stage", "batch", "attempt")}
    assert "not known" in found(account(given_up=[bare]))["failed:enhance"].body


@pytest.mark.parametrize(("code", "cause"), [("no_space", "disk"), ("hub_refused", "hub")])
def test_the_recorded_code_tells_the_causes_apart(code, cause):
    assert found(account(given_up=[failure(stage="send", failure=code)])).keys() == {"started", cause}


def test_words_of_a_message_make_no_cause():
    words = "the Hub refuses: No space left on device, HubRefusedError"
    failed = failure(stage="send", failure="program", reason=words, lines=[words])
    assert found(account(given_up=[failed])).keys() == {"started", "failed:send"}


@pytest.mark.parametrize(
    ("name", "state", "share", "name_of_stage"),
    [("errored_share", "errored", 0.05, "enhance"), ("rejected_share", "rejected", 0.7, "rank")],
)
def test_too_many_clips_of_one_state(name, state, share, name_of_stage):
    limit = round(1000 * share)
    rest = "accepted" if name_of_stage == "rank" else "passed"
    just = account(stages=[stage(name_of_stage, **{state: limit + 1, rest: 1000 - limit - 1})])
    not_quite = account(stages=[stage(name_of_stage, **{state: limit, rest: 1000 - limit})])
    few = account(stages=[stage(name_of_stage, **{state: 999})])
    assert found(just).keys() == {"started", state}
    assert found(not_quite).keys() == found(few).keys() == found(just, **{name: None}).keys() == {"started"}
    assert f"of 1,000 clips {state}" in found(just)[state].body


def test_nothing_moves():
    limit = 120 * 60
    stuck = account(last_finished=iso(limit), this_start=iso(9e4), stages=[stage("enhance")])
    assert found(stuck).keys() == {"started", "stalled"}
    assert "enhance: 2 running, 3 waiting" in found(stuck)["stalled"].body
    assert "stalled" not in found(stuck | {"last_finished": iso(limit - 1)})
    assert "stalled" not in found(stuck | {"this_start": iso(limit - 1)})
    assert "stalled" not in found(stuck | {"at_work": [{"time": NOW - limit + 1}]})
    assert "stalled" not in found(stuck, moved=NOW - limit + 1)  # seen earlier, by a job that hangs since then
    assert "stalled" not in found(stuck, stalled_minutes=None)
    assert "stalled" not in found(stuck | {"state": "stopped"})
    assert last_move(account(last_finished=None, this_start=None)) is None


def jobs(*rates, audio=3600.0):
    return [{"stage": "enhance", "seconds": audio / rate, "clips": 500, "audio_seconds": audio} for rate in rates]


def test_the_last_jobs_are_slow():
    usual = [100.0] * 10
    assert "slow:enhance" in found(account(rates=jobs(*usual, *[49.0] * 5)))
    assert "slow:enhance" not in found(account(rates=jobs(*usual, *[51.0] * 5)))
    assert "slow:enhance" not in found(account(rates=jobs(*usual[1:], *[49.0] * 5)))  # too few to compare with
    assert "slow:enhance" not in found(account(rates=jobs(*usual, *[49.0] * 5)), throughput_drop=None)
    small = jobs(*[1.0] * 5, audio=100.0)  # what remains of each source file: it tells nothing
    assert "slow:enhance" not in found(account(rates=jobs(*usual, *[100.0] * 5) + small))


def test_the_file_system_fills():
    enough, little = Disk(20 * 10**9, 20_000), Disk(20 * 10**9 - 1, 20_000)
    assert "disk" not in found(account(), enough)
    assert "GB are free" in found(account(), little)["disk"].body
    assert "19,999 inodes are free" in found(account(), Disk(10**12, 19_999))["disk"].body
    assert "disk" not in found(account(), Disk(10**12, None))
    assert "disk" not in found(account(), little, disk_free_gb=None)


def test_the_deadline_passes():
    assert "deadline" in found(account(), deadline="2026-03-01T19:00+07:00")
    assert "deadline" not in found(account(), deadline="2026-03-01T19:01+07:00")
    assert "deadline" not in found(account(state="finished"), deadline="2026-03-01T19:00+07:00")


def test_a_deadline_without_quotes_is_the_same_and_one_without_a_zone_is_refused():
    aware = datetime.fromisoformat("2026-03-01T19:00:00+07:00")
    assert settings(deadline=aware)["deadline"] == "2026-03-01T19:00:00+07:00"
    for wrong in ("2026-03-01T19:00", "soon", datetime(2026, 3, 1, 19), aware.date()):
        with pytest.raises(ConfigError, match=r"alerts\.deadline is .*expected date, time and zone"):
            settings(deadline=wrong)


def test_the_end_says_what_came_of_it_and_where_it_is():
    summary = {
        "clips": {"input": 100, "accepted": 60, "rejected": 30, "errored": 8, "duplicate": 2},
        "hours": {"input": 1.5, "accepted": 0.9},
        "rejected_by": {"speech_s": 20, "closeness": 10},
        "errored_by": {"unreadable": 8},
    }
    published = {"kind": "hub", "target": "me/corpus", "tag": "v3"}
    done = found(account(state="finished", summary=summary, published=published, report="/data/r.html"))
    assert done.keys() == {"finished"}
    for part in ("accepted: 60, 0.90 h", "speech_s (20)", "unreadable (8)", "me/corpus, tag v3", "/data/r.html"):
        assert part in done["finished"].body
    assert found(account(state="finished"), finished=False) == {}


def test_a_failed_run_says_why():
    of_a_job = found(account(state="failed", given_up=[failure()]))
    assert of_a_job.keys() == {"failed:enhance", "failed"}
    assert "the GPU is gone" in of_a_job["failed"].body
    of_none = found(account(state="failed"), lines=["ConfigError: no such profile"])["failed"].body
    assert "  | ConfigError: no such profile" in of_none


@hypothesis.settings(max_examples=50)
@given(text=st.text(max_size=600))
def test_whatever_a_log_holds_comes_as_short_plain_lines(text):
    bad = failure(reason=text, lines=[text] * 30, batch=text, node=text)
    for cause in causes(account(given_up=[bad], state="failed"), settings(), NOW):
        assert cause.title.isprintable()
        assert len(cause.title) <= 150
        assert len(cause.body) < 4000
        assert all(line.isprintable() for line in cause.body.split("\n"))
