"""The final state of every clip of a batch. A map over clips: nothing here looks at more than one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechmill.errors import ConfigError, LedgerError
from speechmill.ranking.profile import FrozenProfile, Gate
from speechmill.ranking.topsis import Array, closeness, scale_all
from speechmill.shards import IDENTITY, RANKING

# What describes a clip in the result: taken from the first table that has it, `described`, then `scores`.
DESCRIPTIVE = ("text", "language", "speaker_id", "license", "duration", "variant", "variant_reason")
FROM_LEDGER = (*(field.name for field in IDENTITY), "input_duration")
REASONS = ("state", "criterion", "value", "threshold", "error_class", "message")
ROUNDING = 1e-9  # a coverage of 0.8 that floating point makes 0.7999999999999999 is 0.8


def rank_batch(
    ledger: pa.Table,
    described: pa.Table,
    scores: pa.Table,
    duplicates: pa.Table,
    profile: FrozenProfile,
    batch: str,
) -> pa.Table:
    """One row per ledger row, in its order: `RANKING`, then every metric column of `scores`, sorted by name.

    `ledger` follows `LEDGER`; `described` has `id` and any of `DESCRIPTIVE` (the manifest, or an enhanced shard
    without its audio); `scores` has `id, error_class, message` and the metrics; `duplicates` has `id, duplicate_of`
    and may cover other batches too.

    What did not pass the enhance stage keeps its state and reason. The others are, in this order: `duplicate`;
    `errored` (scoring failed, measured criteria below `min_coverage`, or a gate's metric is missing); `rejected` by
    the first gate that they fail (`failed_gates` names all); `rejected` with criterion `closeness` below the
    threshold; `accepted`. Closeness and failed gates are there for every clip that was scored, but for errored ones.

    Raises:
        LedgerError: a passed clip has no score, a score belongs to no passed clip, or an id is there twice.
        ConfigError: the scores lack a column that the profile ranks by.
    """
    _check_ids(ledger, scores, batch)
    ids = ledger["id"]
    metric_names = sorted(name for name in scores.column_names if name not in RANKING.names)
    aligned = scores.take(pc.index_in(ids, value_set=scores["id"]))
    about = described.take(pc.index_in(ids, value_set=described["id"]))
    description = {
        name: next((table[name] for table in (about, aligned) if name in table.column_names), None)
        for name in DESCRIPTIVE
    }
    metrics = {name: _numbers(aligned[name]) for name in metric_names}
    duration = description["duration"]
    judged = metrics | {"duration": _numbers(duration) if duration is not None else np.full(len(ids), np.nan)}
    _check_columns(profile, judged, batch)

    scaled = scale_all(judged, profile.criteria, len(ids))
    close, coverage = closeness(scaled, [criterion.weight for criterion in profile.criteria])
    missed = [_missed_bound(gate, judged[gate.metric]) for gate in profile.gates]
    repeats = duplicates.take(pc.index_in(ids, value_set=duplicates["id"]))["duplicate_of"].to_pylist()
    failures = list(zip(aligned["error_class"].to_pylist(), aligned["message"].to_pylist(), strict=True))

    rows: list[dict[str, Any]] = []
    for index, known in enumerate(ledger.select(REASONS).to_pylist()):
        if known["state"] != "passed":
            rows.append(known)
            continue
        error = _error(index, failures[index], scaled, coverage, judged, profile)
        row: dict[str, Any] = {"coverage": float(coverage[index])} if failures[index][0] is None else {}
        failed = [gate for gate, bounds in zip(profile.gates, missed, strict=True) if not np.isnan(bounds[index])]
        if error is None:
            row |= {"closeness": float(close[index]), "failed_gates": [gate.metric for gate in failed]}
        if repeats[index] is not None:
            row |= {"state": "duplicate", "duplicate_of": repeats[index]}
        elif error is not None:
            row |= {"state": "errored", "error_class": error[0], "message": error[1]}
        elif failed:
            first = profile.gates.index(failed[0])
            row |= _rejection(failed[0].metric, judged[failed[0].metric][index], missed[first][index], failed[0].reason)
        elif close[index] < profile.threshold:
            row |= _rejection("closeness", close[index], profile.threshold, f"profile {profile.name}")
        else:
            row["state"] = "accepted"
        rows.append(row)

    columns: dict[str, Any] = {name: ledger[name] for name in FROM_LEDGER}
    columns |= {name: column for name, column in description.items() if column is not None}
    columns["batch"] = pa.array([batch] * len(ids), pa.string())
    for field in RANKING:
        if field.name not in columns:
            columns[field.name] = pa.array([row.get(field.name) for row in rows], field.type)
    columns |= {name: pc.cast(aligned[name], pa.float64()) for name in metric_names}
    schema = pa.schema([*RANKING, *(pa.field(name, pa.float64()) for name in metric_names)])
    schema = schema.with_metadata(scores.schema.metadata)  # the models that measured
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _error(
    index: int,
    failure: tuple[str | None, str | None],
    scaled: Array,
    coverage: Array,
    judged: dict[str, Array],
    profile: FrozenProfile,
) -> tuple[str, str] | None:
    """Error class and message of a clip that cannot be judged, else None."""
    if failure[0] is not None:
        return failure[0], failure[1] or "scoring failed"
    if coverage[index] < profile.min_coverage - ROUNDING:
        missing = [c.metric for c, value in zip(profile.criteria, scaled[index], strict=True) if np.isnan(value)]
        return "too_few_metrics", (
            f"measured criteria have {coverage[index]:.3g} of the weight of profile {profile.name}, "
            f"at least {profile.min_coverage:.3g} is needed; missing: {', '.join(missing)}"
        )
    ungated = [gate.metric for gate in profile.gates if np.isnan(judged[gate.metric][index])]
    if ungated:
        return "missing_metric", f"no value for the gates on {', '.join(ungated)} of profile {profile.name}"
    return None


def _rejection(metric: str, value: float, threshold: float, reason: str) -> dict[str, Any]:
    side = "below" if value < threshold else "above"
    message = f"{metric} is {value:.6g}, {side} {threshold:.6g}" + (f" ({reason})" if reason else "")
    return {
        "state": "rejected",
        "criterion": metric,
        "value": float(value),
        "threshold": float(threshold),
        "message": message,
    }


def _missed_bound(gate: Gate, values: Array) -> Array:
    """The bound (N,) that each value misses; NaN where it misses none or is missing itself."""
    low = -np.inf if gate.min is None else gate.min
    high = np.inf if gate.max is None else gate.max
    return np.where(values < low, low, np.where(values > high, high, np.nan))


def _numbers(column: pa.ChunkedArray) -> Array:
    """A numeric column as float64; null and non-finite values are NaN."""
    values = pc.cast(column, pa.float64()).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _check_ids(ledger: pa.Table, scores: pa.Table, batch: str) -> None:
    """Raise LedgerError unless the ids of `scores` are those of the passed rows, each once."""
    passed = ledger.filter(pc.equal(ledger["state"], "passed"))["id"].to_pylist()
    scored = scores["id"].to_pylist()
    lost, unknown = sorted(set(passed) - set(scored)), sorted(set(scored) - set(passed))
    if lost:
        raise LedgerError(f"batch {batch}: {len(lost)} clips passed but were not scored: {', '.join(lost[:5])}")
    if unknown:
        raise LedgerError(f"batch {batch}: {len(unknown)} scored clips did not pass: {', '.join(unknown[:5])}")
    if len(scored) != len(set(scored)) or len(passed) != len(set(passed)):
        raise LedgerError(f"batch {batch}: a clip is in the ledger or the scores twice")


def _check_columns(profile: FrozenProfile, judged: dict[str, Array], batch: str) -> None:
    needed = {gate.metric for gate in profile.gates} | {criterion.metric for criterion in profile.criteria}
    lacking = sorted(needed - set(judged))
    if lacking:
        raise ConfigError(
            f"profile {profile.name} ranks by {', '.join(lacking)}, which the scores of batch {batch} do not have: "
            "the profile was frozen for other metrics; remove ranking/profile.json, or score again"
        )
