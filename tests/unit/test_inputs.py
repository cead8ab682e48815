"""What the rules of the workflow read: batches, states of other runs, the source's state and the ranking profile."""

import logging
import os
from types import SimpleNamespace

import pytest

from speechmill.config import validate_config
from speechmill.errors import ConfigError
from speechmill.publish.target import target_of
from speechmill.runs import inputs
from speechmill.runs.session import Session
from speechmill.sources.revision import UNKNOWN
from speechmill.storage.hub_client import HubRefusedError

from ..runs import ROOT

CONFIG = ROOT / "config"
HEADER = "batch\tclips\tseconds\tsource_file\n"


def configured(tmp_path, **changes):
    (tmp_path / "corpus").mkdir(exist_ok=True)
    given = {"dataset": "tiny", "source": {"kind": "folder", "path": str(tmp_path / "corpus")}}
    return validate_config(given | changes, CONFIG)


def test_batches_are_read_again_only_when_their_file_changes(tmp_path, monkeypatch):
    reads = []
    real = inputs.read_batches
    monkeypatch.setattr(inputs, "read_batches", lambda path: reads.append(path) or real(path))
    table = tmp_path / "batches.tsv"
    table.write_text(f"{HEADER}b0\t3\t1.0\ta.flac\n")
    assert inputs.batch_rows(table).keys() == inputs.batch_rows(str(table)).keys() == {"b0"}
    assert len(reads) == 1
    table.write_text(f"{HEADER}b0\t3\t1.0\ta.flac\nb1\t2\t1.0\tb.flac\n")
    assert inputs.batch_rows(table).keys() == {"b0", "b1"}
    assert len(reads) == 2


def test_another_run_counts_by_its_duplicates_and_a_list_by_itself(tmp_path):
    run, clips, missing = tmp_path / "run", tmp_path / "clips.txt", tmp_path / "missing"
    mark = run / "ledger" / "duplicates.parquet"
    mark.parent.mkdir(parents=True)
    mark.touch()
    clips.touch()
    os.utime(mark, ns=(1, 1_000_000_000))
    os.utime(clips, ns=(1, 2_000_000_000))
    paths = [str(run), str(clips), str(missing)]
    assert inputs.state_of_others(paths) == [1_000_000_000, 2_000_000_000, None]
    (run / "ledger" / "other.parquet").touch()
    assert inputs.state_of_others(paths)[0] == 1_000_000_000


def test_what_is_kept_follows_from_keep_enhanced_and_the_target(tmp_path):
    def kept(**changes):
        config = configured(tmp_path, **changes)
        return set(inputs.kept_files(config, target_of(config))) - set(inputs.FILES_OF_BATCHES)

    hub = {"kind": "hub", "repo": "lab/tiny"}
    assert kept(keep_enhanced=False) == set()
    assert kept(keep_enhanced=True) == {"enhanced/{batch}.parquet"}
    assert kept(keep_enhanced=False, publish=hub) == {"published/sent/{batch}.json"}


def test_sources_of_hubs_are_fetched(tmp_path):
    assert not inputs.is_fetched(configured(tmp_path))
    assert inputs.is_fetched(configured(tmp_path, source={"kind": "hf_parquet", "repo": "a/b"}))
    assert inputs.is_fetched(configured(tmp_path, source={"kind": "common_voice", "datacollective": "cv"}))


def test_the_fingerprint_changes_with_a_file_of_the_source(tmp_path):
    config = configured(tmp_path)

    def fingerprint():
        return inputs.source_fingerprint(config, tmp_path / "run", "report/summary.json", pytest.fail)

    (tmp_path / "corpus" / "a.wav").write_bytes(b"x")
    first, refused = fingerprint()
    assert refused is None
    assert fingerprint() == (first, None)
    (tmp_path / "corpus" / "b.wav").write_bytes(b"x")
    assert fingerprint()[0] not in (first, UNKNOWN)


def test_a_source_that_is_not_there_has_no_known_state(tmp_path):
    config = configured(tmp_path)
    (tmp_path / "corpus").rmdir()
    assert inputs.source_fingerprint(config, tmp_path, "x", pytest.fail) == (UNKNOWN, None)


def test_a_session_asks_for_the_source_once_and_keeps_what_a_hub_refuses(tmp_path, monkeypatch):
    asked = []

    def refuse(config, run_dir, goal, warn):
        asked.append(goal)
        raise HubRefusedError("a/b: there is no such data set")

    monkeypatch.setattr("speechmill.sources.revision.current_revision", refuse)
    config = configured(tmp_path, publish={"kind": "none"})
    backend = SimpleNamespace(problems=list)
    session = Session(config, tmp_path / "run", CONFIG, backend, logging.getLogger("test"))
    assert session.source_fingerprint == session.source_fingerprint == UNKNOWN
    assert asked == ["report/summary.json"]
    assert session.refused == ["a/b: there is no such data set"]


def test_the_profile_is_its_content_wherever_it_is(tmp_path):
    profile = CONFIG / "ranking" / "asr.yaml"
    by_name = inputs.ranking_profile(configured(tmp_path), CONFIG)
    copy = tmp_path / "copy.yaml"
    copy.write_bytes(profile.read_bytes())
    by_path = inputs.ranking_profile(configured(tmp_path, rank={"profile": str(copy)}), CONFIG)
    assert by_name == by_path
    assert by_name["groups"]
    with pytest.raises(ConfigError, match="no profile 'asrr'"):
        inputs.ranking_profile(configured(tmp_path, rank={"profile": "asrr"}), CONFIG)


def test_a_ranking_profile_that_is_not_valid_is_found_at_each_start(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\n")
    (problem,) = inputs.ranking_problems(configured(tmp_path, rank={"profile": str(mine)}), CONFIG)
    assert "mine.yaml is not valid" in problem
    assert "missing setting groups" in problem
    (problem,) = inputs.ranking_problems(configured(tmp_path, rank={"profile": "tss"}), CONFIG)
    assert 'did you mean "tts"' in problem
    assert inputs.ranking_problems(configured(tmp_path), CONFIG) == []
