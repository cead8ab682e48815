"""What the status of a run shows a person."""

import json
import time

from speechmill.cli.main import main
from speechmill.monitor.status import status_text
from speechmill.storage.files import write_json

from .runs_account import Account


def told(run, folder, batch, **changes):
    values = {"rows": 1500, "total": 10_000, "rows_per_second": 85.5, "seconds_left": 120, "time": time.time()}
    write_json(run / folder / f".{batch}.parts" / "progress.json", values | changes)


def test_how_far_the_jobs_at_work_are(tmp_path):
    run = Account(tmp_path / "th").run_dir
    told(run, "enhanced", "b0")
    told(run, "scores", "b1", total=None, seconds_left=None)
    told(run, "scores", "b2", time=time.time() - 3600)  # killed, long ago
    text = status_text(run)
    assert "enhance b0: 1,500 of 10,000 clips, 85.5 clips/s, 2 min left" in text
    assert "score b1: 1,500 clips, 85.5 clips/s\n" in text + "\n"
    assert "b2" not in text


def test_stages_failures_and_what_to_do(tmp_path):
    account = Account(tmp_path / "th", batches=3)
    account.begin(0)
    account.submit(1, "enhance", "b0")
    account.finish(
        9, "enhance", "b0", seconds=8.0, clips={"errored": 2, "passed": 98}, audio_seconds={"passed": 7200.0}
    )
    account.submit(1, "enhance", "b1")
    account.fail(5, "enhance", "b1", reason="out of \x1b[2J memory", log="logs/batches/b1.log", given_up=True)
    account.own(alive=False)
    text = status_text(account.run_dir)
    assert "interrupted, 300 clips" in text
    row = next(line.split() for line in text.splitlines() if line.startswith(" enhance"))
    assert row[:4] == ["enhance", "1", "of", "3"]
    assert "1, 1 for good  98 passed, 2 errored" in text
    assert "00:00:05 UTC enhance b1 failed (attempt 1, the last): out of [2J memory; logs/batches/b1.log" in text
    assert f"go on: speechmill resume {account.run_dir}" in text


def test_for_programs_it_is_one_json_object_with_every_job(tmp_path, capsys):
    account = Account(tmp_path / "th", batches=1)
    account.begin(0)
    account.submit(1, "enhance", "b0")
    assert main(["status", str(account.run_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dataset"], found["state"], [job["batch"] for job in found["jobs"]]) == ("th", "stopped", ["b0"])
