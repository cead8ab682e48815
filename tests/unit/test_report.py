"""The report: numbers against direct computation, and charts."""

import math
from collections import Counter
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from speechmill.errors import LedgerError
from speechmill.report import plots, summary
from speechmill.report.summary import funnel, merge_ranking, overview
from speechmill.storage.files import read_json
from speechmill.tables.parquet_io import conform, write_table
from speechmill.tables.schemas import RANKING, ranking_schema
from speechmill.utils import statistics
from speechmill.utils.statistics import Distribution

from .report_corpus import METRICS, SKIPPED, SOURCE, TIMING, VERSIONS, Corpus, ranked


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    made = Corpus(tmp_path_factory.mktemp("report"))
    made.report()
    return made


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e12, 1e12) | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]), max_size=60),
    st.floats(0, 1),
)
def test_quantiles_of_few_values_are_exact(values, share):
    found = Distribution()
    found.add(np.array(values[: len(values) // 2]))
    found.add(np.array(values[len(values) // 2 :]))
    finite = np.array([v for v in values if np.isfinite(v)])
    assert found.count == len(finite)
    if len(finite):
        assert found.quantile(share) == pytest.approx(np.quantile(finite, share), rel=1e-9, abs=1e-3)
    else:
        assert found.quantile(share) is None


def test_many_values_take_bounded_memory_within_the_documented_error(monkeypatch):
    monkeypatch.setattr(statistics, "MAX_DISTINCT", 2_000)
    monkeypatch.setattr(statistics, "PENDING", 5_000)
    random = np.random.default_rng(3)
    values = np.concatenate([random.normal(12, 8, 60_000), -random.lognormal(-9, 2, 20_000), np.zeros(5_000)])
    random.shuffle(values)
    found, again = Distribution(), Distribution()
    for part in np.array_split(values, 40):
        found.add(part)
    for part in np.array_split(np.sort(values), 7):
        again.add(part)
    steps, counts = found.steps()
    assert len(steps) <= 2_000
    assert counts.sum() == len(values)
    assert 4 <= found.bits < 52
    # The same whatever the order and grouping.
    assert found.bits == again.bits
    assert np.array_equal(steps, again.steps()[0])
    assert np.array_equal(counts, again.steps()[1])
    for share in (0, 0.05, 0.31, 0.5, 0.95, 1):
        exact = np.quantile(values, share)
        assert abs(found.quantile(share) - exact) <= abs(exact) * 2.0**-found.bits + 1e-9


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0]), max_size=200),
    st.integers(3, 40),
    st.integers(1, 60),
)
def test_values_are_rounded_as_little_as_needed(values, most, pending):
    with mock.patch.multiple(statistics, MAX_DISTINCT=most, PENDING=pending):
        found = Distribution()
        for value in values:
            found.add(np.array([value]))
        steps, counts = found.steps()

    def rounded(value, bits):  # toward zero, by the definition of a double
        mantissa, exponent = math.frexp(value)
        return math.ldexp(math.trunc(math.ldexp(mantissa, bits + 1)), exponent - bits - 1)

    # Fewer than 0 bits would round away from powers of two.
    bits = next((b for b in range(52, -1, -1) if len({rounded(v, b) for v in values}) <= most), -1)
    assume(bits >= 0)
    assert found.bits == bits
    assert dict(zip(steps.tolist(), counts.tolist(), strict=True)) == Counter(rounded(v, bits) for v in values)
    assert steps.tolist() == sorted(steps.tolist())


def test_the_summary_agrees_with_direct_computation(corpus):
    result = read_json(corpus.summary)
    states = Counter(row["state"] for row in corpus.rows)
    assert result["clips"] == {"input": 60, **states}
    assert set(states) == {"accepted", "rejected", "errored", "duplicate"}
    for state, key, column in (("rejected", "rejected_by", "criterion"), ("errored", "errored_by", "error_class")):
        assert result[key] == Counter(row[column] for row in corpus.rows if row["state"] == state)
    assert result["hours"]["input"] == pytest.approx(60 * 0.65 / 3600, abs=1e-6)
    assert result["hours"]["accepted"] == pytest.approx(states["accepted"] * 0.4 / 3600, abs=1e-6)
    rows = ranked(corpus)
    assert result["variants"] == Counter(row["variant"] for row in rows)
    assert sorted(result["metrics"]) == sorted(METRICS)
    for name, quantiles in result["metrics"].items():
        values = [row[name] for row in rows if row[name] is not None]
        expected = np.quantile(values, [0.05, 0.5, 0.95])
        assert [quantiles[q] for q in ("p5", "p50", "p95")] == pytest.approx(list(expected), rel=1e-5)
    assert result["dataset"] == "demo"
    assert result["source_revision"] == SOURCE["revision"]
    assert result["profile_sha256"] == corpus.profile.sha256
    assert (result["threshold"], result["batches"]) == (0.5, 2)
    assert (result["versions"], result["timing"], result["skipped_metrics"]) == (VERSIONS, TIMING, SKIPPED)


def test_the_funnel_loses_every_clip_once_and_ends_with_the_accepted(corpus):
    found = overview(corpus.ranking)
    steps = funnel(found)
    states = Counter(row["state"] for row in corpus.rows)
    assert steps[-1].left == states["accepted"]
    assert sum(step.lost for step in steps) == 60 - states["accepted"]
    lost = {step.title: step.lost for step in steps}
    assert lost["Unfit before scoring"] == sum(row["criterion"] == "speech_s" for row in corpus.rows)
    assert lost["Fails a gate"] == sum(row["criterion"] == "input_snr_db" for row in corpus.rows)
    assert lost["Closeness below the threshold"] == sum(row["criterion"] == "closeness" for row in corpus.rows)
    assert found.failed_gates["duration"] == lost["Fails a gate"]
    assert found.closeness["ranked"].count == sum(found.closeness[p].count for p in ("accepted", "closeness", "gate"))


def test_a_clip_without_a_final_state_stops_the_report(corpus, tmp_path):
    table = pq.read_table(corpus.ranking[1])
    states = table["state"].to_pylist()
    states[3] = "passed"
    position = table.column_names.index("state")
    broken = tmp_path / "b1.parquet"
    write_table(table.set_column(position, RANKING.field("state"), pa.array(states)), broken)
    with pytest.raises(LedgerError, match="batch b1 does not balance"):
        overview([corpus.ranking[0], broken])


# The merged table


def test_the_merged_table_is_the_batches_one_after_the_other(corpus, tmp_path):
    table = pq.read_table(corpus.ranking[1])
    lacking = tmp_path / "b1.parquet"  # one metric is not there, one is null without a type
    empty = pa.nulls(table.num_rows, pa.null())
    table = table.drop(["a_new_metric"]).set_column(table.column_names.index("snr_db"), "snr_db", empty)
    pq.write_table(table, lacking)
    merge_ranking([corpus.ranking[0], lacking], tmp_path / "merged.parquet")
    merged = pq.read_table(tmp_path / "merged.parquet")
    assert merged.schema.names == [*RANKING.names, *sorted(METRICS)]
    gone = {"a_new_metric": None, "snr_db": None}
    cut = pq.read_metadata(corpus.ranking[0]).num_rows
    expected = [*corpus.rows[:cut], *(row | gone for row in corpus.rows[cut:])]
    assert merged.to_pylist() == [{name: row[name] for name in merged.schema.names} for row in expected]
    assert pq.read_table(corpus.table).to_pylist() == [
        {name: row[name] for name in merged.schema.names} for row in corpus.rows
    ]


def test_small_batches_share_a_row_group(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "ROW_GROUP", 25)
    merge_ranking([*corpus.ranking, *corpus.ranking], tmp_path / "merged.parquet")
    groups = pq.ParquetFile(tmp_path / "merged.parquet").metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert sum(sizes) == 120
    assert len(sizes) < 8
    assert max(sizes) <= 25
    assert pq.read_table(tmp_path / "merged.parquet")["id"].to_pylist() == [row["id"] for row in corpus.rows] * 2


@pytest.mark.parametrize("copied_rows", [1, 30])
def test_large_row_groups_are_copied_in_their_place(corpus, tmp_path, monkeypatch, copied_rows):
    """Files whose row groups are large, small, without rows, and with another metric, in turn."""
    monkeypatch.setattr(summary, "COPIED_ROWS", copied_rows)
    table = conform(pq.read_table(corpus.ranking[0]), ranking_schema(sorted(METRICS)))
    tables = [table, table.slice(0, 7), table.slice(0, 0), table.drop(["snr_db"]), table.slice(3), table.slice(5, 9)]
    files = [tmp_path / f"b{number}.parquet" for number in range(len(tables))]
    for part, file in zip(tables, files, strict=True):
        write_table(part, file, row_group_size=20)
    merge_ranking(files, tmp_path / "merged.parquet")
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    with pq.ParquetFile(tmp_path / "merged.parquet") as merged:
        assert merged.schema_arrow.equals(ranking_schema(sorted(METRICS)))
        names = merged.schema_arrow.names
        assert merged.read().to_pylist() == [{name: row.get(name) for name in names} for row in rows]
        groups = [merged.read_row_group(number) for number in range(merged.num_row_groups)]
    assert pa.concat_tables(groups).to_pylist() == pq.read_table(tmp_path / "merged.parquet").to_pylist()
    assert (len(groups) > 1) == (copied_rows == 1)


# Charts


def test_charts_count_every_value_and_draw_gates_and_bounds(corpus):
    found = overview(corpus.ranking)
    charts = {chart.title: chart for chart in plots.metric_charts(found, corpus.profile, {})}
    assert list(charts) == ["snr_db", "input_clip_ratio", "a_new_metric", "denoise_removed_db"]
    notes = " ".join(charts["snr_db"].notes)
    assert "Gate on input_snr_db ≥ 0" in notes
    assert "weighs 70 %" in notes
    assert "Input: median" in notes
    assert "Published: median" in notes
    svg = charts["snr_db"].svg.decode()
    assert plots.VERMILION.lower() in svg.lower()
    assert plots.SKY.lower() in svg.lower()
    edges = np.linspace(9, 11, 5)  # all values beyond the ends are in the outermost bins
    assert plots.binned(found.metrics["snr_db"], edges).sum() == found.metrics["snr_db"].count
