"""Real Snakemake that publishes to a Hub: ahead of the end, again after changes, and without keeping enhanced shards."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechmill.storage.files import read_json

from ..runs import SPEECH, Run, make_corpus
from .conftest import serve
from .publishing import NAME, rows_of, sent_and_committed

LOOSE, STRICT = 0.62, 0.9  # of the corpus, three clips of two batches, and two of one
GONE = "clip 4.wav"


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


def remove(run: Run, *arguments: str) -> str:
    command = [sys.executable, "-m", "speechmill", "remove", "demo", "--profile", "local", "--later", *arguments]
    config = ["--directory", str(run.directory), "--", "--configfile", str(run.directory / "config.yaml")]
    done = subprocess.run([*command, *config], capture_output=True, text=True, env=run.environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def kept(corpus, tmp_path_factory):
    """A run that keeps its enhanced shards: its Hub, what its starts said, and how much they had sent each time."""
    with pytest.MonkeyPatch.context() as patch:
        hub = serve(patch)
        run = hub_run(tmp_path_factory.mktemp("kept") / "run", corpus)
        starts, sent = [], []
        for arguments in ((), (), ("--forcerun", "publish")):
            starts.append(run.start(*arguments))
            sent.append(len(sent_and_committed(hub)))
        yield SimpleNamespace(run=run, hub=hub, starts=starts, sent=sent)
        hub.close()


@pytest.mark.everyday
def test_batches_are_sent_while_others_are_enhanced_and_a_second_start_writes_nothing(kept):
    first, second, forced = kept.starts
    assert first.jobs["send"] == first.jobs["enhance"] == 3
    lines = first.output.splitlines()
    first_send = next(i for i, line in enumerate(lines) if "rule send:" in line)
    last_score = max(i for i, line in enumerate(lines) if "rule score:" in line)
    assert first_send < last_score
    check(kept.hub, kept.run)
    assert "Nothing to be done" in second.output
    assert forced.jobs["publish"] == 1
    assert kept.sent[0] == kept.sent[1] == kept.sent[2] > 0


def test_a_token_that_may_not_write_is_found_before_anything_is_computed(hub, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    done = hub_run(tmp_path / "run", corpus).start(check=False)
    assert done.status == 1
    assert "does not know this token" in done.output
    assert "hf_of_somebody_else" not in done.output
    assert done.jobs["enhance"] == 0


def test_without_enhanced_shards_only_batches_with_clips_that_come_in_are_enhanced_again(hub, corpus, kept, tmp_path):
    run = hub_run(tmp_path / "run", corpus, keep_enhanced=False)
    assert run.start().jobs["enhance_again"] == 0
    check(hub, run)
    assert not list((run.results / "enhanced").glob("*"))
    some = accepted(run)

    run.change(rank={"threshold": STRICT})  # fewer clips: what is published is cut down, without a GPU
    done = run.start()
    assert done.jobs["enhance"] == done.jobs["enhance_again"] == done.jobs["score"] == 0
    check(hub, run)
    assert (some, accepted(run)) == (3, 2)

    gone = next(row["id"] for row in rows_of(hub.repos[NAME].commits[hub.repos[NAME].main]) if row["source_id"] == GONE)
    assert "1 clips are on the list" in remove(run, "--clip", GONE)
    run.change(rank={"threshold": LOOSE})
    done = run.start()
    sentinel = check(hub, run)
    assert done.jobs["enhance_again"] == 1
    assert done.jobs["enhance"] == done.jobs["score"] == 0
    assert "1 of 3 batches have clips that were not published before" in done.output
    assert accepted(run) == some - 1
    assert not list((run.results / "restored").glob("*"))
    assert "Nothing to be done" in run.start().output
    (run.results / "published" / "UPLOADED.json").unlink()
    done = run.start()
    assert (done.jobs["publish"], done.jobs["enhance_again"]) == (1, 0)  # published meanwhile
    tree = hub.repos[NAME].commits[sentinel["commit"]]
    assert gone not in {row["id"] for row in rows_of(tree)}
    assert read_json(run.results / "report" / "summary.json")["rejected_by"]["removed"] == 1
    assert gone.encode() in tree["manifest.json"]
    run.change(publish={"kind": "hub", "repo": "lab/other", "patience_minutes": 0.3})  # its audio is taken from there
    done = run.start()
    assert done.jobs["publish"] == 1
    assert done.jobs["enhance"] == done.jobs["enhance_again"] == done.jobs["send"] == 0
    moved = hub.repos["lab/other"].commits[hub.repos["lab/other"].main]
    assert {path: moved.get(path) for path in tree if path.startswith("data/")}.items() <= tree.items()

    there = kept.hub.repos[NAME].commits[kept.hub.repos[NAME].main]
    same = [path for path in tree if path.startswith("data/") and tree[path] == there.get(path)]
    assert len(same) == 1  # of the batch that lost no clip: what was enhanced again is what had been published


def test_a_corpus_that_has_grown_is_enhanced_where_it_is_new(hub, corpus, tmp_path):
    grown = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    run = hub_run(tmp_path / "run", grown, keep_enhanced=False)
    run.start()
    before = check(hub, run)
    for prompt in sorted(SPEECH.rglob("*.flac"))[8:10]:
        shutil.copy(prompt, grown)
    done = run.start()
    assert (done.jobs["enhance"], done.jobs["send"], done.jobs["enhance_again"]) == (1, 1, 0)
    after = check(hub, run)
    data = {f["path"]: f["sha256"] for f in before["files"] if f["path"].startswith("data/")}
    assert data.items() < {f["path"]: f["sha256"] for f in after["files"]}.items()
