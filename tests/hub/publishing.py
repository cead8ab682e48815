"""A small run that is published to a loopback Hub, and what has to be there at the end."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from speechmill.publish import repository
from speechmill.publish.survey import Batch
from speechmill.publish.to_hub import publish_hub, send_batch
from speechmill.storage.files import read_json, write_json

from ..runs import ROOT
from ..unit.published import Run as FolderRun
from .server import Hub, entry

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
from speechmill.publish.to_hub import publish_hub, send_batch
from speechmill.publish.repository import Repository
from speechmill.publish.survey import Batch
from speechmill.storage.files import read_json
from speechmill.utils import retry
retry.PAUSES = (0.05, 0.2)
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
