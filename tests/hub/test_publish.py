"""Publishing to a Hub with the real client: what is there at the end, however often it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechmill.files import read_json
from speechmill.publish import card, repository
from speechmill.publish.hub import publish_hub, send_batch
from speechmill.publish.shards import Batch, origin_of

from ..unit.test_publish import METRICS
from ..unit.test_publish import Run as FolderRun
from .server import Hub, entry

NAME = "lab/clean"
OURS = ("data/", "scores/")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(card, "declared_metrics", lambda: {"snr_db": SimpleNamespace(unit="dB", description="")})
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class Run(FolderRun):
    """The results of a run that is published to `lab/clean`."""

    def __init__(self, directory: Path, **changes):
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory, **changes)
        self.folder = directory / "on_hub"
        self.sentinel = self.folder / "UPLOADED.json"
        settings = {"kind": "hub", "repo": NAME, "visibility": "private", "uploads": 2, "patience_minutes": 0.2}
        self.config = self.config | {"keep_enhanced": True, "publish": self.config["publish"] | settings}

    def tables(self) -> list[Batch]:
        return [
            Batch(name, ranking, (enhanced,), origin_of(enhanced), origin_of(enhanced))
            for name, enhanced, ranking in self.batches
        ]

    def publish(self, **changes) -> dict:
        given = {"profile": self.profile, "summary": self.summary, "source": self.source, "config": self.config}
        return publish_hub(self.tables(), **(given | changes), folder=self.folder, sentinel=self.sentinel)

    def send(self) -> list[dict]:
        repository.Repository(NAME, 0.2).open("private")  # as preflight does
        sent = [send_batch(batch, self.profile, self.config, self.folder) for batch in self.tables()]
        return [shard for shards in sent for shard in shards]


def check_complete(hub: Hub, run: Run, tag: str | None = None) -> dict:
    """The repository's `main` and tag hold exactly what the sentinel lists, which was written last."""
    repo, sentinel = hub.repos[NAME], read_json(run.sentinel)
    assert sentinel["commit"] == repo.tags[tag or sentinel["tag"]] == repo.main
    tree = repo.commits[repo.main]
    listed = {f["path"]: (f["sha256"], f["size"]) for f in sentinel["files"]}
    there = {path: entry(path, data) for path, data in tree.items() if path != ".gitattributes"}
    assert there.keys() == listed.keys()
    for path, file in there.items():
        if "lfs" in file:
            assert (file["lfs"]["oid"], file["size"]) == listed[path]
    manifest = json.loads(tree["manifest.json"])
    assert [f["path"] for f in manifest["files"]] == [p for p in sorted(listed) if p.startswith(OURS)]
    ids = [row["id"] for row in rows_of(tree)]
    assert sorted(ids) == sorted(run.truth)
    return sentinel


def rows_of(tree: dict[str, bytes]) -> list[dict]:
    import io

    import pyarrow.parquet as pq

    shards = (data for path, data in sorted(tree.items()) if path.startswith("data/"))
    return [row for data in shards for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def writes(hub: Hub) -> list[tuple]:
    """Requests that changed something, or tried to."""
    return [line for line in hub.log if line[0] in ("PUT", "POST") and "preupload" not in line[1]]


def test_a_version_is_sent_committed_verified_and_tagged(hub, tmp_path):
    run = Run(tmp_path)
    sent = run.send()
    assert not hub.requests("/commit/")
    content = run.publish()
    assert check_complete(hub, run) == content
    assert {f["path"]: f["sha256"] for f in sent}.items() <= {f["path"]: f["sha256"] for f in content["files"]}.items()
    assert len(METRICS) == 3
