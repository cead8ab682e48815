"""A run in numbers: one pass over its ranking tables, in memory that does not grow with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.config import deciding_settings
from speechmill.ledger import STATES, check_balance, count_states, tally
from speechmill.ranking.decide import HELD_OUT
from speechmill.ranking.profile import FrozenProfile
from speechmill.removal import REMOVED
from speechmill.report.breakdown import COLUMNS as WHO
from speechmill.report.breakdown import Breakdown, breakdown_of
from speechmill.shards import RANKING, conform, noted, ranking_schema, table_writer

READ_ROWS = 65_536
NOT_JUDGED = (HELD_OUT, REMOVED)  # criteria that say nothing about how a clip sounds
ROW_GROUP = 100_000  # what a writer remembers of each grows with the table
MAX_DISTINCT = 65_536
PENDING = 524_288  # values that wait for a merge
MANTISSA = 52  # bits of a double
COUNTED_BITS = 12  # of the mantissa: with those of the exponent 2^23 steps, which is what counting may hold
QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
DIGITS = 6  # significant ones of a quantile
_COLUMNS = ["state", "criterion", "error_class", "message", "input_duration", "duration", "variant", "closeness"]
_COLUMNS += ["failed_gates", "near_duplicate_of"]


class Distribution:
    """Values and how often each came, in at most `MAX_DISTINCT` steps.

    Exact while no more distinct values came than that. Beyond, values are rounded toward zero to the most mantissa
    bits (`bits`) with which they fit, so every value and quantile has a relative error below 2^-bits: 65,536 steps
    over ten octaves are 12 bits, 0.03 %. What is kept depends on the values alone, not on their order or grouping.
    NaN and infinities are left out.
    """

    def __init__(self) -> None:
        self.bits = MANTISSA
        self._values = np.empty(0)
        self._counts = np.empty(0, np.int64)
        self._pending: list[np.ndarray] = []
        self._waiting = 0

    def add(self, values: np.ndarray) -> None:
        """Take in values (N,) of any float type."""
        values = np.asarray(values, np.float64)
        self._pending.append(values[np.isfinite(values)] + 0.0)  # -0.0 becomes 0.0
        self._waiting += len(self._pending[-1])
        if self._waiting >= PENDING:
            self._merge()

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct values, ascending, and their counts: float64 (D,), int64 (D,)."""
        if self._pending:
            self._merge()
        return self._values, self._counts

    @property
    def count(self) -> int:
        """Number of values taken in."""
        return int(self.steps()[1].sum())

    def quantile(self, share: float) -> float | None:
        """The quantile at `share` in 0..1, linear between neighbours as numpy's default; None without values."""
        values, counts = self.steps()
        if not len(values):
            return None
        position = share * (int(counts.sum()) - 1)
        below = int(position)
        last = np.cumsum(counts)
        low, high = (values[np.searchsorted(last, rank, side="right")] for rank in (below, int(np.ceil(position))))
        return float(low + (high - low) * (position - below))

    def _merge(self) -> None:
        # Counting the new values alone and putting them between the old ones is much faster than sorting all anew.
        new, counts = self._count(np.concatenate(self._pending))
        self._pending, self._waiting = [], 0
        at = np.searchsorted(self._values, new)
        known = np.zeros(len(new), bool)
        inside = at < len(self._values)
        known[inside] = self._values[at[inside]] == new[inside]
        self._counts[at[known]] += counts[known]
        self._values = np.insert(self._values, at[~known], new[~known])
        self._counts = np.insert(self._counts, at[~known], counts[~known])
        if len(self._values) > MAX_DISTINCT:
            self.bits = self._fitting_bits()
            self._values, runs = _runs(self._round(self._values))  # rounding keeps the order
            self._counts = np.add.reduceat(self._counts, np.cumsum(runs) - runs)

    def _count(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct rounded values, ascending, and their counts: by sorting, or by steps where those are coarse."""
        if self.bits > COUNTED_BITS:
            return _runs(np.sort(self._round(values)))
        values = self._round(values)
        negative, below = _steps(-values[values < 0], MANTISSA - self.bits)
        positive, above = _steps(values[values > 0], MANTISSA - self.bits)
        zeros = len(values) - below.sum() - above.sum()
        return (
            np.concatenate([-negative[::-1], np.zeros(min(1, zeros)), positive]),
            np.concatenate([below[::-1], np.full(min(1, zeros), zeros), above]),
        )

    def _fitting_bits(self) -> int:
        """The most mantissa bits with which at most `MAX_DISTINCT` values differ."""
        differing = np.bitwise_xor(self._values.view(np.uint64)[1:], self._values.view(np.uint64)[:-1])
        highest = np.frexp(differing.astype(np.float64))[1] - 1  # bit in which neighbours differ; beyond 52 inexact
        distinct = 1 + np.cumsum(np.bincount(highest, minlength=65)[::-1])[::-1]  # with so many bits dropped
        return MANTISSA - int(np.flatnonzero(distinct <= MAX_DISTINCT)[0])

    def _round(self, values: np.ndarray) -> np.ndarray:
        drop = np.uint64(MANTISSA - self.bits)
        return ((values.view(np.uint64) >> drop) << drop).view(np.float64) + 0.0


def _runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of ordered ones (N,), and how often each comes."""
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]]))
    return ordered[first], np.diff(np.append(first, len(ordered)))


def _steps(values: np.ndarray, drop: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_runs`, of positive values (N,) in any order whose last `drop` bits are zero."""
    if not len(values):
        return np.empty(0), np.empty(0, np.int64)
    keys = (values.view(np.uint64) >> np.uint64(drop)).astype(np.int64)
    first = keys.min()
    counts = np.bincount(keys - first)
    found = np.flatnonzero(counts)
    return ((found + first) << drop).view(np.float64), counts[found]


@dataclass
class Overview:
    """Everything that the summary and the page say about all clips of a run.

    A clip is ranked if it has a closeness and is no duplicate. `metrics`, `variants`, `failed_gates` and `closeness`
    (of all, and by what became of the clip: accepted, closeness, gate) are over ranked clips. `seconds` are of decoded
    input, and of the published audio of accepted clips. `messages` has the first one of each (state, criterion or
    class).
    """

    batches: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # batch -> clips
    clips: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: {"input": 0.0, "accepted": 0.0})
    input_seconds: Counter[str] = field(default_factory=Counter)  # of decoded input, by state
    unranked: Counter[str] = field(default_factory=Counter)  # criterion -> clips rejected before they were scored
    rejected_by: Counter[str] = field(default_factory=Counter)
    errored_by: Counter[str] = field(default_factory=Counter)
    messages: dict[tuple[str, str], str] = field(default_factory=dict)
    failed_gates: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Distribution] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)  # of the source, what belongs to no clip
    near_duplicates: int = 0  # accepted clips that sound like another one
    breakdown: Breakdown = field(default_factory=Breakdown)  # who is filtered out
    closeness: dict[str, Distribution] = field(
        default_factory=lambda: {name: Distribution() for name in ("ranked", "accepted", "closeness", "gate")}
    )


def overview(ranking_files: Iterable[Path], failed: Mapping[str, int] | None = None) -> Overview:
    """Read every ranking table once. `failed` are batches without one and their clips: errored as `batch_failed`.

    Raises:
        LedgerError: the states of a batch or of the run do not balance.
    """
    found = Overview()
    for path in ranking_files:
        found.batches += 1
        before = Counter(found.clips)
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            found.passed_over.update(noted(file.metadata.metadata, "passed_over") or {})
            metrics = [name for name in names if name not in RANKING.names]
            for name in metrics:
                found.metrics.setdefault(name, Distribution())
            columns = [name for name in dict.fromkeys([*_COLUMNS, *WHO, *metrics]) if name in names]
            for part in file.iter_batches(batch_size=READ_ROWS, columns=columns):
                _add(found, pa.Table.from_batches([part]), metrics)
        counts = {state: found.clips[state] - before[state] for state in ("input", *STATES)}
        check_balance(counts, f"batch {Path(path).stem}")
    for batch, clips in (failed or {}).items():
        found.failed[batch] = clips
        found.clips.update(input=clips, errored=clips)
        found.errored_by["batch_failed"] += clips
        found.messages["errored", "batch_failed"] = "its batch failed in every attempt; logs/batches/ says why"
    check_balance({"input": 0, **dict.fromkeys(STATES, 0), **found.clips})
    return found


def _add(found: Overview, table: pa.Table, metrics: Sequence[str]) -> None:
    found.clips.update(count_states(table))
    found.input_seconds.update(tally(table["state"], table["input_duration"])["audio_seconds"])
    found.breakdown.add(table)
    about = table.select(_COLUMNS)
    of_state = {state: about.filter(pc.equal(table["state"], state)) for state in ("accepted", "rejected", "errored")}
    found.seconds["input"] += pc.sum(table["input_duration"]).as_py() or 0.0
    found.seconds["accepted"] += pc.sum(of_state["accepted"]["duration"]).as_py() or 0.0
    for state, column, counter in (
        ("rejected", "criterion", found.rejected_by),
        ("errored", "error_class", found.errored_by),
    ):
        rows = of_state[state]
        for reason, count in _counts(rows[column]).items():
            counter[reason] += count
            if (state, reason) not in found.messages:
                message = rows["message"][pc.index(rows[column], reason).as_py()].as_py()
                found.messages[state, reason] = message or ""
    rejected = of_state["rejected"]
    found.unranked.update(_counts(rejected.filter(pc.is_null(rejected["closeness"]))["criterion"]))

    ranked = table.filter(pc.and_(pc.is_valid(table["closeness"]), pc.not_equal(table["state"], "duplicate")))
    found.variants.update(_counts(ranked["variant"]))
    found.failed_gates.update(_counts(pc.list_flatten(ranked["failed_gates"])))
    for name in metrics:
        found.metrics[name].add(_floats(ranked[name]))
    found.near_duplicates += pc.sum(pc.is_valid(of_state["accepted"]["near_duplicate_of"])).as_py() or 0
    accepted = pc.equal(ranked["state"], "accepted")
    by_closeness = pc.fill_null(pc.equal(ranked["criterion"], "closeness"), False)
    gated = pc.and_not(pc.equal(ranked["state"], "rejected"), by_closeness)
    found.closeness["ranked"].add(_floats(ranked["closeness"]))
    for name, mask in (("accepted", accepted), ("closeness", by_closeness), ("gate", gated)):
        found.closeness[name].add(_floats(ranked["closeness"].filter(mask)))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column.drop_null()).to_pylist()}


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return pc.cast(column, pa.float64()).to_numpy()


def summarize(
    found: Overview,
    profile: FrozenProfile,
    source: Mapping[str, Any],
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    skipped: Sequence[Mapping[str, str]],
    timing: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of report/summary.json. Quantiles are over ranked clips, None where there are none."""
    metrics = {
        name: {key: _significant(values.quantile(share)) for key, share in QUANTILES.items()}
        for name, values in sorted(found.metrics.items())
    }
    return {
        "dataset": config["dataset"],
        "source_revision": source.get("revision"),
        "config": deciding_settings(dict(config)),
        "batches": found.batches,
        "failed_batches": dict(sorted(found.failed.items())),
        "clips": {state: found.clips[state] for state in ("input", *STATES)},
        "hours": {name: round(seconds / 3600, 6) for name, seconds in found.seconds.items()},
        "input_hours": {state: round(found.input_seconds[state] / 3600, 6) for state in STATES},
        "rejected_by": dict(sorted(found.rejected_by.items())),
        "errored_by": dict(sorted(found.errored_by.items())),
        "near_duplicates": found.near_duplicates,
        "breakdown": breakdown_of(found.breakdown),
        "passed_over": dict(sorted(found.passed_over.items())),
        "source_notes": list(source.get("notes", ())),
        "variants": {name: found.variants[name] for name in ("original", "enhanced")},
        "metrics": metrics,
        "profile": profile.name,
        "profile_sha256": profile.sha256,
        "threshold": profile.threshold,
        "versions": dict(versions),
        "skipped_metrics": [dict(group) for group in skipped],
        "timing": dict(timing),
    }


def _significant(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def merge_ranking(ranking_files: Sequence[Path], out: Path) -> None:
    """Write the rows of all ranking tables, in the order of the files, to one table: `RANKING`, metrics by name.

    A metric that a file lacks, or has nothing but nulls for, is null there. The file appears complete or not at all.
    """
    metrics = {name for path in ranking_files for name in pq.read_schema(path).names} - set(RANKING.names)
    schema = ranking_schema(sorted(metrics))
    with table_writer(schema, out, row_group_size=ROW_GROUP) as writer:
        for table in _regrouped(ranking_files, schema):
            writer.write_table(table)


def _regrouped(ranking_files: Iterable[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of `schema`, of `ROW_GROUP` rows or more but for the last: small batches share a row group."""
    waiting, rows = [schema.empty_table()], 0
    for path in ranking_files:
        with pq.ParquetFile(path) as file:
            for part in file.iter_batches(batch_size=ROW_GROUP):
                waiting.append(conform(part, schema))
                rows += len(part)
                if rows >= ROW_GROUP:
                    yield pa.concat_tables(waiting)
                    waiting, rows = [schema.empty_table()], 0
    if rows:
        yield pa.concat_tables(waiting)


@dataclass(frozen=True)
class Step:
    """One step of the funnel: how many clips it took out, why (reason -> clips), and how many were left."""

    title: str
    state: str
    lost: int
    left: int
    reasons: Mapping[str, int]


def funnel(found: Overview) -> list[Step]:
    """From all clips to the accepted ones, in the order of the flow; what is left at the end is accepted."""
    scored, unranked = found.rejected_by - found.unranked, Counter(found.unranked)
    held_out = scored.pop(HELD_OUT, 0) + unranked.pop(HELD_OUT, 0)
    removed = scored.pop(REMOVED, 0) + unranked.pop(REMOVED, 0)
    closeness = scored.pop("closeness", 0)
    steps = []
    left = found.clips["input"]
    for title, state, lost, reasons in (
        ("Not readable or not scored", "errored", found.clips["errored"], found.errored_by),
        ("Unfit before scoring", "rejected", unranked.total(), unranked),
        ("Repeats another clip", "duplicate", found.clips["duplicate"], {}),
        ("In a held-out split", "rejected", held_out, {}),
        *([("Removed on request", "rejected", removed, {})] if removed else []),
        ("Fails a gate", "rejected", scored.total(), scored),
        ("Closeness below the threshold", "rejected", closeness, {}),
    ):
        left -= lost
        steps.append(
            Step(title, state, lost, left, dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))))
        )
    return steps
