"""Clips that somebody asked to have removed: on the list, out of the ranking, out of what is published."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechmill.cli.main import main
from speechmill.errors import SpeechmillError
from speechmill.publish.survey import Batch
from speechmill.publish.to_folder import publish_folder
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.removals import add_removals, find_clips, read_removals, speaker_key
from speechmill.ranking.states import check_batch
from speechmill.tables.parquet_io import write_table

from .published import Run
from .test_decide import GOOD, PROFILE, duplicates_of, ledger_of, manifest_of, scores_of

STATES = {
    "good": {"speaker_id": "ann"},
    "copy": {"speaker_id": "ben"},
    "broken": {"speaker_id": "ann", "state": "errored", "error_class": "truncated", "message": "m"},
    "other": {"speaker_id": None},
}


def ranked(removed):
    ledger, scores = ledger_of(STATES), dict.fromkeys(("good", "copy", "other"), GOOD)
    duplicates = duplicates_of({"copy": "good"})
    table = rank_batch(ledger, manifest_of(list(STATES)), scores_of(scores), duplicates, PROFILE, "b", removed=removed)
    check_batch(list(STATES), ledger, table, "b")
    return {row["id"]: row for row in table.to_pylist()}


def test_removed_clips_are_rejected_whatever_else_is_known_of_them():
    states = {
        name: (row["state"], row["criterion"]) for name, row in ranked({"clips": ["copy"], "speakers": []}).items()
    }
    assert states == {
        "good": ("accepted", None),
        "copy": ("rejected", "removed"),
        "broken": ("errored", None),
        "other": ("accepted", None),
    }
    of_speaker = ranked({"clips": [], "speakers": [speaker_key("ann")]})
    assert {name for name, row in of_speaker.items() if row["criterion"] == "removed"} == {"good", "broken"}
    assert of_speaker["copy"]["state"] == "duplicate"  # the same recording, under another name
    assert ranked({"clips": [], "speakers": []}) == ranked(None)


def test_the_list_grows_and_a_damaged_one_stops_the_run(tmp_path):
    assert read_removals(tmp_path) == {"clips": [], "speakers": []}
    assert add_removals(tmp_path, {"clips": ["b"], "speakers": []})
    assert add_removals(tmp_path, {"clips": ["a"], "speakers": ["s"]})
    assert not add_removals(tmp_path, {"clips": ["a", "b"]})
    assert read_removals(tmp_path) == {"clips": ["a", "b"], "speakers": ["s"]}
    (tmp_path / "removed.json").write_text("{")
    with pytest.raises(SpeechmillError, match=r"cannot be read .* repair it"):
        read_removals(tmp_path)


def test_clips_are_found_by_id_source_id_and_speaker_and_unknown_ones_are_said(tmp_path):
    with pytest.raises(SpeechmillError, match="no ranked clips"):
        find_clips(tmp_path, ["x"], [])
    rows = {"id": ["i1", "i2", "i3"], "source_id": ["s1", "s2", None], "speaker_id": ["ann", "ann", "ben"]}
    rows["duplicate_of"] = pa.array([None, None, "kept"], pa.string())
    write_table(pa.table(rows), tmp_path / "ranking" / "b0.parquet")
    write_table(pa.table({name: [f"{name} of b1"] for name in rows}), tmp_path / "ranking" / "b1.parquet")
    assert find_clips(tmp_path, ["i3", "s1"], []) == ({"clips": ["i1", "i3", "kept"], "speakers": []}, 2)
    assert find_clips(tmp_path, [], ["ann"]) == ({"clips": ["i1", "i2"], "speakers": [speaker_key("ann")]}, 2)
    with pytest.raises(SpeechmillError, match="speaker_id, carl"):
        find_clips(tmp_path, ["i1"], ["carl"])


def test_nothing_of_a_removed_clip_is_published(tmp_path):
    run = Run(tmp_path)
    gone = next(iter(run.truth))
    for _, _, path in run.batches:
        table = pq.read_table(path).to_pylist()
        for row in table:
            if row["id"] == gone:
                row |= {"state": "rejected", "criterion": "removed", "text": "ลบข้อความนี้"}
        write_table(pa.Table.from_pylist(table, schema=pq.read_schema(path)), path)
    run.summary["clips"] |= {
        "accepted": run.summary["clips"]["accepted"] - 1,
        "rejected": run.summary["clips"]["rejected"] + 1,
    }
    batches = [Batch(name, ranking, (enhanced,)) for name, enhanced, ranking in run.batches]
    publish_folder(batches, run.profile, run.summary, run.source, run.config, run.target, run.sentinel)
    for path in run.target.rglob("*"):
        assert path.is_dir() or gone.encode() not in path.read_bytes()
    for path in (run.target / "scores").iterdir():
        table = pq.read_table(path)
        assert gone not in table["id"].to_pylist()
        assert "ลบข้อความนี้" not in table["text"].to_pylist()


def test_remove_names_what_is_missing(capsys):
    with pytest.raises(SystemExit):
        main(["remove", "demo"])
    assert "remove needs --clip or --speaker" in capsys.readouterr().err


def test_remove_puts_clips_on_the_list_and_starts_the_run_unless_later(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr("speechmill.runs.start.start", lambda plan, background: started.append(plan.run_dir) or 7)
    run = tmp_path / "results" / "demo"
    rows = {"id": ["i1", "i2"], "source_id": ["s1", "s2"], "speaker_id": ["ann", "ann"]}
    rows["duplicate_of"] = pa.array([None, None], pa.string())
    write_table(pa.table(rows), run / "ranking" / "b0.parquet")
    remove = ["remove", "demo", "--profile", "local", "--directory", str(tmp_path)]
    assert main([*remove, "--speaker", "ann", "--later"]) == 0
    assert "2 clips are on the list of removals" in capsys.readouterr().out
    assert read_removals(run) == {"clips": ["i1", "i2"], "speakers": [speaker_key("ann")]}
    assert started == []
    assert main([*remove, "--clip", "s2"]) == 7  # what the run ends with
    assert "1 clips were already on the list of removals" in capsys.readouterr().out
    assert started == [str(run)]
    assert main([*remove, "--clip", "nobody"]) == 1
    assert "no clip has the id or source_id" in capsys.readouterr().err
