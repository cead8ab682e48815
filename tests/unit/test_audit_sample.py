"""The sample of the listening audit: strata counted by others, the same clips however the tables are cut, and blind."""

import hashlib
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from speechmill.report.audit_sample import FORMAT, audit_sheet, choose_audit
from speechmill.report.examples import Example, Player, load_examples
from speechmill.report.summary import merge_ranking
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import ranking_schema

from .report_corpus import Corpus

THRESHOLD = 0.6


def make_rows(count=3000, seed=3):
    """Rows of every kind: accepted, rejected by closeness, by a gate, for what they are, duplicates, never ranked."""
    random = np.random.default_rng(seed)
    rows = []
    for n, closeness in enumerate(random.beta(4, 2, count).tolist()):
        row = {"id": hashlib.sha256(f"{seed} {n}".encode()).hexdigest()[:24], "closeness": closeness, "duration": 3.6}
        kind = n % 10
        if kind == 0:
            row |= {"state": "rejected", "criterion": "snr_db"}
        elif kind == 1:
            row |= {"state": "rejected", "criterion": ["held_out", "removed"][n % 20 // 10]}
        elif kind == 2:
            row |= {"state": "duplicate"}
        elif kind == 3:
            unranked = {"state": "rejected", "criterion": "speech_s"}
            row |= {"closeness": None} | [{"state": "errored", "criterion": None}, unranked][n % 20 // 10]
        else:
            accepted = closeness >= THRESHOLD
            row |= {"state": "accepted" if accepted else "rejected", "criterion": None if accepted else "closeness"}
        rows.append(row)
    return rows


def write(rows, path):
    schema = ranking_schema(["snr_db"])
    table = pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema=schema)
    write_table(table, path, row_group_size=500)
    return path


def expected(rows):
    """The clips of every stratum, by numpy."""
    accepted = [row for row in rows if row["state"] == "accepted"]
    rejected = [row for row in rows if row.get("criterion") == "closeness"]
    near = np.quantile([row["closeness"] for row in accepted], 0.25)
    below = np.quantile([row["closeness"] for row in rejected], 0.75)
    return {
        "far above": {row["id"] for row in accepted if row["closeness"] > near},
        "just above": {row["id"] for row in accepted if row["closeness"] <= near},
        "just below": {row["id"] for row in rejected if row["closeness"] >= below},
        "far below": {row["id"] for row in rejected if row["closeness"] < below},
        "gate": {row["id"] for row in rows if row.get("criterion") == "snr_db"},
    }


def test_each_stratum_gives_the_clips_with_the_smallest_reversed_ids(tmp_path):
    rows = make_rows()
    chosen = choose_audit([write(rows, tmp_path / "b.parquet")], 24)
    assert len(chosen) == 24
    for name, ids in expected(rows).items():
        clips = [one for one in chosen if one["stratum"] == name]
        assert {one["clips"] for one in clips} == {len(ids)}
        assert {one["sampled"] for one in clips} == {len(clips)}
        smallest = sorted(ids, key=lambda clip: clip[::-1])[: len(clips)]
        assert [one["row"]["id"] for one in clips] == smallest
    drawn = Counter(one["stratum"] for one in chosen)
    assert drawn == {"far above": 4, "just above": 6, "just below": 6, "far below": 4, "gate": 4}
    assert chosen[0]["row"].keys() == set(ranking_schema(["snr_db"]).names)


def test_the_sample_does_not_depend_on_files_and_grows_by_more_clips(tmp_path):
    rows = make_rows()
    files = [write(rows[n::7], tmp_path / f"{n}.parquet") for n in range(7)]
    whole = choose_audit([write(rows[::-1], tmp_path / "all.parquet")], 60)
    assert choose_audit(files, 60) == choose_audit(files[::-1], 60) == whole
    small = {one["row"]["id"] for one in choose_audit(files, 24)}
    assert small < {one["row"]["id"] for one in whole}


def test_what_a_small_stratum_leaves_goes_to_the_others(tmp_path):
    rows = [row for row in make_rows(400) if row.get("criterion") != "closeness"][:100]
    sizes = {
        name: len(ids)
        for name, ids in expected([*rows, {"id": "", "criterion": "closeness", "state": "", "closeness": 0}]).items()
    }
    path = write(rows, tmp_path / "b.parquet")
    chosen = choose_audit([path], 30)
    assert len(chosen) == 30
    assert {one["stratum"] for one in chosen} == {"far above", "just above", "gate"}
    everything = choose_audit([path], 200)
    ids = [one["row"]["id"] for one in everything]
    assert len(ids) == len(set(ids)) == sizes["far above"] + sizes["just above"] + sizes["gate"]
    assert all(one["sampled"] == one["clips"] for one in everything)


@pytest.mark.parametrize("count", [0, 24])
def test_no_clips_or_no_sheet_is_an_empty_sample(tmp_path, count):
    assert choose_audit([], count) == []
    assert choose_audit([write([], tmp_path / "b.parquet")], count) == []
    assert choose_audit([write(make_rows(50), tmp_path / "c.parquet")], 0) == []


def test_the_sheet_has_the_audio_of_its_clips(tmp_path):
    corpus = Corpus(tmp_path)
    chosen = choose_audit(corpus.ranking, 12)
    examples = load_examples({"audit": [one["row"] for one in chosen]}, corpus.enhanced)["audit"]
    facts = {"dataset": "demo", "profile_sha256": "a" * 64, "threshold": 0.5, "source_revision": None}
    sheet = json.loads(json.dumps(audit_sheet(chosen, examples, facts)))
    assert {name: sheet[name] for name in facts} == facts
    assert (sheet["format"], sheet["version"]) == (FORMAT, 1)
    of_clip = {one["row"]["id"]: (one, example) for one, example in zip(chosen, examples, strict=True)}
    assert len(sheet["clips"]) == 12
    for clip in sheet["clips"]:
        one, example = of_clip.pop(clip["id"])
        assert clip["published"] == example.published.audio
        assert (clip["original"] is None) == (one["row"]["variant"] == "original")
        assert (clip["stratum"], clip["clips"], clip["sampled"]) == (one["stratum"], one["clips"], one["sampled"])


def test_neither_the_order_nor_the_first_recording_tells_the_decision():
    rows = [row for row in make_rows(4000) if row["state"] == "accepted" or row.get("criterion") == "closeness"]
    player = Player("data:audio/flac;base64,", "data:image/png;base64,", 1.0)
    chosen = [{"row": row, "stratum": "just above", "clips": 9, "sampled": 9} for row in rows]
    facts = dict.fromkeys(("dataset", "profile_sha256", "threshold", "source_revision"))
    sheet = audit_sheet(chosen, [Example(row, player, player) for row in rows], facts)
    again = audit_sheet(chosen[::-1], [Example(row, player, player) for row in rows[::-1]], facts)
    assert sheet == again
    closeness = {row["id"]: row["closeness"] for row in rows}
    values = [closeness[clip["id"]] for clip in sheet["clips"]]
    first = np.array([clip["first"] == "published" for clip in sheet["clips"]])
    place = np.arange(len(values))
    bound = 4 / np.sqrt(len(values))  # standard errors of a correlation
    for a, b in ((place, values), (first, values), (place, first)):
        assert abs(np.corrcoef(a, b)[0, 1]) < bound
    assert abs(first.mean() - 0.5) < bound / 2


def test_the_merged_table_gives_the_sample_of_its_batches(tmp_path):
    corpus = Corpus(tmp_path)
    merge_ranking(corpus.ranking, tmp_path / "all.parquet")
    assert choose_audit([tmp_path / "all.parquet"], 9) == choose_audit(corpus.ranking, 9)
