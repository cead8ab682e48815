"""Publish targets: what each keeps, where a run ends, and how a published data set is found again."""

import pytest

from speechmill.config import validate_config
from speechmill.publish.target import TARGETS, published_by, target_of

from ..runs import ROOT

CONFIG = ROOT / "config"
HUB = {"kind": "hub", "repo": "lab/tiny"}


def target(publish, **changes):
    config = {"dataset": "tiny", "source": {"kind": "folder", "path": "."}, "publish": publish}
    return target_of(validate_config(config | changes, CONFIG))


@pytest.mark.parametrize(
    ("publish", "goal"),
    [
        ({"kind": "none"}, "report/summary.json"),
        ({"kind": "folder"}, "published/UPLOADED.json"),
        (HUB, "published/UPLOADED.json"),
    ],
)
def test_a_run_ends_with_its_targets_file(publish, goal):
    found = target(publish)
    assert (found.goal, found.kind) == (goal, publish["kind"])


def test_the_hub_alone_sends_ahead_and_deletes_audio():
    assert target(HUB).sends_ahead
    assert not target(HUB | {"shuffle": "corpus"}).sends_ahead
    assert not target({"kind": "folder", "shuffle": "batch"}).sends_ahead
    assert target(HUB, keep_enhanced=False).deletes_audio
    assert not target(HUB, keep_enhanced=True).deletes_audio
    assert not target({"kind": "folder"}, keep_enhanced=False).deletes_audio


def test_what_was_published_is_found_by_its_sentinel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = {"kind": "folder", "target": "out"}
    assert published_by(folder).address(folder) == str(tmp_path / "out")
    assert published_by(folder).export_option(folder) is None
    (tmp_path / "out").mkdir()
    assert published_by(folder).export_option(folder) == "--data-set out"
    hub = {"kind": "hub", "target": "https://huggingface.co/datasets/a/b", "repository": "a/b", "tag": "v2"}
    assert published_by(hub).address(hub) == "https://huggingface.co/datasets/a/b, tag v2"
    assert "hf download --repo-type dataset a/b --revision v2" in published_by(hub).export_option(hub)


def test_every_kind_of_the_schema_has_a_target():
    from speechmill.config import load_schema

    assert set(load_schema(CONFIG)["properties"]["publish"]["properties"]["kind"]["enum"]) == TARGETS.keys()
