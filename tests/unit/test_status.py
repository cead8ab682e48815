"""What the status of a run says of the jobs at work."""

import time

from speechmill.files import write_json, write_text
from speechmill.status import status, status_text


def told(run, folder, batch, **changes):
    values = {"rows": 1500, "total": 10_000, "rows_per_second": 85.5, "seconds_left": 120, "time": time.time()}
    write_json(run / folder / f".{batch}.parts" / "progress.json", values | changes)


def test_how_far_the_jobs_at_work_are(tmp_path):
    run = tmp_path / "th"
    write_text(run / "preflight.json", "{}")
    told(run, "enhanced", "b0")
    told(run, "scores", "b1", total=None, seconds_left=None)
    told(run, "scores", "b2", time=time.time() - 3600)  # killed, long ago
    found = status(run)
    assert [(job["stage"], job["batch"]) for job in found["at_work"]] == [("enhance", "b0"), ("score", "b1")]
    text = status_text(found)
    assert "enhance b0: 1,500 of 10,000 clips, 85.5 clips/s, 2 min left" in text
    assert "score b1: 1,500 clips, 85.5 clips/s\n" in text + "\n"
