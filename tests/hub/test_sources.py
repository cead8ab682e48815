"""Sources on the Hub, read by the real client from a Hub on loopback, with what goes wrong there."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from speechmill.errors import SourceError
from speechmill.sources import open_source
from speechmill.sources.manifest import build_manifest, describe_source, plan_of, read_batch
from speechmill.sources.revision import UNKNOWN, asked_for, current_revision
from speechmill.storage.files import sha256_bytes, write_json
from speechmill.storage.hub_client import HubRefusedError
from speechmill.tables.batches import read_batches
from speechmill.utils import retry

from .. import corpora
from ..corpora import configured
from .server import Repo

README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: data/dev-*
- config_name: other
  data_files: other/*.parquet
---
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def repo(hub, tmp_path):
    """A data set of three Parquet files in two configurations."""
    folder = tmp_path / "repo"
    corpora.parquet(folder / "data" / "train-00000-of-00002.parquet", 0, 5)
    corpora.parquet(folder / "data" / "train-00001-of-00002.parquet", 5, 3)
    corpora.parquet(folder / "data" / "dev-00000-of-00001.parquet", 8, 2)
    corpora.parquet(folder / "other" / "a.parquet", 10, 1)
    (folder / "README.md").write_text(README)
    made = hub.repos["lab/speech"] = Repo()
    made.commit(files_of(folder))
    return made


def hub_config(tmp_path, kind="hf_parquet", repo="lab/speech", patience=0.05, **source):
    config = configured(tmp_path / "results", kind, repo=repo, **source)
    config["download"]["patience_minutes"] = patience
    return config


def listed(config):
    source = open_source(config)
    description = describe_source(source, config)
    manifest = Path(config["outdir"]) / "x" / "manifest"
    build_manifest(source, description, config, manifest)
    plans = [plan_of(*read_batch(manifest / f"{r['batch']}.json")) for r in read_batches(manifest / "batches.tsv")]
    return source, description, plans


def fetched(source, path, folder):
    file = next(file for file in source.list_files().files if file.path == path)
    folder.mkdir(parents=True, exist_ok=True)
    source.fetch(file, folder / file.key)
    return folder / file.key


def test_files_of_a_configuration_are_listed_at_a_commit(hub, repo, tmp_path):
    source, description, plans = listed(hub_config(tmp_path))
    assert description["revision"] == repo.main
    content = repo.commits[repo.main]
    assert {f["path"]: (f["sha256"], f["rows"], f["split"]) for f in description["files"]} == {
        "data/train-00000-of-00002.parquet": (sha256_bytes(content["data/train-00000-of-00002.parquet"]), 5, "train"),
        "data/train-00001-of-00002.parquet": (sha256_bytes(content["data/train-00001-of-00002.parquet"]), 3, "train"),
        "data/dev-00000-of-00001.parquet": (sha256_bytes(content["data/dev-00000-of-00001.parquet"]), 2, "validation"),
    }
    assert sorted(plan.rows for plan in plans) == [1, 2, 3, 4]
    asked = sum(line[3] for line in hub.requests("resolve/.*parquet"))
    assert asked < sum(len(data) for path, data in content.items() if path.startswith("data/")) * 1.01
    plan = next(plan for plan in plans if plan.split == "validation")
    path = fetched(source, plan.source_file, tmp_path / "raw")
    clips = list(source.read(plan, path, Counter()))
    assert [row["text"] for row, _ in clips] == [corpora.THAI[8 % 6], corpora.THAI[9 % 6]]
    assert {row["source_split"] for row, _ in clips} == {"validation"}


def test_another_configuration_and_one_that_is_not_there(repo, tmp_path):
    _, description, _ = listed(hub_config(tmp_path, config="other"))
    assert [f["path"] for f in description["files"]] == ["other/a.parquet"]
    with pytest.raises(SourceError, match='did you mean "other"'):
        listed(hub_config(tmp_path, config="othr"))
    with pytest.raises(SourceError, match="to some of: train, validation"):
        listed(hub_config(tmp_path, splits=["tset"]))


def test_gigaspeech2_of_a_gated_repository(hub, tmp_path, monkeypatch):
    corpora.gigaspeech2(tmp_path / "gs2")
    hub.repos["speechcolab/gigaspeech2"] = repo = Repo(gated=True)
    repo.commit(files_of(tmp_path / "gs2"))
    config = hub_config(tmp_path, "gigaspeech2", "speechcolab/gigaspeech2", language="th")
    source, description, plans = listed(config)
    assert {table["path"] for table in description["tables"]} == {
        "data/th/train_refined.tsv", "data/th/dev.tsv", "data/th/test.tsv"
    }  # fmt: skip
    for plan in plans:
        path = fetched(source, plan.source_file, tmp_path / "raw")
        assert sum(isinstance(data, bytes) for _, data in source.read(plan, path, Counter())) >= 1
    assert not hub.requests("train_raw")  # nothing that nobody asked for
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    before = len(hub.log)
    with pytest.raises(HubRefusedError) as caught:
        open_source(config).check_access()
    assert "Accept its terms on https://huggingface.co/datasets/speechcolab/gigaspeech2" in str(caught.value)
    assert len(hub.log) == before + 1  # and it is not asked again


@pytest.mark.parametrize(
    ("repo_name", "revision", "message"),
    [("lab/nothing", None, "there is no such data set"), ("lab/speech", "v9", "no such revision")],
)
def test_what_is_not_there_is_said_at_once(hub, repo, tmp_path, repo_name, revision, message):
    with pytest.raises(HubRefusedError, match=message):
        open_source(hub_config(tmp_path, repo=repo_name, revision=revision, patience=60)).fingerprint()
    assert len(hub.log) <= 2


def test_a_webdataset_of_the_hub(hub, tmp_path):
    corpora.webdataset(tmp_path / "wds" / "train-0.tar")
    hub.repos["lab/wds"] = repo = Repo()
    repo.commit(files_of(tmp_path / "wds"))
    source, _, plans = listed(hub_config(tmp_path, "webdataset", "lab/wds"))
    assert [plan.rows for plan in plans] == [None]
    path = fetched(source, "train-0.tar", tmp_path / "raw")
    assert len(list(source.read(plans[0], path, Counter()))) == 4


BIG = "data/train-00000-of-00002.parquet"


def test_a_connection_cut_in_the_middle_goes_on_where_it_was(hub, repo, tmp_path):
    size = len(repo.commits[repo.main][BIG])
    source = open_source(hub_config(tmp_path))
    file = next(file for file in source.list_files().files if file.path == BIG)
    hub.log.clear()
    hub.fail(BIG, method="GET", cut_after=size // 3)
    (tmp_path / "raw").mkdir()
    source.fetch(file, tmp_path / "raw" / "x")
    assert sha256_bytes((tmp_path / "raw" / "x").read_bytes()) == file.sha256
    assert not list((tmp_path / "raw").glob(".*"))


def test_a_restart_goes_on_where_the_killed_download_was(hub, repo, tmp_path):
    source = open_source(hub_config(tmp_path))
    file = next(file for file in source.list_files().files if file.path == BIG)
    (tmp_path / "raw").mkdir()
    half = repo.commits[repo.main][BIG][: file.size // 2]
    (tmp_path / "raw" / ".x.part").write_bytes(half)
    hub.log.clear()
    source.fetch(file, tmp_path / "raw" / "x")
    assert sum(line[3] for line in hub.requests(BIG, "GET")) == file.size - len(half)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "times": 9},
        {"status": 500, "times": 3},
        {"status": 429, "headers": {"RateLimit": '"api";r=0;t=0', "RateLimit-Policy": '"fixed window";"api";q=5;w=1'}},
        {"status": 429, "headers": {"Retry-After": "0"}, "times": 2},
    ],
)
def test_rate_limits_and_failures_of_the_server_are_waited_out(hub, repo, tmp_path, fault):
    source = open_source(hub_config(tmp_path, patience=1))
    file = next(file for file in source.list_files().files if file.path == BIG)
    hub.fail(BIG, method="GET", **fault)
    (tmp_path / "raw").mkdir()
    source.fetch(file, tmp_path / "raw" / "x")
    assert (tmp_path / "raw" / "x").stat().st_size == file.size


def test_a_server_that_stays_away_is_given_up_with_what_was_downloaded(hub, repo, tmp_path):
    source = open_source(hub_config(tmp_path, patience=0.01))
    file = next(file for file in source.list_files().files if file.path == BIG)
    hub.fail(BIG, method="GET", status=503, times=1000)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / ".x.part").write_bytes(b"begun")
    with pytest.raises(SourceError, match=r"gave no answer for 0.01 minutes.*503"):
        source.fetch(file, tmp_path / "raw" / "x")
    assert (tmp_path / "raw" / ".x.part").read_bytes() == b"begun"
    assert not (tmp_path / "raw" / "x").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_a_wrong_checksum_is_downloaded_once_more(hub, repo, tmp_path, times):
    source = open_source(hub_config(tmp_path))
    file = next(file for file in source.list_files().files if file.path == BIG)
    hub.fail(BIG, method="GET", damage=True, times=times)
    (tmp_path / "raw").mkdir()
    if times == 1:
        source.fetch(file, tmp_path / "raw" / "x")
        assert sha256_bytes((tmp_path / "raw" / "x").read_bytes()) == file.sha256
    else:
        with pytest.raises(SourceError, match="downloaded twice, but its checksum is"):
            source.fetch(file, tmp_path / "raw" / "x")
        assert not list((tmp_path / "raw").iterdir())


def test_a_file_too_large_for_plain_http_is_said(hub, repo, tmp_path):
    source = open_source(hub_config(tmp_path))
    file = replace(source.list_files().files[0], size=60_000_000_000)
    with pytest.raises(SourceError, match=r"has 60 GB, but the Hub serves at most 50 GB over HTTP"):
        source.fetch(file, tmp_path / "raw" / "x")


def test_a_refusal_in_the_middle_of_a_run_is_not_repeated(hub, repo, tmp_path):
    source = open_source(hub_config(tmp_path, patience=60))
    file = next(file for file in source.list_files().files if file.path == BIG)
    repo.gated = True
    client_token = "HF_TOKEN"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(client_token, "hf_expired")
        (tmp_path / "raw").mkdir()
        hub.log.clear()
        with pytest.raises(HubRefusedError, match="gated"):
            source.fetch(file, tmp_path / "raw" / "x")
    assert len(hub.log) == 1


def test_the_revision_may_move_while_it_is_read(hub, repo, tmp_path):
    first = repo.main
    source = open_source(hub_config(tmp_path))
    commit = source.fingerprint()
    repo.commit({"README.md": b"all gone"})
    assert commit == first
    described = describe_source(source, hub_config(tmp_path))
    assert described["revision"] == first
    assert len(described["files"]) == 3
    assert fetched(source, BIG, tmp_path / "raw").stat().st_size == len(repo.commits[first][BIG])


def test_a_new_commit_changes_the_batches_of_its_files_alone(hub, repo, tmp_path):
    config = hub_config(tmp_path)
    listed(config)
    manifest = tmp_path / "results" / "x" / "manifest"
    before = {p.name: p.read_bytes() for p in manifest.glob("train-*.json")}
    corpora.parquet(tmp_path / "repo" / "data" / "train-00001-of-00002.parquet", 20, 3)
    corpora.parquet(tmp_path / "repo" / "data" / "train-00002-of-00003.parquet", 30, 1)
    repo.commit(files_of(tmp_path / "repo"))
    listed(config)
    after = {p.name: p.read_bytes() for p in manifest.glob("train-*.json")}
    assert len(after) == len(before) + 1
    changed = {name for name in before if before[name] != after[name]}
    assert len(changed) == 1
    assert next(iter(changed)).startswith("train-00001")


GOAL = "published/UPLOADED.json"


def test_a_run_keeps_its_commit_until_it_is_complete(hub, repo, tmp_path):
    """The newest commit is asked for when a run begins anew, not when it goes on."""
    config = hub_config(tmp_path)
    run_dir = tmp_path / "results" / "x"
    said = []
    first = current_revision(config, run_dir, GOAL, said.append)
    assert first == repo.main
    described = {"state": first, "revision": first, "asked_for": asked_for(config["source"])}
    write_json(run_dir / "source.json", described)
    second = repo.commit({"README.md": b""})
    hub.log.clear()
    assert current_revision(config, run_dir, GOAL, said.append) == first
    assert not hub.log
    write_json(run_dir / "published" / "UPLOADED.json", {"source_revision": "of an earlier commit"})
    assert current_revision(config, run_dir, GOAL, said.append) == first
    write_json(run_dir / "published" / "UPLOADED.json", {"source_revision": first})
    assert current_revision(config, run_dir, GOAL, said.append) == second
    other = hub_config(tmp_path, revision=first[:10])
    assert current_revision(other, run_dir, GOAL, said.append) == first
    assert not said


def test_without_a_network_the_last_listing_counts(hub, repo, tmp_path, monkeypatch):
    monkeypatch.setattr("speechmill.sources.revision.MINUTES", 0.001)
    monkeypatch.setattr(retry, "PAUSES", (0.1,))
    config = hub_config(tmp_path)
    hub.close()
    said = []
    assert current_revision(config, tmp_path / "results" / "x", GOAL, said.append) == UNKNOWN
    assert "will query the revision again" in said[0]


def test_no_token_in_messages_and_addresses_without_queries(hub, repo, tmp_path):
    hub.fail("revision", status=418)
    with pytest.raises(HubRefusedError) as caught:
        open_source(hub_config(tmp_path)).fingerprint()
    assert "hf_loopback" not in str(caught.value)
    assert "?" not in str(caught.value)
