"""The record of a run: what its account and its files say, over crashes, repetitions and resumes."""

import json
import os
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from speechmill.errors import SpeechmillError
from speechmill.monitor import record as module
from speechmill.monitor.record import RunReader, record, record_and_jobs
from speechmill.runlog import run_lock
from speechmill.runlog.attempts import FILE, jobs, read_attempts
from speechmill.storage.files import write_json

from .runs_account import Account

WORK = {"seconds": 600.0, "clips": {"passed": 90, "errored": 10}, "audio_seconds": {"passed": 3600.0, "errored": 0.0}}


@pytest.fixture
def account(tmp_path):
    return Account(tmp_path / "demo", batches=4)


def stage(found, name):
    return next(row for row in found["stages"] if row["stage"] == name)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(SpeechmillError, match="there is no run here"):
        record(tmp_path)


def test_a_run_over_a_crash_is_one_run_and_counts_every_batch_once(account):
    account.begin(0)
    account.submit(1, "enhance", "b0")
    account.finish(700, "enhance", "b0", **WORK)
    account.submit(701, "enhance", "b1")  # Snakemake is killed
    account.begin(2000)
    account.submit(2001, "enhance", "b1")
    account.fail(2100, "enhance", "b1")
    account.submit(2101, "enhance", "b1", attempt=2)
    account.finish(2800, "enhance", "b1", attempt=2, **WORK)
    account.submit(3000, "enhance", "b0")  # repeated, because it was deleted
    account.finish(3600, "enhance", "b0", **WORK | {"clips": {"passed": 100}, "audio_seconds": {"passed": 4000.0}})
    found = record(account.run_dir)
    assert (found["starts"], found["started"], found["this_start"]) == (2, account.time(0), account.time(2000))
    row = stage(found, "enhance")
    assert (row["done"], row["total"], row["failed_attempts"], row["given_up"]) == (2, 4, 1, 0)
    assert row["clips"] == {"passed": 190, "errored": 10}
    assert row["hours"] == {"passed": round(7600 / 3600, 6), "errored": 0.0}
    assert found["rules"] == {"enhance": {"finished": 3, "lost": 1, "failed": 1}}
    statuses = [job["status"] for job in jobs(read_attempts(account.run_dir))]
    assert statuses == ["finished", "lost", "failed", "finished", "finished"]


def test_a_piece_of_work_that_is_done_twice_in_one_start_is_two_jobs(account):
    account.begin(0)
    account.submit(1, "enhance", "b0")
    account.finish(2, "enhance", "b0", **WORK)
    account.submit(3, "enhance", "b0")
    account.finish(5, "enhance", "b0", seconds=2.0, clips={"passed": 7}, audio_seconds={"passed": 1.0})
    found = jobs(read_attempts(account.run_dir))
    assert [(job["submitted"], job["ended"]) for job in found] == [
        (account.time(1), account.time(2)),
        (account.time(3), account.time(5)),
    ]
    assert stage(record(account.run_dir), "enhance")["clips"] == {"passed": 7}


def test_each_job_is_told_with_what_it_asked_for_and_used(account):
    account.begin(0)
    account.submit(10, "score", "b0", slurm_job="42")
    account.finish(
        95, "score", "b0", seconds=80.0, peak_mb=900.0, cpu_seconds=150.0, began=account.time(15), device="CPU"
    )
    (job,) = jobs(read_attempts(account.run_dir))
    assert job["asked"] == {"threads": 2, "mem_mb": 4000}
    expected = {
        "status": "finished",
        "submitted": account.time(10),
        "began": account.time(15),
        "ended": account.time(95),
    }
    expected |= {"node": "n1", "seconds": 80.0, "peak_mb": 900.0, "slurm_job": "42", "attempt": 1, "device": "CPU"}
    assert {name: job[name] for name in expected} == expected


def test_rates_and_time_left_are_of_the_clock_and_of_this_start(account):
    account.own()
    account.begin(-100000)
    account.submit(-99999, "enhance", "b0")
    account.finish(-99000, "enhance", "b0", **WORK)  # of another day: no part of the rate
    account.begin(0)
    for batch in ("b1", "b2"):
        account.submit(0, "enhance", batch)
        account.finish(1800, "enhance", batch, **WORK)
    row = stage(record(account.run_dir, now=account.zero + 3600), "enhance")
    assert row["clips_per_hour"] == 200
    assert row["audio_hours_per_hour"] == 2
    assert row["seconds_left"] == 1800  # one batch of 100 clips is left
    told = {"rows": 50, "total": 100, "rows_per_second": 1.0, "seconds_left": 50, "time": account.zero + 3590}
    write_json(account.run_dir / "enhanced" / ".b3.parts" / "progress.json", told)
    found = record(account.run_dir, now=account.zero + 3600)
    assert stage(found, "enhance")["clips_per_hour"] == 250
    assert found["seconds_left"] == 720  # 50 clips at 250 an hour


def test_neither_what_was_resumed_nor_what_waited_counts_for_the_rate(account):
    account.own()
    account.begin(0)
    account.submit(0, "enhance", "b0", slurm_job="1")
    about = {"clips": {"passed": 100}, "audio_seconds": {"passed": 3600.0}, "resumed": 75, "began": account.time(34200)}
    account.finish(36000, "enhance", "b0", seconds=1800.0, slurm_job="1", **about)
    row = stage(record(account.run_dir, now=account.zero + 36000), "enhance")
    assert (row["clips_per_hour"], row["audio_hours_per_hour"]) == (50, 0.5)
    told = {
        "rows": 80,
        "total": 100,
        "resumed": 55,
        "rows_per_second": 1.0,
        "seconds_left": 9,
        "time": account.zero + 35999,
    }
    write_json(account.run_dir / "enhanced" / ".b1.parts" / "progress.json", told)
    found = record(account.run_dir, now=account.zero + 36000)
    row = stage(found, "enhance")
    assert (row["clips_per_hour"], row["audio_hours_per_hour"]) == (100, 1)
    assert row["seconds_left"] == 7920  # 220 of 400 clips at 100 an hour
    assert [(rate["clips"], rate["audio_seconds"]) for rate in found["rates"]] == [(25, 900)]


@pytest.mark.parametrize(
    "damage", ["5", "null", "[]", '"x"', '{"event": "failed"}', '{"time": 1, "stage": [], "event": {}}']
)
def test_damaged_lines_and_files_do_not_hide_the_rest(account, damage):
    account.begin(0)
    account.submit(1, "enhance", "b0")
    with open(account.run_dir / FILE, "a") as file:
        file.write(damage + "\n")
    account.finish(2, "enhance", "b0", **WORK)
    for name in ("alerts.json", "panoptes.json"):
        (account.run_dir / "logs" / name).write_text('{"causes": {"x": {}}, "messages": [], "channels": {}, "last": 0}')
    found = record(account.run_dir)
    assert stage(found, "enhance")["clips"] == WORK["clips"]
    assert "damaged" in found["alerts"]["trouble"][0]["error"]


def test_failures_for_good_go_when_a_later_start_mends_them(account):
    account.begin(0)
    account.submit(1, "enhance", "b0")
    account.fail(2, "enhance", "b0", given_up=True, error_class="SpeechmillError")
    account.end(3, "failed")
    found = record(account.run_dir)
    assert found["state"] == "failed"
    assert [(line["batch"], line["reason"]) for line in found["given_up"]] == [("b0", "no memory")]
    assert stage(found, "enhance")["given_up"] == 1
    account.begin(10)
    account.submit(11, "enhance", "b0")
    account.finish(12, "enhance", "b0", **WORK)
    assert record(account.run_dir)["given_up"] == []


def test_states(account):
    account.own()
    account.begin(0)
    assert record(account.run_dir)["state"] == "running"
    account.own(alive=False)
    assert record(account.run_dir)["state"] == "interrupted"
    (account.run_dir / "owner.json").unlink()
    account.end(1, "stopped")
    assert record(account.run_dir)["state"] == "stopped"
    account.begin(1.5, goal="report/summary.json", withholds=True)
    account.finish(1.7, "report")
    account.end(1.8, "succeeded")  # a report of the other batches
    assert record(account.run_dir)["state"] == "failed"
    account.begin(2)
    account.finish(3, "publish")
    account.end(4, "succeeded")
    assert record(account.run_dir)["state"] == "finished"
    account.begin(5)
    account.end(6, "failed")
    assert record(account.run_dir)["state"] == "failed"
    account.begin(7)
    account.end(8, "stopped")  # what is published is of before
    assert record(account.run_dir)["state"] == "stopped"
    lock = run_lock.RunLock(account.run_dir)
    lock.take()  # between two starts of Snakemake
    assert record(account.run_dir)["state"] == "running"
    lock.file.write_text(lock.file.read_text().replace(f'"pid": {os.getpid()}', '"pid": 1'))
    assert record(account.run_dir)["state"] == "interrupted"


def test_files_of_a_run_from_before_its_account_are_counted(account):
    (account.run_dir / "scores").mkdir()
    for name in ("b0", "b3", "not-in-the-manifest"):
        (account.run_dir / "scores" / f"{name}.parquet").touch()
    row = stage(record(account.run_dir), "score")
    assert (row["done"], row["total"], row["clips"]) == (2, 4, {})


EVENTS = st.lists(st.tuples(st.sampled_from(["begin", "submit", "finish", "fail"]), st.integers(0, 3)), max_size=40)


@given(EVENTS, st.data())
@example([("finish", 0), ("fail", 0)], None)  # the line of a submission is lost
def test_any_account_adds_up_however_it_is_cut(tmp_path_factory, events, data):
    account = Account(tmp_path_factory.mktemp("run") / "demo", batches=4)
    account.begin(0)
    for at, (event, batch) in enumerate(events, 1):
        if event == "begin":
            account.begin(at)
        else:
            about = WORK if event == "finish" else {}
            getattr(account, event)(at, "enhance", f"b{batch}", **about)
    path = account.run_dir / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole))) if data else None])
    found = record(account.run_dir, now=account.zero + 100)
    row = stage(found, "enhance")
    known = {line["batch"] for line in read_attempts(account.run_dir) if line["event"] == "finished"}
    assert sum(row["clips"].values()) == 100 * len(known)
    assert len(jobs(read_attempts(account.run_dir))) == sum(sum(counts.values()) for counts in found["rules"].values())
    json.dumps(found)


CHANGES = st.sampled_from(["begin", "submit", "finish", "fail", "tear", "mend", "cut", "rewrite", "replace", "remove"])


@given(st.lists(st.tuples(CHANGES, st.integers(0, 3), st.booleans()), max_size=40))
@example([("submit", 0, False), ("finish", 0, True), ("rewrite", 0, True), ("submit", 1, True), ("finish", 1, True)])
def test_whoever_reads_again_and_again_knows_what_a_first_look_shows(tmp_path_factory, changes):
    account = Account(tmp_path_factory.mktemp("run") / "demo", batches=4)
    path = account.run_dir / FILE
    reader, now = RunReader(account.run_dir), account.zero + 100
    kept = []
    for at, (change, number, is_read) in enumerate(changes, 1):
        whole = path.read_bytes() if path.exists() else b""
        if change == "tear":  # a line of which only the beginning is there yet
            path.write_bytes(whole + b'{"time": "')
        elif change == "mend":
            path.write_bytes(whole + b"\n")
        elif change == "cut":
            path.write_bytes(whole[: len(whole) // (number + 1)])
        elif change == "rewrite":  # the same file, no shorter
            path.write_bytes(whole[len(whole) // (number + 2) :] * 2)
        elif change == "replace":
            (path.with_name("new")).write_bytes(whole[len(whole) // 2 :])
            path.with_name("new").rename(path)
        elif change == "remove":
            path.unlink(missing_ok=True)
        elif change == "begin":
            account.begin(at)
        else:
            getattr(account, change)(at, "enhance", f"b{number}", **(WORK if change == "finish" else {}))
        if is_read:
            found, done = reader.read(now)
            fresh, expected = record_and_jobs(account.run_dir, now)
            assert done == expected
            assert found | {"disk_free_bytes": 0} == fresh | {"disk_free_bytes": 0}
            kept.append((done, json.dumps(done)))
    assert all(json.dumps(done) == text for done, text in kept)  # what was told does not change


def test_folders_are_listed_again_when_they_have_changed_and_only_then(account, monkeypatch):
    clock, listed, list_names = [100.0], [], os.listdir
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module.os, "listdir", lambda path: listed.append(path.name) or list_names(path))
    scores = account.run_dir / "scores"
    scores.mkdir()
    reader = RunReader(account.run_dir)

    def done(seconds):
        clock[0] += seconds
        del listed[:]
        return stage(reader.read()[0], "score")["done"]

    assert done(0) == 0
    (scores / "b0.parquet").touch()
    os.utime(scores, ns=(0, 0))
    assert done(10) == 1
    (scores / "b1.parquet").touch()
    os.utime(scores, ns=(0, 0))  # as where times of changes are coarse
    assert done(1) == 2
    assert done(10) == 2
    assert done(10) == 2
    assert "scores" not in listed
    (scores / "b1.parquet").unlink()
    assert done(0) == 1
    scores.rename(account.run_dir / "elsewhere")
    assert done(0) == 0


def test_ten_thousand_jobs_are_read_in_seconds(tmp_path):
    account = Account(tmp_path / "demo", batches=2500)
    account.begin(0)
    lines = []
    for number in range(2500):
        for name in ("enhance", "score"):
            values = {"time": account.time(number), "start": account.start, "stage": name, "batch": f"b{number}"}
            values |= {"attempt": 1, "slurm_job": None}
            lines += [json.dumps(values | {"event": "submitted"}), json.dumps(values | {"event": "finished"} | WORK)]
    with open(account.run_dir / FILE, "a") as file:
        file.write("\n".join(lines) + "\n")
    begin = time.process_time()
    found = record(account.run_dir)
    assert found["rules"]["score"] == {"finished": 2500}
    assert time.process_time() - begin < 60  # of a processor: two or three
