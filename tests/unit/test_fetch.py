"""Room for downloads: a bound that holds whatever was killed, given up or left behind."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from speechmill.errors import SourceError
from speechmill.sources import fetch
from speechmill.sources.fetch import DownloadQuota, check_size
from speechmill.storage.files import write_json, write_text


@pytest.fixture
def raw(tmp_path):
    """The folder of fetched files of a run with batches b0, b1 (of file-a) and b2 (of file-b)."""
    rows = ["b0\t1\t\ta\tfile-a", "b1\t1\t\ta\tfile-a", "b2\t1\t\tb\tfile-b", "b3\t1\t\tc\tfile-c"]
    write_text(
        tmp_path / "manifest" / "batches.tsv", "\n".join(["batch\tclips\tseconds\tsource_file\tfetched_as", *rows, ""])
    )
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def put(raw, key, size):
    (raw / key).write_bytes(bytes(size))


def enhanced(raw, *batches):
    for batch in batches:
        write_text(raw.parent / "ledger" / f"{batch}.enhance.parquet", "")


def happened(raw, *events):
    lines = [{"time": "t", "start": "s", "attempt": 1, "slurm_job": None, "batch": None, **event} for event in events]
    write_text(raw.parent / "logs" / "attempts.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def test_a_file_waits_until_another_one_is_gone(raw):
    put(raw, "file-a", 600)
    happened(raw, {"event": "submitted", "stage": "enhance", "batch": "b0"})
    quota = DownloadQuota(raw, 1000)
    threading.Timer(0.5, (raw / "file-a").unlink).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "POLL", 0.05)
        with quota.reserved("file-b", 500):
            assert not (raw / "file-a").exists()
            assert quota.used() == 500  # promised
            assert quota.used(but="file-b") == 0
    assert quota.used() == 0


def test_files_that_fit_do_not_wait(raw, monkeypatch):
    put(raw, "file-a", 400)
    monkeypatch.setattr(fetch.time, "sleep", lambda _: pytest.fail("waited"))
    with DownloadQuota(raw, 1000).reserved("file-b", 600):
        pass


def test_a_growing_file_counts_what_was_promised_and_a_finished_one_what_it_has(raw):
    quota = DownloadQuota(raw, 1000)
    with quota.reserved("file-a", 500):
        (raw / ".file-a.part").write_bytes(bytes(100))
        assert quota.used() == 500
        os.replace(raw / ".file-a.part", raw / "file-a")
        put(raw, "file-a", 480)
    assert quota.used() == 480


def test_the_promise_of_a_dead_process_counts_no_more_but_what_it_left_does(raw):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_json(raw / ".file-a.reserved.json", {"size": 900, "host": socket.gethostname(), "pid": dead.pid})
    (raw / ".file-a.part").write_bytes(bytes(300))
    quota = DownloadQuota(raw, 1000)
    assert quota.used() == 300
    write_json(raw / ".file-a.reserved.json", {"size": 900, "host": "another host", "pid": os.getpid()})
    assert quota.used() == 300


def test_what_nobody_will_read_makes_room(raw):
    """Of an earlier listing, or left by a controller that died after the last batch."""
    for key in ("file-a", "file-b", "file-of-an-earlier-listing"):
        put(raw, key, 400)
    time.sleep(0.02)
    enhanced(raw, "b0", "b1")
    with DownloadQuota(raw, 1000).reserved("file-c", 600):
        assert sorted(p.name for p in raw.iterdir() if not p.name.startswith(".")) == ["file-b"]


def test_a_file_fetched_again_is_not_taken_for_finished(raw):
    """Its batches' ledgers are older: they are to be made anew."""
    enhanced(raw, "b0", "b1")
    time.sleep(0.02)
    put(raw, "file-a", 400)
    with DownloadQuota(raw, 1000).reserved("file-c", 600):
        assert (raw / "file-a").exists()


def test_a_file_of_batches_that_were_given_up_makes_room(raw):
    put(raw, "file-a", 900)
    time.sleep(0.02)
    enhanced(raw, "b0")
    happened(raw, {"event": "failed", "stage": "enhance", "batch": "b1", "attempt": 4, "given_up": True})
    with DownloadQuota(raw, 1000).reserved("file-b", 500):
        assert not (raw / "file-a").exists()


def test_nothing_at_work_that_would_make_room_is_said(raw, monkeypatch):
    """As when a run is drained: running jobs have ended, and no new one begins."""
    monkeypatch.setattr(fetch, "POLL", 0.05)
    monkeypatch.setattr(fetch, "NO_JOB_SECONDS", 0.3)
    put(raw, "file-a", 900)
    happened(
        raw,
        {"event": "submitted", "stage": "enhance", "batch": "b0"},
        {"event": "finished", "stage": "enhance", "batch": "b0"},
        {"event": "submitted", "stage": "fetch", "file": "file-b"},
    )
    with (
        pytest.raises(SourceError, match="no running job will free any"),
        DownloadQuota(raw, 1000).reserved("file-b", 500),
    ):
        pass
    assert (raw / "file-a").exists()


def test_a_file_that_never_fits_is_named():
    with pytest.raises(SourceError, match=r"big.tar has 2.0 GB, but download.max_gb is 1; raise"):
        check_size({"files": [{"path": "a", "size": 1}, {"path": "big.tar", "size": 2 * 10**9}]}, 1, 10**12)


def test_a_bound_that_does_not_fit_on_the_disk_is_named():
    files = [{"path": "a", "size": 6 * 10**9}] * 3
    check_size({"files": files, "bytes": 18 * 10**9}, 7, 8 * 10**9)
    with pytest.raises(SourceError, match=r"18.0 GB at a time, but only 8.0 GB are free; lower download.max_gb"):
        check_size({"files": files, "bytes": 18 * 10**9}, 100, 8 * 10**9)
