"""`speechmill rerank --publish`: real Snakemake ends with what the preview said, and touches no audio."""

import dataclasses
import json
import re
import subprocess
import sys

import pyarrow.parquet as pq

from speechmill.files import read_json, write_json
from speechmill.ledger import STATES
from speechmill.runs import make_plan


def test_the_published_version_is_the_previewed_one(finished, tmp_path):
    run = finished.copy(tmp_path / "reranked")
    plan = make_plan("demo", "local", run.directory, [], ["--configfile", "config.yaml", "--cores", "2"])
    write_json(run.results / "run.json", dataclasses.asdict(plan))
    untouched = run.hashes("enhanced", "scores", "ledger", "manifest")
    before = pq.read_table(run.results / "report" / "ranking.parquet")["state"].to_pylist()

    change = ["--threshold", "0.7", "--weights", "noise=0.1", "room=3"]
    command = [sys.executable, "-m", "speechmill", "rerank", "results/demo", *change, "--publish", "--json"]
    done = subprocess.run(
        command, cwd=run.directory, env=run.environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout)
    assert found["published"]["is_compared_with"]
    assert found["out"]["clips"] > 0
    jobs = set(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):$", done.stderr, re.MULTILINE))
    assert jobs == {"preflight", "profile", "rank", "advice", "report", "publish", "all"}
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
