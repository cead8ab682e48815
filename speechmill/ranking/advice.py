"""Weights that the corpus suggests: entropy, CRITIC, correlation, saturation, sensitivity.

No decision uses them. To apply them, write the weights into a profile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.ranking.profile import FrozenProfile
from speechmill.ranking.sensitivity import sensitivity
from speechmill.ranking.topsis import Array, scale_all
from speechmill.utils.threads import bounded_map

SAMPLE_ROWS = 200_000
READERS = 2  # threads
SATURATED = 0.2  # share of rows at a bound from which a criterion is warned about
ROBUST_PERCENTILES = (1.0, 99.0)
DECIMALS = 6


def advise(
    rankings: Iterable[str | os.PathLike[str]], profile: FrozenProfile, rows: int = SAMPLE_ROWS
) -> dict[str, Any]:
    """Advice of the ranked batches (files) on the weights of a profile, ready for JSON.

    Returns `rows` (sampled), `complete_rows` (with every criterion: entropy, CRITIC and correlation use those),
    `criteria` {metric: {profile, entropy, critic, at_low, at_high}}, `correlation` {metric: {metric: r}} of the
    scaled values, `warnings`, and `sensitivity` (of that name's module). A figure that the data do not give is None. Deterministic: a sample is chosen by
    the clips' ids, whatever the order or number of files.
    """
    metrics = [criterion.metric for criterion in profile.criteria]
    sample, clips = _sample(rankings, metrics, rows)
    columns = {name: sample[name].to_numpy() for name in metrics}
    scaled = scale_all(columns, profile.criteria, sample.num_rows)
    complete = np.ascontiguousarray(scaled[~np.isnan(scaled).any(axis=1)])
    robust = _clip_tails(complete)
    entropy, critic, correlation = entropy_weights(robust), critic_weights(robust), _correlation(robust)
    result: dict[str, Any] = {
        "profile": profile.name,
        "profile_sha256": profile.sha256,
        "rows": sample.num_rows,
        "complete_rows": len(complete),
        "criteria": {},
        "correlation": {
            a: {b: _plain(correlation[i, j]) for j, b in enumerate(metrics)} for i, a in enumerate(metrics)
        },
        "warnings": [],
        "sensitivity": sensitivity(scaled, sample["decided"].to_numpy(), profile, sample.num_rows == clips),
    }
    for index, criterion in enumerate(profile.criteria):
        values = columns[criterion.metric][~np.isnan(columns[criterion.metric])]
        at_low = np.mean(values <= criterion.low) if len(values) else np.nan
        at_high = np.mean(values >= criterion.high) if len(values) else np.nan
        result["criteria"][criterion.metric] = {
            "profile": _plain(criterion.weight),
            "entropy": _plain(entropy[index]),
            "critic": _plain(critic[index]),
            "at_low": _plain(at_low),
            "at_high": _plain(at_high),
        }
        for share, side, bound in ((at_low, "low", criterion.low), (at_high, "high", criterion.high)):
            if share > SATURATED:
                result["warnings"].append(
                    f"{criterion.metric}: {share:.0%} of the clips are at or beyond {side} ({bound:g}), "
                    "where the criterion tells them apart no more"
                )
    return result


def entropy_weights(matrix: Array) -> Array:
    """Weights (C,) = 1 - Shannon entropy of each column as a distribution over the rows, to the base of their number.

    Hwang & Yoon 1981, section 2.4.2. `matrix` (N, C) >= 0; columns without any positive value get 0, and all are NaN
    if there are fewer than 2 rows or no column tells rows apart.
    """
    rows, criteria = matrix.shape
    weights = np.zeros(criteria)
    for index in range(criteria if rows > 1 else 0):
        total = np.sum(matrix[:, index])
        if total > 0:
            share = matrix[:, index] / total
            share = share[share > 0]
            weights[index] = max(0.0, 1.0 + np.sum(share * np.log(share)) / np.log(rows))
    return _normalised(weights)


def critic_weights(matrix: Array) -> Array:
    """CRITIC weights (C,): standard deviation * sum of (1 - correlation), of columns min-max scaled over the rows.

    Diakoulaki, Mavrotas & Papayannakis, Computers & Operations Research 22(7), 1995, eqs. 1-6. `matrix` (N, C);
    constant columns get 0 and take no part.
    """
    spread = _spread(matrix)
    moving = spread > 0
    weights = np.zeros(matrix.shape[1])
    correlation = _correlation(matrix[:, moving])
    for position, index in enumerate(np.flatnonzero(moving)):
        deviation = np.std(matrix[:, index]) / spread[index]
        weights[index] = deviation * np.sum(1.0 - correlation[position])
    return _normalised(weights)


def _normalised(weights: Array) -> Array:
    total = np.sum(weights)
    return weights / total if total > 0 else np.full_like(weights, np.nan)


def _spread(matrix: Array) -> Array:
    return np.ptp(matrix, axis=0) if len(matrix) else np.zeros(matrix.shape[1])


def _correlation(matrix: Array) -> Array:
    """Pearson correlation (C, C); NaN in rows and columns of constant criteria."""
    criteria = matrix.shape[1]
    result = np.full((criteria, criteria), np.nan)
    moving = np.flatnonzero(_spread(matrix) > 0)
    unit = {}
    for index in moving:
        centred = matrix[:, index] - np.mean(matrix[:, index])
        unit[index] = centred / np.sqrt(np.sum(centred**2))
    for a in moving:
        for b in moving:
            result[a, b] = 1.0 if a == b else np.clip(np.sum(unit[a] * unit[b]), -1.0, 1.0)
    return result


def _clip_tails(matrix: Array) -> Array:
    """Each column clipped to its 1st and 99th percentile: a few absurd clips must not set the weights."""
    if not len(matrix):
        return matrix
    low, high = np.percentile(matrix, ROBUST_PERCENTILES, axis=0)
    return np.clip(matrix, low, high)


def _sample(rankings: Iterable[str | os.PathLike[str]], metrics: list[str], rows: int) -> tuple[pa.Table, int]:
    """At most `rows` scored clips, no duplicates: those whose reversed ids come first. And how many there are in all.

    `decided` are those that closeness accepts or rejects: they pass all gates, and are neither held out nor removed.

    Ids are hashes, so any order of theirs is random, and the reversed one is independent of which of several
    duplicates was kept.
    """
    fields = [*(pa.field(name, pa.float64()) for name in metrics), pa.field("decided", pa.bool_())]
    schema = pa.schema([*fields, pa.field("key", pa.string())])

    def scored(path: str | os.PathLike[str]) -> pa.Table:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=["id", "state", "criterion", "closeness", *metrics])
        wanted = pc.and_(pc.not_equal(table["state"], "duplicate"), pc.is_valid(table["closeness"]))
        by_closeness = pc.fill_null(pc.equal(table["criterion"], "closeness"), False)
        table = table.append_column("decided", pc.or_(pc.equal(table["state"], "accepted"), by_closeness))
        table = table.append_column("key", pc.utf8_reverse(table["id"]))
        return table.select(schema.names).filter(wanted).cast(schema)

    kept, held, last, clips = [schema.empty_table()], 0, None, 0
    with ThreadPoolExecutor(READERS) as pool:
        for table in bounded_map(pool, scored, rankings, ahead=2 * READERS):
            clips += len(table)
            if last is not None:  # most rows come after a sample that is full
                table = table.filter(pc.less_equal(table["key"], last))
            kept.append(table)
            held += len(table)
            if held > 2 * rows:
                kept = [_first(kept, rows)]
                held, last = rows, kept[0]["key"][-1]
    return _first(kept, rows), clips


def _first(tables: list[pa.Table], rows: int) -> pa.Table:
    return pa.concat_tables(tables).sort_by("key").slice(0, rows)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DECIMALS)
