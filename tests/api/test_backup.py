"""The backup of the API's data base."""

import sqlite3
import threading
from contextlib import closing

import pytest

from speechmill.api.backup import back_up, backup_of, damage, recover
from speechmill.api.store import Busy, Run, Store, new_id
from speechmill.errors import SpeechmillError
from speechmill.runlog import run_lock
from speechmill.storage.files import write_json


def make(store, dataset):
    return store.create(Run(new_id(), dataset, "/x", "{}", "{}", "me", "2026-01-01T00:00:00+00:00"))


@pytest.mark.parametrize("how", ["overwritten", "truncated", "empty", "missing"])
def test_a_damaged_data_base_is_restored(tmp_path, how):
    store = Store(tmp_path)
    for number in range(50):
        make(store, f"corpus{number}")
    assert recover(store.path) is None
    back_up(store.path)
    assert [path.name for path in tmp_path.glob("*.backup*")] == ["runs.db.backup"]
    content = store.path.read_bytes()
    if how == "missing":
        store.path.unlink()
    else:
        bad = {"overwritten": b"x" * len(content), "truncated": content[: len(content) // 2], "empty": b""}[how]
        store.path.write_bytes(bad)
    line = recover(store.path)
    assert str(store.path) in line
    assert "restored the backup of 20" in line
    assert "\n" not in line
    assert len(list(tmp_path.glob("runs.db.damaged-*"))) == (how != "missing")
    assert len(Store(tmp_path).active()) == 50
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert recover(store.path) is None


@pytest.mark.parametrize("has_bad_backup", [False, True])
def test_without_a_good_backup_one_sentence_says_what_to_do(tmp_path, has_bad_backup):
    path = tmp_path / "runs.db"
    path.write_bytes(b"x" * 10_000)
    if has_bad_backup:
        backup_of(path).write_bytes(b"y" * 10_000)
    with pytest.raises(SpeechmillError, match=r"no good backup .* move it away"):
        recover(path)
    assert path.read_bytes() == b"x" * 10_000


def test_a_damaged_data_base_does_not_replace_its_backup(tmp_path):
    store = Store(tmp_path)
    back_up(store.path)
    good = backup_of(store.path).read_bytes()
    store.path.write_bytes(b"x" * 10_000)
    with pytest.raises(sqlite3.DatabaseError):
        back_up(store.path)
    assert backup_of(store.path).read_bytes() == good


def test_a_backup_is_consistent_while_runs_are_written(tmp_path):
    store, over = Store(tmp_path), threading.Event()

    def write():
        number = 0
        while not over.is_set():
            make(store, f"corpus{(number := number + 1)}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            back_up(store.path)
            assert damage(backup_of(store.path)) is None
            with closing(sqlite3.connect(backup_of(store.path))) as db:
                runs, changes = (
                    db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("runs", "transitions")
                )
            assert runs == changes  # one transaction writes both
    finally:
        over.set()
        writer.join()


@pytest.mark.parametrize("name", [run_lock.FILE, run_lock.SUPERVISED])
def test_a_run_that_is_later_than_the_restored_backup_but_at_work_is_not_started_twice(service, name):
    store = service.store
    back_up(store.path)
    run = service.trigger("tester", "demo", {})
    write_json(service.result_folder("demo") / name, vars(run_lock.this_process()))  # this process is alive
    for suffix in ("-wal", "-shm"):
        store.path.with_name(store.path.name + suffix).unlink(missing_ok=True)
    store.path.write_bytes(b"x" * 10_000)
    assert recover(store.path)
    assert store.get(run.id) is None
    with pytest.raises(Busy, match="is being worked on by"):
        service.trigger("tester", "demo", {})
    assert store.active("demo") == []
    (service.result_folder("demo") / name).unlink()
    assert service.trigger("tester", "demo", {}).id != run.id
