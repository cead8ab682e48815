"""Two runs held against each other: counts by construction, joins and statistics by others."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from speechmill.analysis import compare as module
from speechmill.analysis.compare import compare, ks_statistic
from speechmill.analysis.compare_text import comparison_text
from speechmill.cli.main import main
from speechmill.config import DECIDING, deciding_settings, validate_config
from speechmill.errors import SpeechmillError
from speechmill.ranking.states import STATES
from speechmill.sources.manifest import clip_id
from speechmill.storage.files import read_json, write_json
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import ranking_schema

from .report_corpus import EVIL, METRICS, Corpus

ROOT = Path(__file__).resolve().parents[2]


def make_run(folder, rows, metrics=("snr_db",), **summary):
    """The report of a run with these rows; states and reasons are counted."""
    schema = ranking_schema(metrics)
    whole = [dict.fromkeys(schema.names) | {"closeness": 0.5} | row for row in rows]
    write_table(pa.Table.from_pylist(whole, schema=schema), folder / "report" / "ranking.parquet", row_group_size=3)
    states = Counter(row["state"] for row in rows)
    content = {
        "dataset": "demo",
        "clips": {"input": len(rows), **{state: states[state] for state in STATES}},
        "hours": {"input": sum(row.get("input_duration", 0) for row in rows) / 3600, "accepted": 0.5},
        "rejected_by": Counter(row["criterion"] for row in whole if row["criterion"]),
        "errored_by": {},
        "variants": {"original": len(rows)},
        "config": {"rank": {"threshold": 0.5}},
        "versions": {"numpy": "2.0"},
        "timing": {"score": {"jobs": 2, "seconds": 1800.0}},
    }
    write_json(folder / "report" / "summary.json", content | summary)
    return folder


def clip(number, state="accepted", snr=0.0, **more):
    return {"id": clip_id("demo", str(number), None), "state": state, "snr_db": snr, "input_duration": 3600.0, **more}


@pytest.fixture
def runs(tmp_path):
    """Clips 0 to 9, and 2 to 11 in another order: two rejected, one of them measured anew, one no longer measured."""
    before = [clip(n, snr=float(n)) for n in range(10)]
    after = [clip(n, snr=float(n)) for n in reversed(range(2, 12))]
    after[0] |= {"state": "rejected", "criterion": "closeness"}  # 11, new
    after[2] |= {"state": "rejected", "criterion": "closeness", "snr_db": 3.0}  # 9
    after[5] |= {"snr_db": None}  # 6
    return (
        make_run(tmp_path / "before", before),
        make_run(
            tmp_path / "after",
            after,
            config={"rank": {"threshold": 0.6, "profile": "asr"}},
            versions={"torch": "2.11"},
            timing={"score": {"jobs": 2, "seconds": 3600.0}},
        ),
    )


def test_differences_are_those_that_were_made(runs):
    found = compare(*runs)
    assert found["changed"]
    assert found["clips"]["rejected"] == {
        "before": 0,
        "after": 2,
        "difference": 2,
        "percent_before": 0.0,
        "percent_after": 20.0,
        "percent_points": 20.0,
    }
    assert found["hours"]["accepted"] == {"before": 10.0, "after": 8.0, "difference": -2.0}
    assert found["rejected_by"] == {"closeness": {"before": 0, "after": 2, "difference": 2}}
    assert (found["clips_in_both"], found["clips_only_before"], found["clips_only_after"]) == (8, 2, 2)
    assert found["transitions"]["accepted"] == {"accepted": 7, "rejected": 1, "errored": 0, "duplicate": 0}
    snr = next(one for one in found["metrics"] if one["metric"] == "snr_db")
    assert snr["in_both"] == {"clips": 7, "changed": 2, "mean_difference": (3.0 - 9.0) / 7}
    assert snr["before"]["mean"] == 4.5
    assert found["rates"]["score"]["before"] == {"jobs": 2, "seconds": 1800.0, "hours_per_hour": 20.0}
    assert found["rates"]["score"]["after"]["hours_per_hour"] == 10.0
    assert found["configuration"] == {"rank.profile": {"after": "asr"}, "rank.threshold": {"before": 0.5, "after": 0.6}}
    assert found["versions"] == {"numpy": {"before": "2.0"}, "torch": {"after": "2.11"}}


STATE = st.sampled_from(STATES)
VALUE = st.none() | st.sampled_from([0.0, 1.0, -2.5]) | st.floats(-1e6, 1e6)
RUN = st.dictionaries(st.integers(0, 12), st.tuples(STATE, VALUE), max_size=12)


@settings(max_examples=40, deadline=None)
@given(RUN, RUN, st.randoms(use_true_random=False), st.integers(1, 5))
def test_clips_are_joined_as_dictionaries_join_them(before, after, random, piece):
    numbers = list(after)
    random.shuffle(numbers)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "READ_ROWS", piece)
        found = compare(
            make_run(Path(folder, "a"), [clip(n, *before[n]) for n in before]),
            make_run(Path(folder, "b"), [clip(n, *after[n]) for n in numbers]),
        )
    both = before.keys() & after.keys()
    expected = Counter((before[n][0], after[n][0]) for n in both)
    assert {(a, b): n for a, line in found["transitions"].items() for b, n in line.items() if n} == expected
    assert found["clips_only_before"] == len(before) - len(both)
    assert found["clips_only_after"] == len(after) - len(both)
    snr = next(one for one in found["metrics"] if one["metric"] == "snr_db")
    pairs = [(before[n][1], after[n][1]) for n in both]
    differences = [b - a for a, b in pairs if a is not None and b is not None]
    assert snr["in_both"]["clips"] == len(differences)
    assert snr["in_both"]["changed"] == sum(a != b for a, b in pairs)
    assert snr["in_both"]["mean_difference"] == (
        pytest.approx(np.mean(differences), rel=1e-9, abs=1e-6) if differences else None
    )
    # Distributions are of ranked clips: duplicates do not count.
    values = [
        sorted(value for state, value in run.values() if value is not None and state != "duplicate")
        for run in (before, after)
    ]
    for side, side_values in zip(("before", "after"), values, strict=True):
        assert snr[side]["clips"] == len(side_values)
        if side_values:
            assert snr[side]["p95"] == pytest.approx(np.quantile(side_values, 0.95), abs=1e-9)
    expected_ks = ks_2samp(*values).statistic if all(values) else None
    assert snr["ks_statistic"] == pytest.approx(expected_ks, abs=1e-12)


def test_the_distance_is_that_of_scipy_over_many_pieces(monkeypatch):
    monkeypatch.setattr(module, "READ_ROWS", 700)
    random = np.random.default_rng(5)
    for first, second in (
        (random.normal(0, 1, 5000), random.normal(0.2, 1.1, 3100)),
        (random.integers(0, 9, 4000).astype(float), random.integers(1, 8, 900).astype(float)),  # many ties
        (np.zeros(10), np.ones(3)),
    ):
        found = ks_statistic(np.sort(first), np.sort(second))
        assert found == pytest.approx(ks_2samp(first, second).statistic, abs=1e-12)


def test_what_moved_most_comes_first(tmp_path):
    rows = [clip(n, a=float(n), b=float(n), c=float(n)) for n in range(10)]
    moved = [row | {"b": row["b"] + 100, "c": row["c"] + 2} for row in rows]
    found = compare(*(make_run(tmp_path / name, of, ("a", "b", "c")) for name, of in (("x", rows), ("y", moved))))
    assert [one["metric"] for one in found["metrics"][:2]] == ["b", "c"]
    assert [one["ks_statistic"] for one in found["metrics"][:2]] == pytest.approx([1.0, 0.2])
    text = comparison_text(found)
    assert text.index("\n  b ") < text.index("\n  c ")
    assert "\n  a " not in text


def test_the_same_run_twice_has_not_changed(tmp_path, capsys):
    Corpus(tmp_path / "one").report()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    text = capsys.readouterr().out
    assert "Nothing changed: clips, states, metrics, settings and versions are the same." in text
    assert "Configuration" not in text


def test_real_reports_are_compared_for_people_and_for_programs(tmp_path, capsys):
    one, two = Corpus(tmp_path / "one"), Corpus(tmp_path / "two", threshold=0.8, seed=2)
    one.report()
    two.report()
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    states = [Counter(row["state"] for row in corpus.rows) for corpus in (one, two)]
    for state in STATES:
        sides = [found["clips"][state][side] for side in ("before", "after")]
        assert sides == [counts[state] for counts in states]
        assert sum(found["transitions"][state].values()) == sides[0]
    assert read_json(one.summary)["config"] == {"dataset": "demo", "source": {"path": EVIL}}
    assert found["configuration"] == {}
    assert found["facts"]["threshold"] == {"before": 0.5, "after": 0.8}
    assert {one["metric"] for one in found["metrics"]} == {*METRICS, "closeness", "duration"}
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    assert {"closeness", "threshold", "0.8"} <= set(text.split())


def test_text_of_strangers_moves_no_terminal(tmp_path):
    rows = [clip(1, "rejected", criterion="\x1b[2J" + EVIL)]
    names = {"config": {"source": {"\x9b2J\u202e": "[red]x[/red]\r\n" + EVIL}}, "versions": {"\x07": "\x1b]0;x\x07"}}
    before = make_run(tmp_path / "a", [clip(1, **{"\x1b[1m": 1.0})], ("\x1b[1m", "snr_db"))
    text = comparison_text(compare(before, make_run(tmp_path / "b", rows, **names)))
    assert all(c == "\n" or c.isprintable() for c in text)
    assert "[red]x[/red]" in text


def test_an_older_summary_leaves_the_configuration_unknown(runs):
    summary = read_json(runs[0] / "report" / "summary.json")
    del summary["config"]
    write_json(runs[0] / "report" / "summary.json", summary)
    found = compare(*runs)
    assert found["configuration"] is None
    assert "Configuration: unknown" in comparison_text(found)


def test_runs_of_other_clips_and_empty_runs_are_compared(tmp_path):
    some = make_run(tmp_path / "a", [clip(n) for n in range(3)])
    others = make_run(tmp_path / "b", [clip(n, "errored", None) for n in range(5, 9)])
    assert compare(some, others)["clips_in_both"] == 0
    assert "0 clips are in both runs, 3 only before, 4 only after" in comparison_text(compare(some, others))
    nothing = make_run(tmp_path / "c", [])
    assert compare(nothing, some)["clips_only_after"] == 3
    assert not compare(nothing, nothing)["changed"]


def test_clips_of_failed_batches_have_a_state_but_no_row(tmp_path):
    rows = [clip(n) for n in range(3)]
    counts = {"input": 5, "accepted": 3, "rejected": 0, "errored": 2, "duplicate": 0}
    failed = make_run(tmp_path / "b", rows, clips=counts, failed_batches={"b7": 2}, errored_by={"batch_failed": 2})
    found = compare(make_run(tmp_path / "a", rows), failed)
    assert found["clips"]["errored"]["difference"] == 2
    assert found["clips_in_both"] == 3


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("summary.json", Path.unlink, "no finished run here"),
        ("summary.json", lambda path: path.write_text("{"), "summary.json is damaged"),
        ("summary.json", lambda path: path.write_text("[]"), "not a summary that can be compared"),
        ("summary.json", lambda path: edit_summary(path, clips={"input": "many"}), "in clips"),
        ("summary.json", lambda path: edit_summary(path, timing={"score": 3}), "in timing score"),
        ("summary.json", lambda path: edit_summary(path, failed_batches={"b0": 4}), "do not have the same clips"),
        ("ranking.parquet", Path.unlink, "it is missing"),
        ("ranking.parquet", lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be compared"),
        (
            "ranking.parquet",
            lambda path: edit_table(path, "id", pa.array([f"{n:024x}" for n in [*range(9), 8]])),
            "twice",
        ),
        ("ranking.parquet", lambda path: edit_table(path, "id", pa.array(["x" * 24] * 10)), "not of the form"),
        ("ranking.parquet", lambda path: edit_table(path, "id", pa.array(["abc"] * 10)), "cannot be compared"),
        ("ranking.parquet", lambda path: edit_table(path, "state", pa.array(["passed"] * 10)), "none of accepted"),
        ("ranking.parquet", lambda path: edit_table(path, "state", pa.array([1] * 10)), "cannot be compared"),
        ("ranking.parquet", lambda path: edit_table(path, "closeness", None), "no column closeness"),
    ],
)
def test_what_cannot_be_compared_is_one_message(runs, capsys, file, damage, says):
    damage(runs[1] / "report" / file)
    with pytest.raises(SpeechmillError, match=says):
        compare(*runs)
    assert main(["compare", *map(str, runs)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(runs[1]) in told


def edit_summary(path, **changes):
    write_json(path, read_json(path) | changes)


def edit_table(path, name, values):
    table = pq.read_table(path)
    at = table.column_names.index(name)
    table = table.drop([name])
    pq.write_table(table if values is None else table.add_column(at, name, values), path)


def test_the_summary_keeps_what_decides_and_not_how_jobs_are_cut():
    given = yaml.safe_load((ROOT / "config" / "datasets" / "demo.yaml").read_text()) | {"dataset": "demo"}
    whole = validate_config(given, ROOT / "config")
    kept = deciding_settings(whole)
    assert set(kept) == set(DECIDING)
    assert kept["source"] == whole["source"]
    assert "batch_seconds" not in kept["enhance"].keys() | kept["score"].keys()
    assert "batch_seconds" in whole["enhance"]
