"""What changed between two runs: states, reasons, metrics, rates, settings and versions.

Counts come from the summaries; hours by state, transitions and metrics from all rows of the ranking tables, a column at
a time: about 120 bytes per clip are held at the most. A clip is the same in both runs if its id is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.errors import SpeechmillError
from speechmill.ranking.states import STATES
from speechmill.storage.files import read_json
from speechmill.tables.batches import CLIP_ID_DIGITS
from speechmill.tables.schemas import RANKING
from speechmill.utils.differences import FACTS, SIDES, difference, differing, dotted
from speechmill.utils.statistics import QUANTILES
from speechmill.utils.text import plain

READ_ROWS = 1_000_000
COMPARED = ("closeness", "duration")  # like metrics
COUNTED = ("rejected_by", "errored_by", "variants")

_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**53}
_TIME = {"type": "number", "minimum": 0, "maximum": 2**53}
_COUNTS = {"type": "object", "additionalProperties": _COUNT}
_SUMMARY = {
    "type": "object",
    "required": ["dataset", "clips", "hours", *COUNTED, "versions", "timing"],
    "properties": {
        "clips": {**_COUNTS, "required": ["input", *STATES]},
        "hours": {"type": "object", "required": ["input", "accepted"], "additionalProperties": _TIME},
        **dict.fromkeys(COUNTED, _COUNTS),
        "failed_batches": _COUNTS,
        "versions": {"type": "object"},
        "config": {"type": "object"},
        "timing": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["jobs", "seconds"],
                "properties": {"jobs": _COUNT, "seconds": _TIME},
            },
        },
    },
}


def compare(before: Path, after: Path) -> dict[str, Any]:
    """What two finished runs have in common and what not, as values of JSON.

    A difference is after - before. Of what only one side has (a version, a setting), the other side is left out.
    `metrics` are over ranked clips, as in the summary, the largest Kolmogorov-Smirnov statistic first; `in_both` of each
    is over the clips of both runs. `configuration` is None where a summary does not tell it. `changed` is about all but
    the rates.

    Raises:
        SpeechmillError: a run has no summary or table, or one that cannot be read.
    """
    summaries = {"before": _summary(before), "after": _summary(after)}
    tables = {"before": _Clips(before, summaries["before"]), "after": _Clips(after, summaries["after"])}
    rows = _same_clips(tables["before"], tables["after"])
    settings = [dotted(summary["config"]) for summary in summaries.values() if "config" in summary]
    found: dict[str, Any] = {
        "before": str(before),
        "after": str(after),
        "facts": differing(*({name: s[name] for name in FACTS if name in s} for s in summaries.values())),
        "clips": {
            state: _counts(summaries, "clips", state) | _shares(summaries, state) for state in ("input", *STATES)
        },
        "hours": {
            state: difference(*(round(table.hours[state], 6) for table in tables.values()))
            for state in ("input", *STATES)
        },
        "hours_published": difference(*(summary["hours"]["accepted"] for summary in summaries.values())),
        **{
            name: {
                reason: _counts(summaries, name, reason)
                for reason in sorted({*summaries["before"][name], *summaries["after"][name]})
            }
            for name in COUNTED
        },
        "clips_in_both": len(rows[0]),
        "clips_only_before": tables["before"].rows - len(rows[0]),
        "clips_only_after": tables["after"].rows - len(rows[0]),
        "transitions": _transitions(tables, rows),
        "metrics": _metrics(tables, rows),
        "metrics_only_before": sorted(tables["before"].metrics - tables["after"].metrics),
        "metrics_only_after": sorted(tables["after"].metrics - tables["before"].metrics),
        "rates": _rates(summaries),
        "configuration": differing(*settings) if len(settings) == 2 else None,
        "versions": differing(summaries["before"]["versions"], summaries["after"]["versions"]),
    }
    return found | {"changed": _has_changed(found)}


def _summary(run: Path) -> dict[str, Any]:
    from jsonschema import Draft202012Validator

    path = run / "report" / "summary.json"
    try:
        summary: dict[str, Any] = read_json(path)
    except OSError as error:
        raise SpeechmillError(f"{run}: no finished run here ({path}: {error.strerror}); start it first") from error
    except (ValueError, RecursionError) as error:
        raise SpeechmillError(f"{path} is damaged: delete that file and run again") from error
    problem = next(Draft202012Validator(_SUMMARY).iter_errors(summary), None)
    if problem:
        where = "".join(f" {plain(part, 40)}" for part in problem.absolute_path)
        raise SpeechmillError(
            f"{path} is not a summary that can be compared{where and f' (in{where})'}: {plain(problem.message, 200)}. "
            "Delete that file and run again"
        )
    return summary


class _Clips:
    """The ranking table of a run: of each clip the id (96 bits), the state and whether it is ranked; hours by state.

    Other columns are read when they are asked for. `_same_clips` drops the ids.
    """

    def __init__(self, run: Path, summary: Mapping[str, Any]):
        self.path = run / "report" / "ranking.parquet"
        names = self._open()
        self.metrics = {name for name in names if name not in RANKING.names} | {*COMPARED}
        self.ids = np.empty(self.rows, np.dtype([("head", "<u8"), ("tail", "<u4")]))
        self.states = np.empty(self.rows, np.uint8)
        self.ranked = np.empty(self.rows, bool)
        seconds = np.zeros(len(STATES))
        with self._reading():
            for at, part in self._parts(["id", "state", "closeness", "input_duration"]):
                self.ids[at] = self._ids(part["id"])
                states = pc.index_in(part["state"], value_set=pa.array(STATES))
                if states.null_count:
                    self._damaged(f"a clip has a state that is none of {', '.join(STATES)}")
                self.states[at] = states.to_numpy()
                self.ranked[at] = pc.is_valid(part["closeness"]).to_numpy(zero_copy_only=False)
                durations = _floats(part["input_duration"])
                known = np.isfinite(durations)
                seconds += np.bincount(self.states[at][known], durations[known], len(STATES))
        self.ranked &= self.states != STATES.index("duplicate")
        self.hours = {state: float(seconds[number]) / 3600 for number, state in enumerate(STATES)}
        self.hours["input"] = float(seconds.sum()) / 3600
        counts = dict(zip(STATES, np.bincount(self.states, minlength=len(STATES)).tolist(), strict=True))
        counts["errored"] += sum(summary.get("failed_batches", {}).values())  # these have no rows
        if counts != {state: summary["clips"][state] for state in STATES}:
            self._damaged("it and the summary beside it do not have the same clips")

    def column(self, name: str) -> np.ndarray:
        """A column of numbers (rows,), NaN where there is none."""
        values = np.empty(self.rows)
        with self._reading():
            for at, part in self._parts([name]):
                values[at] = _floats(part[name])
        return values

    def order(self) -> np.ndarray:
        """The rows (N,) in the order of their ids."""
        order = np.argsort(self.ids["head"])
        ordered = self.ids[order]
        if np.any(ordered[1:] == ordered[:-1]):
            self._damaged("a clip is there twice")
        return order

    def _open(self) -> list[str]:
        """Read how many rows there are; the names of the numeric columns."""
        with self._reading(), pq.ParquetFile(self.path) as file:
            self.rows, schema = file.metadata.num_rows, file.schema_arrow
        missing = {"id", "state", "input_duration", *COMPARED} - {*schema.names}
        if missing:
            self._damaged(f"it has no column {', '.join(sorted(missing))}")
        return [field.name for field in schema if pa.types.is_floating(field.type)]

    def _parts(self, columns: Sequence[str]) -> Iterator[tuple[slice, pa.RecordBatch]]:
        """Pieces of the table, and which rows they are."""
        row = 0
        with pq.ParquetFile(self.path) as file:
            for part in file.iter_batches(READ_ROWS, columns=list(columns)):
                yield slice(row, row + len(part)), part
                row += len(part)

    def _ids(self, column: pa.Array) -> np.ndarray:
        digits = pc.cast(pc.cast(column, pa.binary()), pa.binary(CLIP_ID_DIGITS))  # refuses another length
        start = digits.offset * CLIP_ID_DIGITS
        text = digits.buffers()[1][start : start + len(digits) * CLIP_ID_DIGITS] if len(digits) else b""
        try:
            return np.frombuffer(bytes.fromhex(bytes(text).decode("ascii")), self.ids.dtype)
        except ValueError:
            self._damaged("an id is not of the form that speechmill gives")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None and self.path.exists():
                raise SpeechmillError(f"{self.path} cannot be read: {error}") from error
            self._damaged(error if self.path.exists() else "it is missing")

    def _damaged(self, what: object) -> NoReturn:
        raise SpeechmillError(
            f"{self.path} cannot be compared: {plain(what, 200).rstrip('.')}. "
            f"Delete {self.path.with_name('summary.json')} and run again: that makes both anew"
        )


def _floats(column: pa.Array) -> np.ndarray:
    return pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)


def _same_clips(before: _Clips, after: _Clips) -> tuple[np.ndarray, np.ndarray]:
    """The rows (N,) of the clips that both tables have: in the one, ascending, and in the other."""
    first, second = before.order(), after.order()
    if not len(second):
        return first[:0], second
    heads, pairs = after.ids["head"][second], [(first[:0], second[:0])]
    for start in range(0, len(first), READ_ROWS):
        rows = first[start : start + READ_ROWS]
        others = second[np.minimum(np.searchsorted(heads, before.ids["head"][rows]), len(second) - 1)]
        same = before.ids[rows] == after.ids[others]
        pairs.append((rows[same], others[same]))
    del before.ids, after.ids  # a third of all that is held
    first, second = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    order = np.argsort(first)
    return first[order], second[order]


def _transitions(tables: Mapping[str, _Clips], rows: tuple[np.ndarray, np.ndarray]) -> dict[str, dict[str, int]]:
    """State before -> state after -> clips."""
    was, became = tables["before"].states[rows[0]].astype(np.intp), tables["after"].states[rows[1]]
    counts = np.bincount(was * len(STATES) + became, minlength=len(STATES) ** 2).reshape(len(STATES), -1)
    return {state: dict(zip(STATES, line, strict=True)) for state, line in zip(STATES, counts.tolist(), strict=True)}


def _metrics(tables: Mapping[str, _Clips], rows: tuple[np.ndarray, np.ndarray]) -> list[dict[str, Any]]:
    """Of every metric of both tables: its distributions, their distance, and what became of the values of clips."""
    found = []
    for name in tables["before"].metrics & tables["after"].metrics:
        columns = {side: table.column(name) for side, table in tables.items()}
        values = {side: _ordered(column[tables[side].ranked]) for side, column in columns.items()}
        found.append(
            {
                "metric": name,
                "ks_statistic": ks_statistic(*values.values()),
                **{side: _described(ordered) for side, ordered in values.items()},
                "in_both": _paired(columns["before"], columns["after"], rows),
            }
        )
    return sorted(
        found,
        key=lambda one: (-(one["ks_statistic"] or 0.0), -one["in_both"]["changed"], one["metric"]),
    )


def _ordered(values: np.ndarray) -> np.ndarray:
    values = values[np.isfinite(values)]
    values.sort()
    return values


def ks_statistic(first: np.ndarray, second: np.ndarray) -> float | None:
    """Two-sample Kolmogorov-Smirnov statistic of ascending values (N,) and (M,): the largest distance of their
    distribution functions, 0..1; None where one has no values.
    """
    if not len(first) or not len(second):
        return None
    most = 0.0
    for values in (first, second):
        for start in range(0, len(values), READ_ROWS):
            points = values[start : start + READ_ROWS]
            shares = [np.searchsorted(side, points, side="right") / len(side) for side in (first, second)]
            most = max(most, float(np.max(np.abs(shares[0] - shares[1]))))
    return most


def _described(ordered: np.ndarray) -> dict[str, Any]:
    """Number of values, mean and quantiles (linear between neighbours) of ascending ones."""
    if not len(ordered):
        return {"clips": 0, "mean": None, **dict.fromkeys(QUANTILES)}
    quantiles = np.quantile(ordered, list(QUANTILES.values())).tolist()
    return {"clips": len(ordered), "mean": float(ordered.mean()), **dict(zip(QUANTILES, quantiles, strict=True))}


def _paired(before: np.ndarray, after: np.ndarray, rows: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Clips with a value in both runs, how many have another one or one in only one run, and the mean difference."""
    measured, changed, total = 0, 0, 0.0
    for start in range(0, len(rows[0]), READ_ROWS):
        was, became = (values[of[start : start + READ_ROWS]] for values, of in zip((before, after), rows, strict=True))
        had, has = np.isfinite(was), np.isfinite(became)
        differences = became[had & has] - was[had & has]
        measured += len(differences)
        changed += int(np.count_nonzero(differences)) + int(np.count_nonzero(had != has))
        total += float(differences.sum())
    return {"clips": measured, "changed": changed, "mean_difference": total / measured if measured else None}


def _rates(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of every stage the jobs, their seconds, and the hours of input per hour of job time."""
    found: dict[str, dict[str, Any]] = {}
    for side, summary in summaries.items():
        for stage, timing in summary["timing"].items():
            seconds = timing["seconds"]
            rate = round(summary["hours"]["input"] * 3600 / seconds, 3) if seconds else None
            found.setdefault(stage, {})[side] = {"jobs": timing["jobs"], "seconds": seconds, "hours_per_hour": rate}
    return found


def _counts(summaries: Mapping[str, Mapping[str, Any]], group: str, name: str) -> dict[str, int]:
    return difference(*(summary[group].get(name, 0) for summary in summaries.values()))


def _shares(summaries: Mapping[str, Mapping[str, Any]], state: str) -> dict[str, float]:
    """Percent of all clips before and after, and by how many points they differ."""
    shares = [
        100 * summary["clips"][state] / summary["clips"]["input"] if summary["clips"]["input"] else 0.0
        for summary in summaries.values()
    ]
    return {
        f"percent_{name}": round(share, 3)
        for name, share in (("before", shares[0]), ("after", shares[1]), ("points", shares[1] - shares[0]))
    }


def _has_changed(found: Mapping[str, Any]) -> bool:
    counts = [one["difference"] for name in ("clips", "hours", *COUNTED) for one in found[name].values()]
    only = [found[f"{what}_only_{side}"] for what in ("clips", "metrics") for side in SIDES]
    named = [found[name] for name in ("facts", "configuration", "versions")]
    return any([*counts, moved(found["transitions"]), *only, *named, *map(has_moved, found["metrics"])])


def moved(transitions: Mapping[str, Mapping[str, int]]) -> int:
    """Clips with another state than before."""
    return sum(clips for was, line in transitions.items() for became, clips in line.items() if became != was)


def has_moved(metric: Mapping[str, Any]) -> bool:
    """Whether a metric has another distribution, or another value for a clip."""
    return bool(metric["ks_statistic"] or metric["in_both"]["changed"]) or metric["before"] != metric["after"]
