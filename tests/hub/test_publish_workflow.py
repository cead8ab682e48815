"""Real Snakemake that publishes to a Hub: ahead of the end, again after changes, and without keeping enhanced shards."""

import subprocess
import sys

import pytest

from speechmill.files import read_json

from ..runs import Run, make_corpus
from .test_publish import NAME, rows_of, sent_and_committed

LOOSE, STRICT = 0.62, 0.9  # of the corpus, three clips of two batches, and two of one


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "corpus"
    make_corpus(folder)
    return folder


def hub_run(directory, corpus, **changes) -> Run:
    publish = {"kind": "hub", "repo": NAME, "patience_minutes": 0.3}
    source = {"path": str(corpus), "metadata": None, "may_publish": "private"}
    rank = {"threshold": LOOSE}
    return Run(directory, **({"source": source, "publish": publish, "rank": rank} | changes))


def accepted(run: Run) -> int:
    return read_json(run.results / "report" / "summary.json")["clips"]["accepted"]


def check(hub, run: Run) -> dict:
    """`main` holds what the sentinel says, and every accepted clip once."""
    sentinel, repo = read_json(run.results / "published" / "UPLOADED.json"), hub.repos[NAME]
    tree = repo.commits[repo.main]
    assert sentinel["commit"] == repo.tags[sentinel["tag"]] == repo.main
    assert {f["path"] for f in sentinel["files"]} == tree.keys() - {".gitattributes"}
    ids = [row["id"] for row in rows_of(tree)]
    assert len(ids) == len(set(ids)) == accepted(run) == sentinel["accepted"]
    return sentinel


def test_batches_are_sent_while_others_are_enhanced_and_a_second_start_writes_nothing(hub, corpus, tmp_path):
    run = hub_run(tmp_path / "run", corpus)
    done = run.start()
    assert done.jobs["send"] == done.jobs["enhance"] == 3
    check(hub, run)
    lines = done.output.splitlines()
    first_send = next(i for i, line in enumerate(lines) if "rule send:" in line)
    last_enhance = max(i for i, line in enumerate(lines) if "rule score:" in line)
    assert first_send < last_enhance
    before = len(sent_and_committed(hub))
    assert "Nothing to be done" in run.start().output
    assert len(sent_and_committed(hub)) == before
    run.start("--forcerun", "publish")
    assert len(sent_and_committed(hub)) == before


def test_a_token_that_may_not_write_is_found_before_anything_is_computed(hub, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    done = hub_run(tmp_path / "run", corpus).start(check=False)
    assert done.status == 1
    assert "does not know this token" in done.output
    assert "hf_of_somebody_else" not in done.output
    assert done.jobs["enhance"] == 0


def remove(run: Run, *arguments: str) -> str:
    command = [sys.executable, "-m", "speechmill", "remove", "demo", "--profile", "local", "--later", *arguments]
    config = ["--directory", str(run.directory), "--", "--configfile", str(run.directory / "config.yaml")]
    done = subprocess.run([*command, *config], capture_output=True, text=True, env=run.environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_enhanced_shards_only_batches_with_clips_that_come_in_are_enhanced_again(hub, corpus, tmp_path):
    run = hub_run(tmp_path / "run", corpus, keep_enhanced=False)
    assert run.start().jobs["enhance_again"] == 0
    check(hub, run)
    assert not list((run.results / "enhanced").glob("*"))
    assert "Nothing to be done" in run.start().output
    some = accepted(run)

    run.change(rank={"threshold": STRICT})  # fewer clips: what is published is cut down, without a GPU
    done = run.start()
    assert done.jobs["enhance"] == done.jobs["enhance_again"] == done.jobs["score"] == 0
    check(hub, run)
    assert (some, accepted(run)) == (3, 2)

    gone = next(row for row in rows_of(hub.repos[NAME].commits[hub.repos[NAME].main]))
    assert "1 clips are on the list" in remove(run, "--clip", gone["source_id"])
    run.change(rank={"threshold": LOOSE})
    done = run.start()
    sentinel = check(hub, run)
    assert done.jobs["enhance_again"] == 1
    assert done.jobs["enhance"] == done.jobs["score"] == 0
    assert "1 of 3 batches have clips that were not published before" in done.output
    assert accepted(run) == some - 1
    assert not list((run.results / "restored").glob("*"))
    assert "Nothing to be done" in run.start().output
    tree = hub.repos[NAME].commits[sentinel["commit"]]
    assert gone["id"] not in {row["id"] for row in rows_of(tree)}
    assert read_json(run.results / "report" / "summary.json")["rejected_by"]["removed"] == 1
    assert gone["id"].encode() in tree["manifest.json"]

    # The same as a run gives that has its enhanced shards still.
    hub.repos.clear()
    fresh = hub_run(tmp_path / "fresh", corpus, rank={"threshold": LOOSE})
    fresh.results.mkdir(parents=True)
    (fresh.results / "removed.json").write_bytes((run.results / "removed.json").read_bytes())
    fresh.start()
    check(hub, fresh)
    there = hub.repos[NAME].commits[hub.repos[NAME].main]
    assert {p: d for p, d in there.items() if p.startswith("data/")} == {
        p: d for p, d in tree.items() if p.startswith("data/")
    }
