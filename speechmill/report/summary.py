"""A run in numbers, and its one table of all clips, in memory that does not grow with the number of clips."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.config import deciding_settings
from speechmill.ranking.decide import HELD_OUT
from speechmill.ranking.profile import FrozenProfile
from speechmill.ranking.removals import REMOVED
from speechmill.ranking.states import STATES, check_balance
from speechmill.report.breakdown import COLUMNS as WHO
from speechmill.report.breakdown import Breakdown, breakdown_of
from speechmill.report.parts import Part, read_parts
from speechmill.storage.files import atomic_path
from speechmill.tables.parquet_concat import RowGroupCopier, read_footer
from speechmill.tables.parquet_io import TableWriter, conform, metadata_value
from speechmill.tables.schemas import RANKING, ranking_schema
from speechmill.utils.statistics import QUANTILES, Distribution

ROW_GROUP = 100_000  # rows of the merged table, where they are written again
COPIED_ROWS = 5_000  # in smaller row groups, compression suffers and the footer grows
DIGITS = 6  # significant ones of a quantile
_COLUMNS = ["state", "criterion", "error_class", "message", "input_duration", "duration", "variant", "closeness"]
_COLUMNS += ["failed_gates", "near_duplicate_of"]


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
    """Read every ranking table once: see `OverviewReader.result`."""
    reader = OverviewReader()
    read_parts(ranking_files, reader)
    return reader.result(failed)


class OverviewReader:
    """Counts and measures all clips of the ranking tables."""

    def __init__(self) -> None:
        self._found = Overview()
        self._path: Path | None = None
        self._before: Counter[str] = Counter()  # clips before the present file

    def columns(self, names: Sequence[str]) -> Iterable[str]:
        return (name for name in names if name in _COLUMNS or name in WHO or name not in RANKING.names)

    def add(self, part: Part) -> None:
        found, table = self._found, part.table
        metrics = [name for name in table.column_names if name not in RANKING.names]
        for name in metrics:
            found.metrics.setdefault(name, Distribution())
        state = {name: part.has_state(name) for name in STATES}
        self._count(part)
        found.breakdown.add(part)
        for name, column, counter in (
            ("rejected", part.criterion, found.rejected_by),
            ("errored", table["error_class"], found.errored_by),
        ):
            for reason, count in _counts(column.filter(pa.array(state[name]))).items():
                counter[reason] += count
                if (name, reason) not in found.messages:
                    of_reason = pc.fill_null(pc.equal(column, reason), False).to_numpy(zero_copy_only=False)
                    first = int(np.argmax(state[name] & of_reason))
                    found.messages[name, reason] = table["message"][first].as_py() or ""
        found.unranked.update(_counts(part.criterion.filter(pa.array(state["rejected"] & ~part.has_closeness))))

        ranked = part.has_closeness & ~state["duplicate"]
        found.variants.update(_counts(table["variant"].filter(pa.array(ranked))))
        found.failed_gates.update(_counts(pc.list_flatten(table["failed_gates"].filter(pa.array(ranked)))))
        for name in metrics:
            found.metrics[name].add(part.numbers(name)[ranked])
        near = pc.is_valid(table["near_duplicate_of"]).to_numpy()
        found.near_duplicates += int(np.count_nonzero(near & state["accepted"]))
        by_closeness = part.has_criterion("closeness")
        for name, rows in (
            ("ranked", ranked),
            ("accepted", ranked & state["accepted"]),
            ("closeness", ranked & by_closeness),
            ("gate", ranked & state["rejected"] & ~by_closeness),
        ):
            found.closeness[name].add(part.closeness[rows])

    def _count(self, part: Part) -> None:
        """Clips and seconds of each file by state. Seconds are added by file: how files share parts does not show."""
        found, width = self._found, len(STATES) + 1
        cells = part.piece * width + part.state + 1  # without a valid state: 0
        lengths = np.nan_to_num(part.numbers("input_duration"))
        clips, seconds = (
            np.bincount(cells, weights, len(part.pieces) * width).reshape(-1, width) for weights in (None, lengths)
        )
        start = 0
        for piece, of_states, lasting in zip(part.pieces, clips.tolist(), seconds.tolist(), strict=True):
            rows = part.table.slice(start, piece.rows)
            accepted = pa.array(part.has_state("accepted")[start : start + piece.rows])
            found.seconds["input"] += pc.sum(rows["input_duration"]).as_py() or 0.0
            found.seconds["accepted"] += pc.sum(rows["duration"].filter(accepted)).as_py() or 0.0
            start += piece.rows
            if piece.path != self._path:
                self._end_file()
                self._path = piece.path
                found.batches += 1
                found.passed_over.update(metadata_value(piece.metadata, "passed_over") or {})
            found.clips.update(input=piece.rows, **dict(zip(STATES, of_states[1:], strict=True)))
            found.input_seconds.update({name: round(value, 3) for name, value in zip(STATES, lasting[1:], strict=True)})

    def _end_file(self) -> None:
        if self._path is not None:
            counts = {state: self._found.clips[state] - self._before[state] for state in ("input", *STATES)}
            check_balance(counts, f"batch {self._path.stem}")
        self._before = Counter(self._found.clips)

    def result(self, failed: Mapping[str, int] | None = None) -> Overview:
        """All of it. `failed` are batches without a table and their clips: errored as `batch_failed`.

        Raises:
            LedgerError: the states of a batch or of the run do not balance.
        """
        self._end_file()
        found = self._found
        for batch, clips in (failed or {}).items():
            found.failed[batch] = clips
            found.clips.update(input=clips, errored=clips)
            found.errored_by["batch_failed"] += clips
            found.messages["errored", "batch_failed"] = "its batch failed in every attempt; logs/batches/ says why"
        check_balance({"input": 0, **dict.fromkeys(STATES, 0), **found.clips})
        return found


def _counts(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column.drop_null()).to_pylist()}


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

    A metric that a file lacks, or has only nulls for, is null there. Row groups of `COPIED_ROWS` rows or more are copied
    as they are. Small ones, and those of files with other columns, are written again and share a row group. The file
    appears complete or not at all.
    """
    metrics = {name for path in ranking_files for name in pq.read_schema(path).names} - set(RANKING.names)
    schema = ranking_schema(sorted(metrics))
    held: list[pa.Table] = []

    def flush() -> None:
        if held:
            rows = io.BytesIO()
            writer = TableWriter(rows, schema, ROW_GROUP, ())
            writer.write_table(pa.concat_tables(held))
            writer.close()
            copier.append(rows.getbuffer(), read_footer(rows.getbuffer()))
            held.clear()

    with atomic_path(out) as temporary, temporary.open("wb") as file:
        copier = RowGroupCopier(file, schema)
        for path in ranking_files:
            content = path.read_bytes()
            footer = read_footer(content)
            if copier.takes(footer, COPIED_ROWS):
                flush()
                copier.append(content, footer)
                continue
            held.append(conform(pq.read_table(pa.BufferReader(content)), schema))
            if sum(map(len, held)) >= ROW_GROUP:
                flush()
        flush()
        copier.close()


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
