"""The final state of every clip of a batch. Each clip is decided by its own row alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from speechmill.errors import ConfigError, LedgerError
from speechmill.ranking.profile import FrozenProfile, Gate
from speechmill.ranking.removals import REMOVED, Removals, is_removed
from speechmill.ranking.topsis import Array, closeness, distance_shares, scale_all
from speechmill.tables.schemas import IDENTITY, RANKING

# Columns that describe a clip in the result. They come from `described`, or else from `scores`.
DESCRIPTIVE = ("text", "language", "speaker_id", "gender", "age", "license", "duration", "variant", "variant_reason")
FROM_LEDGER = (*(field.name for field in IDENTITY), "input_duration")
REASONS = ("state", "criterion", "value", "threshold", "error_class", "message")
ROUNDING = 1e-9  # floating point may turn a coverage of 0.8 into 0.7999999999999999
DECIMALS = 4  # of the values that explain a decision
HELD_OUT = "held_out"  # criterion of a rejected clip
TOO_FEW, MISSING = "too_few_metrics", "missing_metric"  # error classes
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Verdict:
    """The decisions of a profile on clips (N,).

    Each clip that is left to judge is in exactly one of `errored`, `gated`, `distant` and `accepted`.
    """

    scaled: Array  # (N, C): the criteria, scaled to 0..1
    closeness: Array
    coverage: Array
    missed: Array  # (G, N): the bound of each gate that the clip misses, else NaN
    failed: Mask  # (G, N): whether it misses one
    too_few: Mask  # coverage is below min_coverage
    judgeable: Mask  # scored, with enough coverage and a value for every gate
    errored: Mask
    gated: Mask  # fails a gate: `first_gate`
    first_gate: NDArray[np.intp]
    distant: Mask  # closeness is below the threshold
    accepted: Mask


def judge(judged: Mapping[str, Array], profile: FrozenProfile, scored: Mask, left: Mask, where: str) -> Verdict:
    """Decide clips (N,) by their metrics, which have NaN where there is no value.

    Args:
        judged: the metrics, and `duration`.
        profile: the frozen profile.
        scored: clips that passed the enhance stage and were scored without an error.
        left: clips that passed the enhance stage, and whose state only the metrics decide.
        where: names the scores in messages.

    Raises:
        ConfigError: a column is missing that the profile ranks by.
    """
    _check_columns(profile, judged, where)
    scaled = scale_all(judged, profile.criteria, len(left))
    close, coverage = closeness(scaled, [criterion.weight for criterion in profile.criteria])
    shape = len(profile.gates), len(left)
    missed = np.array([_missed_bound(gate, judged[gate.metric]) for gate in profile.gates], np.float64).reshape(shape)
    failed = ~np.isnan(missed)
    too_few = ~(coverage >= profile.min_coverage - ROUNDING)
    judgeable = scored & ~too_few
    for gate in profile.gates:
        judgeable &= ~np.isnan(judged[gate.metric])
    gated = left & judgeable & failed.any(0)
    distant = left & judgeable & ~gated & (close < profile.threshold)
    return Verdict(
        scaled=scaled,
        closeness=close,
        coverage=coverage,
        missed=missed,
        failed=failed,
        too_few=too_few,
        judgeable=judgeable,
        errored=left & ~judgeable,
        gated=gated,
        first_gate=failed.argmax(0) if profile.gates else np.zeros(len(left), np.intp),
        distant=distant,
        accepted=left & judgeable & ~gated & ~distant,
    )


def rank_batch(
    ledger: pa.Table,
    described: pa.Table,
    scores: pa.Table,
    duplicates: pa.Table,
    profile: FrozenProfile,
    batch: str,
    held_out: pa.Table | None = None,
    near_duplicates: pa.Table | None = None,
    removed: Removals | None = None,
) -> pa.Table:
    """Rank a batch.

    Clips to be `removed` are rejected with that criterion, whatever their other values. Clips that did not pass the
    enhance stage keep their state and reason. The others become, in this order: `duplicate`; `rejected` with criterion
    `held_out`; `errored` (scoring failed, the measured criteria are below `min_coverage`, or a gate's metric is
    missing); `rejected` by the first gate that they fail (`failed_gates` names all); `rejected` with criterion
    `closeness` below the threshold; `accepted`.

    Args:
        ledger: the ledger of the batch (`LEDGER`).
        described: `id` and any of `DESCRIPTIVE`: the manifest, or an enhanced shard without audio.
        scores: `id, error_class, message` and the metrics.
        duplicates: `id, duplicate_of`; may have clips of other batches, as may the next two tables.
        profile: the frozen profile.
        batch: id of the batch.
        held_out: `id, message`.
        near_duplicates: `id, near_duplicate_of`; recorded, decides nothing.
        removed: the list of removals.

    Returns:
        A row per ledger row, in its order: `RANKING`, then every metric column of `scores`, sorted by name. Closeness
        and the columns that explain it are null unless the clip was scored and is not `errored`.

    Raises:
        LedgerError: a passed clip has no score, a score belongs to no passed clip, or an id occurs twice.
        ConfigError: the scores lack a column that the profile ranks by.
    """
    _check_ids(ledger, scores, batch)
    ids = ledger["id"]
    metric_names = sorted(name for name in scores.column_names if name not in RANKING.names)
    aligned = scores.take(pc.index_in(ids, value_set=scores["id"]))
    about = described if described["id"].equals(ids) else described.take(pc.index_in(ids, value_set=described["id"]))
    description = {
        name: next((table[name] for table in (about, aligned) if name in table.column_names), None)
        for name in DESCRIPTIVE
    }
    metrics = {name: numbers(aligned[name]) for name in metric_names}
    duration = description["duration"]
    judged = metrics | {"duration": numbers(duration) if duration is not None else np.full(len(ids), np.nan)}

    passed = _mask(pc.equal(ledger["state"], "passed"))
    failed = passed & _mask(pc.is_valid(aligned["error_class"]))
    repeats = duplicates.take(pc.index_in(ids, value_set=duplicates["id"]))["duplicate_of"]
    duplicate = passed & _mask(pc.is_valid(repeats))
    listed = pc.fill_null(_looked_up(ids, held_out, "message"), "")
    held = passed & ~duplicate & _mask(pc.not_equal(listed, ""))
    verdict = judge(judged, profile, passed & ~failed, passed & ~duplicate & ~held, f"batch {batch}")

    cells = {name: ledger[name].to_numpy(zero_copy_only=False).copy() for name in REASONS}
    for state, mask in (
        ("accepted", verdict.accepted),
        ("rejected", held | verdict.gated | verdict.distant),
        ("duplicate", duplicate),
        ("errored", verdict.errored),
    ):
        cells["state"][mask] = state
    failures = {name: aligned[name].to_numpy(zero_copy_only=False) for name in ("error_class", "message")}
    for index in np.flatnonzero(verdict.errored).tolist():
        failure = failures["error_class"][index], failures["message"][index]
        cells["error_class"][index], cells["message"][index] = _error(index, failure, verdict, judged, profile)
    cells["criterion"][held], cells["value"][held], cells["threshold"][held] = HELD_OUT, 1.0, 0.0
    cells["message"][held] = listed.to_numpy()[held]
    for number, gate in enumerate(profile.gates):
        _reject(
            cells,
            verdict.gated & (verdict.first_gate == number),
            gate.metric,
            judged[gate.metric],
            verdict.missed[number],
            gate.reason,
        )
    thresholds = np.full(len(ids), profile.threshold)
    _reject(cells, verdict.distant, "closeness", verdict.closeness, thresholds, f"profile {profile.name}")
    shares = distance_shares(verdict.scaled, [criterion.weight for criterion in profile.criteria])
    _explain(cells, verdict, shares, profile)

    gone = is_removed(ledger, removed).to_numpy(zero_copy_only=False).astype(bool)
    for name, value in {"state": "rejected", "criterion": REMOVED, "value": 1.0, "threshold": 0.0}.items():
        cells[name][gone] = value
    cells["error_class"][gone], cells["message"][gone] = None, "somebody asked to have it removed"

    columns: dict[str, Any] = {name: ledger[name] for name in FROM_LEDGER}
    columns |= {name: column for name, column in description.items() if column is not None}
    columns |= {
        "batch": pa.array([batch] * len(ids), pa.string()),
        "duplicate_of": pc.if_else(pa.array(duplicate & ~gone), repeats, None),
        "near_duplicate_of": _looked_up(ids, near_duplicates, "near_duplicate_of"),
        "closeness": pa.array(verdict.closeness, mask=~verdict.judgeable),
        "coverage": pa.array(verdict.coverage, mask=~passed | failed),
        "failed_gates": _names([gate.metric for gate in profile.gates], verdict.failed.T, verdict.judgeable),
        "scaled": _lists(verdict.scaled, verdict.judgeable),
        "distance_share": _lists(shares, verdict.judgeable),
    }
    for field in RANKING:
        if field.name in cells:
            columns[field.name] = pa.array(cells[field.name], field.type, from_pandas=True)  # NaN: no value
        elif field.name not in columns:
            columns[field.name] = pa.nulls(len(ids), field.type)
    columns |= {name: pc.cast(aligned[name], pa.float64()) for name in metric_names}
    schema = pa.schema([*RANKING, *(pa.field(name, pa.float64()) for name in metric_names)])
    # The models that measured, the criteria, and what in the source is not a clip.
    passed_over = {k: v for k, v in (ledger.schema.metadata or {}).items() if k == b"passed_over"}
    criteria = {b"criteria": json.dumps([criterion.metric for criterion in profile.criteria]).encode()}
    schema = schema.with_metadata((scores.schema.metadata or {}) | criteria | passed_over)
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _looked_up(ids: pa.ChunkedArray, table: pa.Table | None, column: str) -> pa.ChunkedArray:
    """Return a column (N,) of the rows with these ids; null if the table has no such row."""
    if table is None:
        return pa.chunked_array([pa.nulls(len(ids), pa.string())])
    return table[column].take(pc.index_in(ids, value_set=table["id"]))


def _mask(column: pa.ChunkedArray) -> Mask:
    return column.to_numpy().astype(bool)


def _names(names: list[str], chosen: Mask, valid: Mask) -> pa.ListArray:
    """For each row (N,) the names (G,) that `chosen` (N, G) has there; null where not `valid` (N,)."""
    chosen = chosen & valid[:, None]
    offsets = np.concatenate([[0], np.cumsum(chosen.sum(1))]).astype(np.int32)
    values = pa.array(names, pa.string()).take(pa.array(np.nonzero(chosen)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~valid))


def _lists(values: Array, valid: Mask) -> pa.ListArray:
    """For each row (N,) its values (N, C) as float32, rounded to `DECIMALS`; NaN is null. Null where not `valid` (N,)."""
    offsets = np.concatenate([[0], np.cumsum(np.where(valid, values.shape[1], 0))]).astype(np.int32)
    numbers = np.round(values[valid].ravel(), DECIMALS).astype(np.float32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers, from_pandas=True), mask=pa.array(~valid))


def _explain(cells: dict[str, NDArray[Any]], verdict: Verdict, shares: Array, profile: FrozenProfile) -> None:
    """Add to the message of clips that are too far from the ideal which criterion has most of the distance."""
    rows = np.flatnonzero(verdict.distant)
    if not len(rows):
        return
    most = np.nan_to_num(shares[rows], nan=-1.0).argmax(1)
    names = [criterion.metric for criterion in profile.criteria]
    cells["message"][rows] = [
        f"{message}; mostly {names[place]}: scaled {value:.2f}, {share:.0%} of the distance to the ideal"
        for message, place, value, share in zip(
            cells["message"][rows].tolist(),
            most.tolist(),
            verdict.scaled[rows, most].tolist(),
            shares[rows, most].tolist(),
            strict=True,
        )
    ]


def _error(
    index: int,
    failure: tuple[str | None, str | None],
    verdict: Verdict,
    judged: dict[str, Array],
    profile: FrozenProfile,
) -> tuple[str, str]:
    """Error class and message of a clip that cannot be judged."""
    if failure[0] is not None:
        return failure[0], failure[1] or "scoring failed"
    if verdict.too_few[index]:
        missing = [c.metric for c in profile.criteria if np.isnan(judged[c.metric][index])]
        return TOO_FEW, (
            f"measured criteria have {verdict.coverage[index]:.3g} of the weight of profile {profile.name}, "
            f"at least {profile.min_coverage:.3g} is needed; missing: {', '.join(missing)}"
        )
    ungated = [gate.metric for gate in profile.gates if np.isnan(judged[gate.metric][index])]
    return MISSING, f"no value for the gates on {', '.join(ungated)} of profile {profile.name}"


def _reject(cells: dict[str, NDArray[Any]], mask: Mask, metric: str, values: Array, bounds: Array, reason: str) -> None:
    """Write into `cells` why the clips of `mask` are rejected."""
    tail = f" ({reason})" if reason else ""
    cells["criterion"][mask] = metric
    cells["value"][mask] = values[mask]
    cells["threshold"][mask] = bounds[mask]
    cells["message"][mask] = [
        f"{metric} is {value:.6g}, {'below' if value < bound else 'above'} {bound:.6g}{tail}"
        for value, bound in zip(values[mask].tolist(), bounds[mask].tolist(), strict=True)
    ]


def _missed_bound(gate: Gate, values: Array) -> Array:
    """Return the bound (N,) that each value misses; NaN if it misses none, or is NaN itself."""
    low = -np.inf if gate.min is None else gate.min
    high = np.inf if gate.max is None else gate.max
    return np.where(values < low, low, np.where(values > high, high, np.nan))


def numbers(column: pa.ChunkedArray) -> Array:
    """A numeric column as float64; null and non-finite values are NaN."""
    values = pc.cast(column, pa.float64()).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _check_ids(ledger: pa.Table, scores: pa.Table, batch: str) -> None:
    """Raise LedgerError unless the ids of `scores` are those of the passed rows, each once."""
    passed = ledger.filter(pc.equal(ledger["state"], "passed"))["id"]
    scored = scores["id"]
    if passed.equals(scored) and pc.count_distinct(scored).as_py() == len(scored):
        return  # in the same order, as the score job writes them
    lost = sorted(set(passed.to_pylist()) - set(scored.to_pylist()))
    unknown = sorted(set(scored.to_pylist()) - set(passed.to_pylist()))
    if lost:
        raise LedgerError(f"batch {batch}: {len(lost)} clips passed but were not scored: {', '.join(lost[:5])}")
    if unknown:
        raise LedgerError(f"batch {batch}: {len(unknown)} scored clips did not pass: {', '.join(unknown[:5])}")
    if any(pc.count_distinct(ids).as_py() != len(ids) for ids in (passed, scored)):
        raise LedgerError(f"batch {batch}: a clip is in the ledger or the scores twice")


def _check_columns(profile: FrozenProfile, judged: Mapping[str, Array], where: str) -> None:
    needed = {gate.metric for gate in profile.gates} | {criterion.metric for criterion in profile.criteria}
    lacking = sorted(needed - set(judged))
    if lacking:
        raise ConfigError(
            f"profile {profile.name} ranks by {', '.join(lacking)}, which the scores of {where} do not have: "
            "the profile was frozen for other metrics; remove ranking/profile.json, or score again"
        )
