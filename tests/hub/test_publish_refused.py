"""Publishing to a Hub that says no: what to do is said once, nothing is lost, and no secret is told."""

from __future__ import annotations

import pytest

from speechmill.errors import SpeechmillError
from speechmill.publish.to_hub import check_target
from speechmill.ranking.removals import read_removals, speaker_key
from speechmill.storage.hub_client import HubRefusedError

from .publishing import NAME, Run, check, rows_of
from .server import Repo

pytestmark = pytest.mark.usefixtures("no_pauses")


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
    with pytest.raises(SpeechmillError, match="is damaged; run again"):
        strict.publish()
    strict.publish()
    tree = hub.repos[NAME].commits[hub.repos[NAME].main]
    assert {row["id"]: row["audio"]["bytes"] for row in rows_of(tree)} == {
        i: t["bytes"] for i, t in strict.truth.items()
    }
    hub.repos.clear()
    with pytest.raises(SpeechmillError, match=r"can no longer be downloaded .* enhanced again"):
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
    with pytest.raises(SpeechmillError, match="ranked before some of its clips were added to the list"):
        run.publish(removed={"clips": [next(iter(run.truth))], "speakers": []})
    with pytest.raises(SpeechmillError, match="has the data set demo, which other would replace"):
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
