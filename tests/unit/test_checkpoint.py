"""Parts of a batch: kept in order, checked when they are read, gone when the job is done."""

import os
import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.engine import checkpoint
from speechmill.engine.checkpoint import Checkpoints, read_progress

SCHEMA = pa.schema([("n", pa.int64()), ("audio", pa.struct([("bytes", pa.binary())]))])


class Killed(BaseException):
    pass


def row(number):
    return {"n": number, "audio": {"bytes": bytes([number % 256]) * 500}}


def work(final, windows, key="k", stop_after=None, total=None):
    """The rows that an attempt has in the end; killed after so many windows of its own."""
    done = []
    with Checkpoints(final, SCHEMA, key, total) as kept:
        for rows in kept.finished():
            done += rows
        everything = [number for window in windows for number in window]
        assert [r["n"] for r in done] == everything[: len(done)]
        rest = everything[len(done) :]
        for count, start in enumerate(range(0, len(rest), 3)):
            if count == stop_after:
                raise Killed
            rows = [row(number) for number in rest[start : start + 3]]
            kept.add(rows)
            done += rows
    return done


@pytest.fixture(autouse=True)
def every_window_is_a_part(monkeypatch):
    monkeypatch.setattr(checkpoint, "PART_SECONDS", 0)


@pytest.fixture
def final(tmp_path):
    return tmp_path / "enhanced" / "b0.parquet"


def killed(final, stop_after, **options):
    with pytest.raises(Killed):
        work(final, [range(12)], stop_after=stop_after, **options)
    return sorted(path.name for path in final.parent.glob(".b0.parts/*"))


def finished(final, key="k"):
    kept = Checkpoints(final, SCHEMA, key)
    return [r["n"] for rows in kept.finished() for r in rows]


def test_a_killed_job_goes_on_after_its_finished_parts(final):
    assert killed(final, 2) == ["000000000.parquet", "000000003.parquet"]
    assert finished(final) == [0, 1, 2, 3, 4, 5]
    assert killed(final, 1) == ["000000000.parquet", "000000003.parquet", "000000006.parquet"]
    assert work(final, [range(12)]) == [row(n) for n in range(12)]
    assert list(final.parent.iterdir()) == []  # with the job, its parts


@given(st.lists(st.integers(0, 3), max_size=6))
def test_however_often_it_is_killed_the_rows_are_the_same(tmp_path_factory, kills):
    final = tmp_path_factory.mktemp("parts") / "b0.parquet"
    parts_seconds, checkpoint.PART_SECONDS = checkpoint.PART_SECONDS, 0
    try:
        for stop_after in kills:
            try:
                assert work(final, [range(20)], stop_after=stop_after) == [row(n) for n in range(20)]
            except Killed:
                continue
        assert work(final, [range(20)]) == [row(n) for n in range(20)]
    finally:
        checkpoint.PART_SECONDS = parts_seconds


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone", "text"])
def test_a_damaged_part_is_dropped_with_all_that_follow(final, damage):
    killed(final, 3)
    path = final.parent / ".b0.parts" / "000000003.parquet"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 3] ^= 1  # of the audio: only a checksum can tell
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-20], "flipped": data, "empty": b"", "text": b"no"}[damage])
    assert finished(final) == [0, 1, 2]
    assert [p.name for p in path.parent.iterdir()] == ["000000000.parquet"]


def test_parts_of_another_key_are_of_no_use(final):
    killed(final, 2)
    assert finished(final, key="another") == []
    assert finished(final) == []  # removed


def test_work_of_less_than_a_part_is_kept_with_the_next(final, monkeypatch):
    clock = 100.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock)
    monkeypatch.setattr(checkpoint, "PART_SECONDS", 20)
    with pytest.raises(Killed), Checkpoints(final, SCHEMA, "k") as kept:
        assert list(kept.finished()) == []
        for number in range(5):
            clock += 8
            kept.add([row(number)])
        raise Killed
    assert finished(final) == [0, 1, 2]


def test_much_audio_is_kept_at_once(final, monkeypatch):
    monkeypatch.setattr(checkpoint, "PART_SECONDS", 1000)
    monkeypatch.setattr(checkpoint, "PART_BYTES", 1200)
    assert killed(final, 2) == ["000000000.parquet", "000000003.parquet"]  # three rows of 500 bytes each
    monkeypatch.setattr(checkpoint, "PART_BYTES", 900)
    assert killed(final, 1)[2:] == ["000000006.parquet"]  # of a window of three rows two


def test_a_part_that_cannot_be_kept_fails_nothing(final, monkeypatch, capfd):
    real = checkpoint.atomic_path

    def full(path):
        raise OSError(28, "No space left on device")

    with Checkpoints(final, SCHEMA, "k") as kept:
        assert list(kept.finished()) == []
        kept.add([row(0)])
        monkeypatch.setattr(checkpoint, "atomic_path", full)
        for number in range(1, 50):
            kept.add([row(number)])
            assert not kept._waiting
        assert capfd.readouterr().err.count("No space left") == 1
        monkeypatch.setattr(checkpoint, "atomic_path", real)
        kept.add([row(50)])  # nobody could take it over: rows are missing before it
        assert kept.rows == 51
        assert finished(final) == [0]


def test_how_far_a_job_is(final, monkeypatch):
    clock = 100.0
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock)
    begin = time.time()
    with Checkpoints(final, SCHEMA, "k", total=40) as kept:
        list(kept.finished())
        clock += 10
        kept.add([row(n) for n in range(20)])
        (told,) = read_progress(final.parent, os.listdir(final.parent)).values()
        assert told["rows"] == 20
        assert told["rows_per_second"] == 2
        assert told["seconds_left"] == 10
        assert begin - 0.001 <= told["time"] <= time.time()  # it is rounded
    assert read_progress(final.parent, os.listdir(final.parent)) == {}
