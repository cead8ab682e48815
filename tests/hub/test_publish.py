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
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from speechmill import hub as client
from speechmill.errors import SpeechmillError
from speechmill.files import read_json, write_json
from speechmill.hub import HubRefusedError
from speechmill.publish import repository
from speechmill.publish.hub import check_target, publish_hub, send_batch
from speechmill.publish.shards import Batch, origin_of
from speechmill.removal import read_removals, speaker_key

from ..runs import ROOT
from ..unit.test_publish import Run as FolderRun
from .conftest import with_xet
from .server import Hub, Repo, entry

NAME = "lab/clean"
# Every kind of request that publishing makes, and what answers it.
REQUESTS = {
    "whoami": "whoami-v2",
    "creation": "repos/create",
    "right": "auth-check/write",
    "revision": "api/datasets/lab/clean$",
    "tree": "/tree/",
    "preupload": "/preupload/",
    "batch": "objects/batch",
    "storage": "^/lfs/[^/]*/[^/]*/[0-9a-f]*$",
    "verify": "/verify$",
    "card": "validate-yaml",
    "commit": "/commit/",
    "refs": "/refs$",
    "tag": "/tag/",
}
IMPATIENT = {"whoami", "right", "commit", "tag", "card", "refs"}  # what the client itself does not ask again


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No waiting in the client, either."""
    patient = SimpleNamespace(**{name: getattr(time, name) for name in dir(time)} | {"sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", patient)


class Run(FolderRun):
    """The results of a run that is published to `lab/clean`."""

    def __init__(self, directory: Path, **changes):
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory, **({"clips": 24, "batches": 2} | changes))
        self.folder = directory / "on_hub"
        self.sentinel = self.folder / "UPLOADED.json"
        settings = {"kind": "hub", "repo": NAME, "visibility": "private", "uploads": 2, "patience_minutes": 0.2}
        self.config = self.config | {"keep_enhanced": True, "publish": self.config["publish"] | settings}

    def tables(self) -> list[Batch]:
        # The audio is that of the clips; its file is made anew by each of these runs and means nothing.
        return [Batch(name, ranking, (enhanced,), "same", "same") for name, enhanced, ranking in self.batches]

    def publish(self, **changes) -> dict:
        given = {"profile": self.profile, "summary": self.summary, "source": self.source, "config": self.config}
        return publish_hub(self.tables(), **(given | changes), folder=self.folder, sentinel=self.sentinel)

    def send(self) -> list[dict]:
        repository.Repository(NAME, 0.2).open("private")  # as preflight does
        sent = [send_batch(batch, self.profile, self.config, self.folder) for batch in self.tables()]
        return [shard for shards in sent for shard in shards]

    def process(self, python_path: str = "", **environment: str) -> subprocess.Popen:
        """A process that sends and publishes; its output goes to `log.txt`."""
        write_json(
            self.directory / "run.json", {k: getattr(self, k) for k in ("profile", "summary", "source", "config")}
        )
        write_json(self.directory / "tables.json", [[str(part) for part in batch] for batch in self.batches])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [python_path, str(ROOT)]))} | environment
        with open(self.directory / "log.txt", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(self.directory)], env=environment, stdout=log, stderr=log
            )


PROGRAM = """
import sys
from pathlib import Path
from speechmill import hub
from speechmill.files import read_json
from speechmill.publish.hub import publish_hub, send_batch
from speechmill.publish.repository import Repository
from speechmill.publish.shards import Batch
hub.PAUSES = (0.05, 0.2)
directory = Path(sys.argv[1])
run, folder = read_json(directory / "run.json"), directory / "on_hub"
batches = [Batch(n, Path(r), (Path(e),), "same", "same") for n, e, r in read_json(directory / "tables.json")]
Repository(run["config"]["publish"]["repo"], 1).open("private")
for batch in batches:
    send_batch(batch, run["profile"], run["config"], folder)
publish_hub(batches, run["profile"], run["summary"], run["source"], run["config"], folder, folder / "UPLOADED.json")
"""


def rows_of(tree: dict[str, bytes]) -> list[dict]:
    shards = (data for path, data in sorted(tree.items()) if path.startswith("data/"))
    return [row for data in shards for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def check(hub: Hub, run: Run) -> dict:
    """`main` and the tag hold exactly what sentinel and manifest list, and every accepted clip once."""
    repo, sentinel = hub.repos[NAME], read_json(run.sentinel)
    assert sentinel["commit"] == repo.tags[sentinel["tag"]] == repo.main
    tree = repo.commits[repo.main]
    listed = {f["path"]: (f["sha256"], f["size"]) for f in sentinel["files"]}
    there = {path: entry(path, data) for path, data in tree.items() if path != ".gitattributes"}
    assert there.keys() == listed.keys()
    for path, file in there.items():
        if "lfs" in file:
            assert (file["lfs"]["oid"], file["size"]) == listed[path]
    manifest = json.loads(tree["manifest.json"])
    assert manifest["version"] == sentinel["tag"]
    assert manifest["files"] == [f for f in sentinel["files"] if f["rows"] is not None]
    if hub.cas is None:
        assert sorted(row["id"] for row in rows_of(tree)) == sorted(run.truth)
    return sentinel


def sent_and_committed(hub: Hub, since: int = 0) -> list[tuple]:
    """Requests that brought bytes, commits or tags."""
    return [line for line in hub.log[since:] if re.search("^/lfs/|/commit/|/tag/", line[1])]


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
    monkeypatch.setattr("speechmill.publish.hub.FILES_PER_COMMIT", 5)
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
    monkeypatch.setattr(client.time, "sleep", waited.append)
    hub.fail("/commit/", status=412, headers={"RateLimit": '"api";r=998;t=290'})
    Run(tmp_path).publish()
    assert 0 < max(waited) < 1


@pytest.mark.parametrize(
    ("status", "headers"), [(409, {}), (412, {}), (429, LIMITED[0]), (429, LIMITED[1]), (503, LIMITED[1]), (500, {})]
)
def test_conflicts_and_limits_of_the_commit_are_waited_out(hub, tmp_path, status, headers, monkeypatch):
    waited = []
    monkeypatch.setattr(client.time, "sleep", waited.append)
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
    assert run.process().wait(600) == 0, (run.directory / "log.txt").read_text()[-3000:]
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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
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
    assert run.process(str(tmp_path / "old")).wait(600) == 0, (run.directory / "log.txt").read_text()[-3000:]
    check(hub, run)
    assert f"hf_hub/{version}" in hub.agents
    since = len(hub.log)
    assert run.process().wait(600) == 0
    assert sent_and_committed(hub, since) == []


REFUSALS = [
    ({"pattern": "repos/create", "status": 401}, "does not know this token"),
    ({"pattern": "auth-check", "status": 403}, "may not write there.*publish.repo"),
    ({"pattern": "/commit/", "status": 403}, "may not write there"),
    ({"pattern": "/preupload/", "status": 404}, "no such data set.*publish.repo"),
    ({"pattern": "objects/batch", "status": 413}, "no room.*larger plan"),
    ({"pattern": "/commit/", "status": 402}, "no room"),
]


@pytest.mark.parametrize(("fault", "message"), REFUSALS)
def test_a_refusal_says_what_to_do_and_is_not_repeated(hub, tmp_path, fault, message):
    run = Run(tmp_path)
    hub.fail(**fault, times=1000)
    with pytest.raises(HubRefusedError, match=message):
        run.publish()
    assert hub.faults[0].times >= 1000 - 4  # once for each shard that was on its way
    assert not run.sentinel.exists()
    hub.faults.clear()
    run.publish()
    check(hub, run)


def test_a_hub_that_stays_away_is_given_up_and_nothing_is_lost(hub, tmp_path):
    run = Run(tmp_path)
    run.send()
    run.config["publish"]["patience_minutes"] = 0.01
    hub.fail("/commit/", status=503, times=1000)
    with pytest.raises(SpeechmillError, match=r"gave no answer for 0\.01 minutes"):
        run.publish()
    hub.faults.clear()
    since = hub.received
    run.publish()
    check(hub, run)
    assert hub.received == since


def test_what_others_published_is_not_replaced(hub, tmp_path):
    hub.repos[NAME] = Repo(private=True)
    hub.repos[NAME].commit({"README.md": b"mine"})
    run = Run(tmp_path)
    with pytest.raises(SpeechmillError, match=r"README.md, which was not written by speechmill"):
        run.publish()
    hub.repos[NAME].commit({"README.md": b"mine", ".speechmill": b"", "notes.txt": b"kept"})
    run.publish()
    assert hub.repos[NAME].commits[hub.repos[NAME].main]["notes.txt"] == b"kept"


def test_what_is_published_is_compared_when_it_is_taken_back(hub, tmp_path):
    def without_audio(**changes):
        run = Run(tmp_path, **changes)
        run.config = run.config | {"keep_enhanced": False}
        return run

    run = without_audio()
    run.publish()
    strict = without_audio(threshold=0.7)
    for _, enhanced, _ in strict.batches:
        enhanced.unlink()
    hub.fail("resolve/.*/data/", method="GET", damage=True)
    with pytest.raises(SpeechmillError, match="came damaged"):
        strict.publish()
    strict.publish()
    tree = hub.repos[NAME].commits[hub.repos[NAME].main]
    assert {row["id"]: row["audio"]["bytes"] for row in rows_of(tree)} == {
        i: t["bytes"] for i, t in strict.truth.items()
    }
    hub.repos.clear()
    with pytest.raises(SpeechmillError, match=r"cannot be had any more .* enhanced anew"):
        strict.publish()


def test_preflight_knows_what_was_removed_and_whose_data_set_it_is(hub, tmp_path):
    run = Run(tmp_path / "first")
    removals = {"clips": ["0a" * 12], "speakers": [speaker_key("ก")]}
    run.publish(removed=removals)
    check_target(run.config, tmp_path / "anew")
    assert read_removals(tmp_path / "anew") == removals | {"speakers": []}
    manifest = hub.repos[NAME].commits[hub.repos[NAME].main]["manifest.json"]
    assert "ก" not in manifest.decode()
    assert speaker_key("ก") not in manifest.decode()
    with pytest.raises(SpeechmillError, match="ranked before clips of it were put on the list"):
        run.publish(removed={"clips": [next(iter(run.truth))], "speakers": []})
    with pytest.raises(SpeechmillError, match="holds the data set demo, which other would replace"):
        check_target(run.config | {"dataset": "other"}, tmp_path / "anew")


def test_a_private_version_does_not_go_into_a_public_repository(hub, tmp_path):
    hub.repos[NAME] = Repo(private=False)
    hub.repos[NAME].commit({})
    with pytest.raises(SpeechmillError, match=r"is public, and publish.visibility is private"):
        Run(tmp_path).publish()
    assert not hub.requests("/lfs/|preupload")


def test_no_token_and_a_readable_token_are_refused(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    run = Run(tmp_path)
    with pytest.raises(HubRefusedError, match=r"there is no token.*chmod 600"):
        run.publish()
    (tmp_path / "token").write_text("hf_loopback")
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(HubRefusedError, match="others on this machine can read the token"):
        run.publish()
    (tmp_path / "token").chmod(0o600)
    run.publish()
    check(hub, run)


def test_the_token_is_in_nothing_that_is_written(hub, tmp_path, capfd):
    run = Run(tmp_path)
    hub.fail("/commit/", status=500)
    run.publish()
    hub.fail("auth-check", status=401)
    with pytest.raises(HubRefusedError) as refused:
        run.publish()
    said = capfd.readouterr()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    tree = list(hub.repos[NAME].commits[hub.repos[NAME].main].values())
    assert not any(b"hf_loopback" in data for data in [*written, *tree])
    assert "hf_loopback" not in said.out + said.err + str(refused.value)


def test_an_origin_changes_with_its_file(tmp_path):
    file = tmp_path / "ledger"
    file.write_text("a")
    before = origin_of(file)
    assert origin_of(file) == before
    file.write_text("ab")
    assert origin_of(file) != before
