"""`speechmill rerank --publish`: real Snakemake ends with what the preview said, and touches no audio."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq

from speechmill.ranking.states import STATES
from speechmill.runs.plan import make_plan
from speechmill.storage.files import read_json, write_json

from ..patience import seconds
from ..runs import Finished


def rerank(run, *change: str) -> tuple[dict, Counter]:
    """Preview and publish another ranking; what the preview said, and the jobs that ran."""
    plan = make_plan("demo", "local", run.directory, [], ["--configfile", "config.yaml", "--cores", "2"])
    write_json(run.results / "run.json", dataclasses.asdict(plan))
    done = subprocess.run(
        [sys.executable, "-m", "speechmill", "rerank", "results/demo", *change, "--publish", "--json"],
        cwd=run.directory,
        env=run.environment(),
        capture_output=True,
        text=True,
        timeout=seconds(600),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout), Finished(0, done.stderr).jobs


def test_a_raised_threshold_ranks_and_reports_and_sends_only_the_shards_that_changed(finished, tmp_path):
    run = finished.copy(tmp_path / "raised")
    run.change(publish={"kind": "folder", "shuffle": "batch"})
    run.start()
    table = pq.read_table(run.results / "report" / "ranking.parquet", filters=[("state", "=", "accepted")])
    accepted = sorted(table.to_pylist(), key=lambda row: row["closeness"])
    threshold = (accepted[0]["closeness"] + accepted[1]["closeness"]) / 2
    assert len({row["batch"] for row in accepted}) > 1
    untouched = run.hashes("enhanced", "scores", "ledger", "manifest")

    def shards() -> dict[str, tuple[int, int]]:
        found = {path.name: path.stat() for path in (run.results / "published" / "dataset" / "data").iterdir()}
        return {name: (state.st_ino, state.st_mtime_ns) for name, state in found.items()}

    before = shards()
    found, jobs = rerank(run, "--threshold", str(threshold))
    assert jobs == {"rank": 1, "report": 1, "publish": 1, "all": 1}  # and no model is loaded
    assert found["out"]["clips"] == 1
    after = shards()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed
    assert all(accepted[0]["batch"] in name for name in changed)
    assert before.keys() - changed  # those of the other batches
    assert run.hashes("enhanced", "scores", "ledger", "manifest") == untouched


def test_the_published_version_is_the_previewed_one(finished, tmp_path):
    run = finished.copy(tmp_path / "reranked")
    untouched = run.hashes("enhanced", "scores", "ledger", "manifest")
    before = pq.read_table(run.results / "report" / "ranking.parquet")["state"].to_pylist()

    found, jobs = rerank(run, "--threshold", "0.7", "--weights", "noise=0.1", "room=3")
    assert found["published"]["is_compared_with"]
    assert found["out"]["clips"] > 0
    assert jobs == {"rank": 1, "report": 1, "publish": 1, "all": 1}
    assert run.hashes("enhanced", "scores", "ledger", "manifest") == untouched

    after = pq.read_table(run.results / "report" / "ranking.parquet")["state"].to_pylist()
    summary, sentinel = (read_json(run.results / name) for name in ("report/summary.json", "published/UPLOADED.json"))
    for side, states in (("before", before), ("after", after)):
        assert {state: one[side] for state, one in found["clips"].items()} == {s: states.count(s) for s in STATES}
    assert summary["profile_sha256"] == sentinel["profile_sha256"] == found["profile"]["after"]["sha256"]
    assert summary["config"]["rank"] == found["setting"]
    assert sentinel["accepted"] == found["clips"]["accepted"]["after"]
    for name in ("rejected_by", "errored_by"):
        assert {why: one["after"] for why, one in found[name].items() if one["after"]} == summary[name]
