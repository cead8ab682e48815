"""TOPSIS against a published example, against scikit-criteria, and by the properties that the ranking promises."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from speechmill.ranking.advice import advise, critic_weights, entropy_weights
from speechmill.ranking.profile import Criterion, freeze
from speechmill.ranking.topsis import closeness, distance_shares, scale, scale_all

BENEFIT = Criterion("snr", "g", -5.0, 35.0, "benefit", 0.4)
COST = Criterion("clip", "g", 1e-5, 1e-2, "cost", 0.2, scale="log10")
TARGET = Criterion("ratio", "g", 0.2, 1.0, "target", 0.3, ideal=(0.6, 0.9))
PLAIN_COST = Criterion("pause", "g", 0.0, 4.0, "cost", 0.1)
CRITERIA = (BENEFIT, COST, TARGET, PLAIN_COST)
WEIGHTS = [criterion.weight for criterion in CRITERIA]

scores = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1))
matrices = st.integers(1, 40).flatmap(
    lambda rows: arrays(np.float64, (rows, 4), elements=st.one_of(scores, st.just(np.nan)))
)


def raw_columns(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Values around and beyond the bounds, with missing ones."""
    rng = np.random.default_rng(seed)
    columns = {
        "snr": rng.uniform(-30, 60, rows),
        "clip": 10 ** rng.uniform(-7, 0, rows),
        "ratio": rng.uniform(-0.5, 1.5, rows),
        "pause": rng.uniform(-1, 6, rows),
    }
    for column in columns.values():
        column[rng.random(rows) < 0.1] = np.nan
    return columns


def rank(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return closeness(scale_all(columns, CRITERIA, len(columns["snr"])), WEIGHTS)


def test_published_example_fighter_aircraft():
    # Hwang & Yoon, Multiple Attribute Decision Making (Springer 1981), section 3.3.3 (TOPSIS), fighter selection:
    # speed, range, payload, cost, reliability, manoeuvrability. Textbook TOPSIS is ours with the bounds of the
    # vector-normalised data, if the weights are multiplied by the width of the bounds.
    data = np.array(
        [
            [2.0, 1500, 20000, 5.5, 5, 9],
            [2.5, 2700, 18000, 6.5, 3, 5],
            [1.8, 2000, 21000, 4.5, 7, 7],
            [2.2, 1800, 20000, 5.0, 5, 5],
        ]
    )
    weights = np.array([0.2, 0.1, 0.1, 0.1, 0.2, 0.3])
    normed = data / np.sqrt((data**2).sum(axis=0))
    low, high = normed.min(axis=0), normed.max(axis=0)
    directions = ["benefit", "benefit", "benefit", "cost", "benefit", "benefit"]
    criteria = tuple(Criterion(str(j), "g", low[j], high[j], directions[j], 1.0) for j in range(6))
    scaled = scale_all({str(j): normed[:, j] for j in range(6)}, criteria, 4)
    value, coverage = closeness(scaled, weights * (high - low))
    # Printed with three digits, from distances rounded to four.
    np.testing.assert_allclose(value, [0.643, 0.268, 0.613, 0.312], atol=1e-3)
    np.testing.assert_array_equal(coverage, 1)


def test_agrees_with_scikit_criteria_topsis():
    skcriteria = pytest.importorskip("skcriteria")
    from skcriteria.agg.topsis import TOPSIS

    rng = np.random.default_rng(3)
    matrix = np.vstack([np.ones(4), np.zeros(4), rng.random((50, 4))])  # holds the ideal and the anti-ideal
    reference = TOPSIS().evaluate(skcriteria.mkdm(matrix, [max] * 4, weights=WEIGHTS))
    np.testing.assert_allclose(closeness(matrix, WEIGHTS)[0], reference.e_.similarity, rtol=1e-12, atol=1e-15)


def test_agrees_with_scikit_criteria_rim_on_targets():
    skcriteria = pytest.importorskip("skcriteria")
    from skcriteria.agg.rim import RIM

    rng = np.random.default_rng(4)
    criteria = (TARGET, Criterion("lufs", "g", -50.0, -5.0, "target", 0.7, ideal=(-30.0, -16.0)))
    columns = {"ratio": rng.uniform(0.2, 1.0, 60), "lufs": rng.uniform(-50, -5, 60)}
    matrix = np.column_stack(list(columns.values()))
    reference = RIM().evaluate(
        skcriteria.mkdm(matrix, [max, max], weights=[0.3, 0.7]),
        ref_ideals=[c.ideal for c in criteria],
        ranges=[(c.low, c.high) for c in criteria],
    )
    value, _ = closeness(scale_all(columns, criteria, 60), [0.3, 0.7])
    np.testing.assert_allclose(value, reference.e_.score, rtol=1e-9)


@pytest.mark.parametrize(
    ("criterion", "values", "expected"),
    [
        (BENEFIT, [-99, -5, 15, 35, 300, np.nan], [0, 0, 0.5, 1, 1, np.nan]),
        (PLAIN_COST, [-1, 0, 1, 4, 9, np.nan], [1, 1, 0.75, 0, 0, np.nan]),
        (COST, [0, 1e-5, 10**-3.5, 1e-2, 1, np.nan], [1, 1, 0.5, 0, 0, np.nan]),
        (TARGET, [0, 0.2, 0.4, 0.6, 0.75, 0.9, 0.95, 1.2, np.nan], [0, 0, 0.5, 1, 1, 1, 0.5, 0, np.nan]),
        (Criterion("t", "g", 0, 1, "target", 1, (0.5, 1.0)), [0, 0.25, 1, 7], [0, 0.5, 1, 1]),
        (BENEFIT, [-np.inf, np.inf], [0, 1]),
    ],
)
def test_scale(criterion, values, expected):
    np.testing.assert_allclose(scale(values, criterion), expected, rtol=1e-12, atol=1e-12)


@given(matrices)
def test_closeness_lies_between_zero_and_one_and_is_missing_only_without_values(matrix):
    value, coverage = closeness(matrix, WEIGHTS)
    empty = np.isnan(matrix).all(axis=1)
    assert np.array_equal(np.isnan(value), empty)
    assert ((value[~empty] >= 0) & (value[~empty] <= 1)).all()
    np.testing.assert_allclose(coverage, (~np.isnan(matrix)) @ np.array(WEIGHTS), atol=1e-12)
    assert (coverage[~np.isnan(matrix).any(axis=1)] == 1).all()


@given(matrices, st.integers(0, 3), st.floats(0, 1))
def test_improving_a_criterion_never_lowers_closeness(matrix, column, step):
    better = matrix.copy()
    better[:, column] = np.minimum(1, better[:, column] + step)
    before, after = closeness(matrix, WEIGHTS)[0], closeness(better, WEIGHTS)[0]
    ranked = ~np.isnan(before)
    assert (after[ranked] >= before[ranked]).all()


def test_ideal_is_one_and_anti_ideal_is_zero():
    value, _ = closeness(np.array([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, np.nan, 1, 1], [np.nan, 0, 0, np.nan]]), WEIGHTS)
    np.testing.assert_array_equal(value, [1, 0, 1, 0])


@given(st.floats(0, 1), st.floats(0, 1))
def test_missing_values_renormalise_the_weights(a, b):
    matrix = np.array([[a, np.nan, b, np.nan]])
    value, coverage = closeness(matrix, [0.4, 0.2, 0.3, 0.1])
    reference, _ = closeness(np.array([[a, b]]), [0.4 / 0.7, 0.3 / 0.7])
    np.testing.assert_allclose(value, reference, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(coverage, 0.7)


@settings(max_examples=40)
@given(st.integers(1, 300), st.integers(0, 10_000), st.data())
def test_batching_permuting_and_adding_rows_change_no_bit(rows, seed, data):
    columns = raw_columns(rows, seed)
    whole = np.stack(rank(columns))
    order = np.random.default_rng(seed).permutation(rows)
    permuted = np.stack(rank({name: column[order] for name, column in columns.items()}))
    assert permuted.tobytes() == whole[:, order].tobytes()
    cut = data.draw(st.integers(0, rows))
    parts = [
        np.stack(rank({name: column[part] for name, column in columns.items()}))
        for part in (slice(cut), slice(cut, None))
    ]
    assert np.concatenate(parts, axis=1).tobytes() == whole.tobytes()
    more = {name: np.concatenate([column, [np.inf, -np.inf, 1e9]]) for name, column in columns.items()}
    assert np.stack(rank(more))[:, :rows].tobytes() == whole.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_entropy_and_critic_weights_agree_with_scikit_criteria(seed):
    weighters = pytest.importorskip("skcriteria.preprocessing.weighters")
    rng = np.random.default_rng(seed)
    matrix = rng.random((200, 5)) ** rng.uniform(0.5, 4, 5)
    matrix[:, 1] = 0.8 * matrix[:, 0] + 0.2 * matrix[:, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(entropy_weights(matrix), weighters.entropy_weights(matrix), rtol=1e-9)
        reference = weighters.critic_weights(matrix, [1] * 5)
    np.testing.assert_allclose(critic_weights(matrix), reference, rtol=1e-9)


def test_advice_weights_of_degenerate_data():
    matrix = np.column_stack([np.zeros(10), np.full(10, 0.5), np.linspace(0, 1, 10), np.linspace(1, 0, 10) ** 2])
    for weights in (entropy_weights(matrix), critic_weights(matrix)):
        assert weights[0] == 0
        assert weights[1] == pytest.approx(0)
        assert weights.sum() == pytest.approx(1)
    assert np.isnan(entropy_weights(matrix[:1])).all()
    assert np.isnan(critic_weights(matrix[:0])).all()


PROFILE = {
    "name": "p",
    "version": 1,
    "description": "d",
    "threshold": 0.5,
    "min_coverage": 0.8,
    "gates": [],
    "groups": {
        "a": {
            "weight": 1,
            "criteria": {
                "x": {"low": 0, "high": 1, "direction": "benefit", "ideal": None, "weight": 1, "scale": "linear"},
                "y": {"low": 0, "high": 1, "direction": "benefit", "ideal": None, "weight": 3, "scale": "linear"},
            },
        }
    },
}


def ranking_files(folder, table, parts):
    paths = []
    for index, rows in enumerate(parts):
        paths.append(folder / f"{len(parts)}-{index}.parquet")
        pq.write_table(table.take(pa.array(rows, pa.int64())), paths[-1])
    return paths


def test_advice_does_not_depend_on_files_and_leaves_duplicates_out(tmp_path):
    rng = np.random.default_rng(0)
    rows = 400
    x = np.where(rng.random(rows) < 0.5, 2.0, rng.random(rows))  # half of them beyond the bound
    table = pa.table(
        {
            "id": [f"{value:016x}" for value in rng.integers(0, 2**62, rows)],
            "state": ["duplicate" if i % 10 == 0 else "accepted" for i in range(rows)],
            "criterion": pa.nulls(rows, pa.string()),
            "closeness": pa.array([None if i % 7 == 0 else 0.5 for i in range(rows)], pa.float64()),
            "x": x,
            "y": pa.array([None if i % 11 == 0 else float(v) for i, v in enumerate(rng.random(rows))], pa.float64()),
        }
    )
    profile = freeze(PROFILE, ["x", "y"])
    order = rng.permutation(rows)
    one = advise(ranking_files(tmp_path, table, [np.arange(rows)]), profile, rows=100)
    many = advise(ranking_files(tmp_path, table, np.array_split(order, 7)), profile, rows=100)
    assert one == many
    assert one["rows"] == 100
    everything = advise(ranking_files(tmp_path, table, np.array_split(order, 3)), profile)
    ranked = [i for i in range(rows) if i % 10 and i % 7]
    assert everything["rows"] == len(ranked)
    assert everything["complete_rows"] == sum(1 for i in ranked if i % 11)
    assert everything["criteria"]["x"]["at_high"] == pytest.approx(np.mean(x[ranked] >= 1), abs=1e-6)
    assert everything["criteria"]["x"]["profile"] == 0.25
    assert len(everything["warnings"]) == 1
    assert everything["warnings"][0].startswith("x: ")
    assert everything["correlation"]["x"]["x"] == 1


def test_advice_on_nothing(tmp_path):
    table = pa.table(
        {name: pa.array([], pa.float64()) for name in ("closeness", "x", "y")}
        | {name: pa.array([], pa.string()) for name in ("id", "state", "criterion")}
    )
    for paths in ([], ranking_files(tmp_path, table, [[]])):
        advice = advise(paths, freeze(PROFILE, ["x", "y"]))
        assert advice["rows"] == 0
        assert advice["criteria"]["x"]["entropy"] is None


@settings(max_examples=100)
@given(matrices)
def test_shares_of_the_distance_add_up_over_what_is_measured(matrix):
    shares = distance_shares(matrix, WEIGHTS)
    assert np.array_equal(np.isnan(shares), np.isnan(matrix))
    known = np.nan_to_num(shares)
    assert ((known >= 0) & (known <= 1 + 1e-12)).all()
    away = np.nan_to_num((np.array(WEIGHTS) * (1 - matrix)) ** 2).sum(1) > 0
    assert known.sum(1) == pytest.approx(away.astype(float))


def test_equally_far_criteria_share_the_distance_by_the_squares_of_their_weights():
    shares = distance_shares(np.full((1, 4), 0.5), WEIGHTS)[0]
    squares = np.square(WEIGHTS)
    assert shares == pytest.approx(squares / squares.sum())
