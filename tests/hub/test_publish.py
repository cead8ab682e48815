"""Publishing to a Hub with the real client: what is there at the end, however often it was interrupted."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from itertools import pairwise

import pyarrow.parquet as pq
import pytest

from speechmill.publish import repository
from speechmill.storage import hub_client as client
from speechmill.storage.files import read_json

from ..patience import seconds
from ..runs import ROOT
from .conftest import with_xet
from .publishing import NAME, REQUESTS, Run, check, rows_of, sent_and_committed

pytestmark = pytest.mark.usefixtures("no_pauses")


def test_shards_are_sent_ahead_and_committed_once(hub, tmp_path):
    run = Run(tmp_path)
    sent = run.send()
    assert not hub.requests("/commit/")
    bytes_ahead = hub.received
    content = run.publish()
    assert check(hub, run) == content
    assert {f["path"]: f["sha256"] for f in sent}.items() <= {f["path"]: f["sha256"] for f in content["files"]}.items()
    assert sum(f["size"] for f in sent) == bytes_ahead
    scores = sum(f["size"] for f in content["files"] if f["path"].startswith("scores/"))
    assert hub.received == bytes_ahead + scores  # nothing twice
    assert len(hub.requests("/commit/")) == 1


def test_a_repetition_writes_nothing(hub, tmp_path):
    run = Run(tmp_path)
    first = run.publish()
    since = len(hub.log)
    assert run.publish() == first
    for record in run.folder.rglob("*.json"):
        record.unlink()  # even where nobody remembers what was sent
    assert run.publish() == first
    assert sent_and_committed(hub, since) == []


def test_a_new_threshold_sends_only_what_changed_and_deletes_what_is_gone(hub, tmp_path):
    run = Run(tmp_path, clips=60, batches=3)
    run.publish()
    one = hub.repos[NAME].main
    before = hub.received
    strict = Run(tmp_path, clips=60, batches=3, threshold=0.7)
    second = strict.publish()
    check(hub, strict)
    old, new = (hub.repos[NAME].commits[commit] for commit in (one, second["commit"]))
    changed = {path for path in new if path.endswith(".parquet") and new[path] != old.get(path)}
    assert hub.received - before == sum(len(new[path]) for path in changed)
    assert set(old) - set(new)  # of a batch that is one shard now
    assert len(hub.requests("/commit/")) == 2
    assert sorted(row["id"] for row in rows_of(old)) == sorted(run.truth)  # readers of the first tag have it still


def test_a_corpus_that_has_grown_sends_new_shards_alone(hub, tmp_path):
    run = Run(tmp_path)
    run.publish()
    old = hub.repos[NAME].commits[hub.repos[NAME].main]
    grown = Run(tmp_path / "grown", clips=36, batches=3)
    since = len(hub.log)
    grown.publish()
    check(hub, grown)
    new = hub.repos[NAME].commits[hub.repos[NAME].main]
    assert {path: new[path] for path in old if path.startswith("data/")}.items() <= new.items()
    puts = {line[1].split("/")[-1] for line in hub.log[since:] if line[0] == "PUT"}
    shas = {f["sha256"]: f["path"] for f in read_json(grown.sentinel)["files"]}
    assert {shas[sha].split("-")[1] for sha in puts} == {"b2"}


def test_a_clip_does_not_move_to_another_split(hub, tmp_path):
    run = Run(tmp_path)
    run.publish()
    tree = hub.repos[NAME].commits[hub.repos[NAME].main]
    wanted = {"train": "train", None: "train", "dev": "validation", "test": "test"}
    for path, data in tree.items():
        if path.startswith("data/"):
            splits = pq.read_table(io.BytesIO(data), columns=["source_split"])["source_split"].to_pylist()
            assert {wanted[split] for split in splits} == {path.split("/")[1].split("-")[0]}


def test_many_files_are_committed_in_groups_and_card_and_manifest_come_last(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "FILES_PER_COMMIT", 5)
    monkeypatch.setattr("speechmill.publish.to_hub.FILES_PER_COMMIT", 5)
    run = Run(tmp_path)
    run.publish()
    check(hub, run)
    commits = list(hub.repos[NAME].commits.values())
    assert all("README.md" not in tree and "manifest.json" not in tree for tree in commits[:-1])
    new = [len(after.keys() - before.keys()) for before, after in pairwise(commits)]
    assert max(new) <= 5
    assert len(new) > 2
    assert all(".speechmill" in tree for tree in commits[1:])  # an interrupted one is known as ours


@pytest.mark.parametrize(
    "fault", [{"status": 503}, {"status": 504, "after": True}, {"drop": True}, {"drop": True, "after": True}]
)
def test_every_request_may_fail_once_before_and_after_it_took_effect(hub, tmp_path, fault):
    run = Run(tmp_path)
    for pattern in REQUESTS.values():
        hub.fail(pattern, **fault)
    run.send()
    run.publish()
    check(hub, run)
    assert [f.pattern for f in hub.faults if f.times] == []
    assert len(hub.repos[NAME].commits) == 2  # the empty one, and one
    assert hub.repos[NAME].tags.keys() == {read_json(run.sentinel)["tag"]}


LIMITED = {"RateLimit": '"api";r=0;t=3'}, {"Retry-After": "3"}


def test_a_rate_limit_that_is_not_reached_is_not_waited_for(hub, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    hub.fail("/commit/", status=412, headers={"RateLimit": '"api";r=998;t=290'})
    Run(tmp_path).publish()
    assert 0 < max(waited) < 1


@pytest.mark.parametrize(
    ("status", "headers"), [(409, {}), (412, {}), (429, LIMITED[0]), (429, LIMITED[1]), (503, LIMITED[1]), (500, {})]
)
def test_conflicts_and_limits_of_the_commit_are_waited_out(hub, tmp_path, status, headers, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    run = Run(tmp_path)
    hub.fail("/commit/", status=status, headers=headers)
    run.publish()
    check(hub, run)
    assert (4.0 in waited) == bool(headers)


def test_a_commit_by_somebody_else_in_between_is_kept(hub, tmp_path, monkeypatch):
    run = Run(tmp_path)
    real = repository.Repository.head
    calls = iter(range(100))

    def head(self):
        found = real(self)
        if next(calls) == 3:  # they were read; now somebody is quicker
            repo = hub.repos[NAME]
            repo.commit(repo.commits[repo.main] | {"notes.md": b"mine"})
        return found

    monkeypatch.setattr(repository.Repository, "head", head)
    run.publish()
    tree = hub.repos[NAME].commits[hub.repos[NAME].main]
    assert tree["notes.md"] == b"mine"
    assert read_json(run.sentinel)["commit"] == hub.repos[NAME].main


def test_a_server_that_hangs_is_given_up_and_asked_again(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT", 0.5)
    run = Run(tmp_path)
    for pattern in (REQUESTS["commit"], REQUESTS["storage"]):
        hub.fail(pattern, delay=1.5)
    run.publish()
    check(hub, run)


def test_bytes_that_the_hub_lost_before_the_commit_are_sent_again(hub, tmp_path):
    run = Run(tmp_path)
    run.send()
    hub.repos[NAME].objects.clear()
    run.publish()
    check(hub, run)


def test_a_killed_uploader_is_completed_by_the_next(hub, tmp_path):
    """Twenty times, after a random number of requests, whatever they are."""
    run = Run(tmp_path, clips=120, batches=6)
    chance = random.Random(11)
    killed = 0
    while killed < 20:
        since, kill_after = len(hub.log), chance.randrange(2, 14)
        process = run.process()
        while process.poll() is None and len(hub.log) - since < kill_after:
            time.sleep(0.0005)
        if process.poll() is not None:
            assert process.returncode == 0, (run.directory / "log.txt").read_text()[-3000:]
            run.sentinel.unlink()  # done: the others repeat a publication that is complete
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        assert not run.sentinel.exists() or check(hub, run)
    assert run.process().wait(seconds(600)) == 0, (run.directory / "log.txt").read_text()[-3000:]
    check(hub, run)
    assert not list(run.folder.glob(".sending-*"))


def test_large_files_go_in_parts(hub, tmp_path):
    hub.part_bytes = 20_000
    run = Run(tmp_path)
    hub.fail("/[0-9a-f]{64}/2$", status=503)
    run.publish()
    check(hub, run)
    assert hub.requests("/complete$", "POST")


def test_an_address_that_is_no_longer_valid_is_asked_for_anew(hub, tmp_path):
    run = Run(tmp_path)
    hub.fail(REQUESTS["storage"], status=403)
    run.publish()
    check(hub, run)


def test_through_xet_equal_chunks_are_not_sent_again(hub, tmp_path, monkeypatch):
    with_xet(monkeypatch, True)
    hub.cas = tmp_path / "cas"
    run = Run(tmp_path, clips=200, batches=1)
    run.config["publish"]["shard_bytes"] = 10**9
    first = run.publish()
    check(hub, run)
    assert hub.requests("xet-write-token")
    assert not hub.requests("objects/batch")

    def stored():
        return sum(path.stat().st_size for path in hub.cas.rglob("*") if "xorb" in str(path) and path.is_file())

    before = stored()
    assert before > 0.8 * first["bytes"]
    run.publish()
    assert stored() == before
    local = repository.Repository(NAME, 0.2).download(
        "data/train-b0-00000-of-00001.parquet", first["commit"], tmp_path / "down"
    )
    assert pq.read_table(local).num_rows == sum(
        f["rows"] for f in first["files"] if "train-b0" in f["path"] and "data/" in f["path"]
    )


LOAD = """
import io, json, sys
import datasets, numpy, soundfile
name, revision = sys.argv[1:]
found = {}
for streaming in (False, True):
    clips = datasets.load_dataset(name, split="train", revision=revision, streaming=streaming)
    row = next(iter(clips))
    raw = next(iter(clips.cast_column("audio", datasets.Audio(decode=False))))
    samples = row["audio"].get_all_samples()
    assert samples.sample_rate == 16000
    truth, rate = soundfile.read(io.BytesIO(raw["audio"]["bytes"]), dtype="float32")
    assert rate == 16000 and numpy.allclose(samples.data[0].numpy(), truth, atol=1e-4)
    found[str(streaming)] = [row["id"] for row in clips.select_columns("id")]
scores = datasets.load_dataset(name, "scores", split="train", revision=revision)
print(json.dumps([found, len(scores), sorted(datasets.get_dataset_split_names(name, revision=revision))]))
"""


def test_datasets_loads_and_streams_it_with_decoded_audio(hub, tmp_path):
    pytest.importorskip("torchcodec", reason="decoding audio in datasets needs torchcodec, and that FFmpeg")
    run = Run(tmp_path, clips=60, batches=3)
    content = run.publish()
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", LOAD, NAME, content["tag"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds(900))
    assert done.returncode == 0, done.stderr[-3000:]
    found, scores, splits = json.loads(done.stdout)
    train = {
        row["id"]
        for row in rows_of({p: d for p, d in hub.repos[NAME].commits[content["commit"]].items() if "train" in p})
    }
    assert set(found["False"]) == set(found["True"]) == train
    assert (scores, splits) == (60, ["test", "train", "validation"])


def test_the_lowest_supported_client_does_the_same(hub, tmp_path):
    """And leaves what the installed one finds complete."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = re.search(r"huggingface_hub>=([\d.]+)", " ".join(dependencies))[1]
    version = lowest if lowest.count(".") > 1 else f"{lowest}.0"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--target",
        str(tmp_path / "old"),
        f"huggingface_hub=={version}",
    ]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(
            f"needs huggingface_hub {version} from a package index: {installed.stderr.strip().splitlines()[-1]}"
        )
    run = Run(tmp_path / "run")
    hub.fail(REQUESTS["commit"], status=504, after=True)
    assert run.process(str(tmp_path / "old")).wait(seconds(600)) == 0, (run.directory / "log.txt").read_text()[-3000:]
    check(hub, run)
    assert f"hf_hub/{version}" in hub.agents
    since = len(hub.log)
    assert run.process().wait(seconds(600)) == 0
    assert sent_and_committed(hub, since) == []
