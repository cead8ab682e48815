"""What another profile, threshold or weights would change in a finished run: decided from its tables, without audio.

The decision is `ranking.decide.judge`, as in the workflow. What does not depend on a profile (a clip that was not
enhanced or scored, a duplicate, one of a held-out split, a removed one) is taken from the table as it is.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from speechmill.config import deciding_settings
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.metrics import all_metrics
from speechmill.ranking.decide import HELD_OUT, MISSING, TOO_FEW, judge, numbers
from speechmill.ranking.profile import FrozenProfile, freeze, load_profile
from speechmill.ranking.removals import REMOVED, is_removed, read_removals
from speechmill.ranking.states import STATES
from speechmill.ranking.topsis import Array
from speechmill.runs.plan import CHECKOUT, RUN_FILE, Plan, plan_config, read_plan
from speechmill.storage.files import read_json
from speechmill.tables.schemas import RANKING
from speechmill.utils.differences import differing, dotted
from speechmill.utils.text import plain
from speechmill.utils.threads import bounded_map

PROFILES = CHECKOUT / "config" / "ranking"
ACCEPTED, REJECTED, ERRORED, DUPLICATE = range(len(STATES))
KEPT = -1  # the reason that the table has
AVERAGED = ("closeness", "duration")  # like metrics
_COLUMNS = ["state", "criterion", "error_class", "duration", "coverage", "closeness"]
_WORDS = ["state", "criterion", "error_class"]
MOST_THREADS = 8  # each holds a row group


@dataclass(frozen=True)
class Decided:
    """Clips (N,) as they were and as they would be."""

    before: NDArray[np.int8]  # index of STATES
    after: NDArray[np.int8]
    reason: NDArray[np.int16]  # index of the profile's `reasons`, KEPT, or meaningless where accepted
    closeness: Array  # under the other profile


def reasons(profile: FrozenProfile) -> list[str]:
    """Criteria and error classes that clips are decided by, in the order of `Decided.reason`."""
    return ["closeness", TOO_FEW, MISSING, REMOVED, *(gate.metric for gate in profile.gates)]


def decide_again(table: pa.Table, profile: FrozenProfile, gone: NDArray[np.bool_], where: str) -> Decided:
    """Decide rows of a ranking table (`RANKING` and metrics) by another profile.

    Args:
        gone: rows (N,) whose removal somebody asked for.
        where: which run it is, for people.

    Raises:
        ConfigError: the table lacks a column that the profile ranks by.
        SpeechmillError: it has an unknown state.
    """
    states = pc.index_in(table["state"].cast(pa.string()), value_set=pa.array(STATES))
    if states.null_count:
        raise SpeechmillError(f"{where}: a clip has a state that is none of {', '.join(STATES)}")
    before = states.to_numpy().astype(np.int8)
    known = pc.is_in(table["criterion"].cast(pa.string()), value_set=pa.array([HELD_OUT, REMOVED]))
    fixed = known.to_numpy().astype(bool)
    scored = pc.is_valid(table["coverage"]).to_numpy().astype(bool)
    left = scored & (before != DUPLICATE) & ~fixed & ~gone
    names = {criterion.metric for criterion in profile.criteria} | {gate.metric for gate in profile.gates}
    judged = {name: numbers(table[name]) for name in names if name in table.column_names}
    verdict = judge(judged, profile, scored, left, where)

    after, reason = before.copy(), np.full(len(before), KEPT, np.int16)
    first = len(reasons(profile)) - len(profile.gates)
    for mask, state, why in (
        (verdict.accepted, ACCEPTED, KEPT),
        (verdict.distant, REJECTED, 0),
        (verdict.errored & verdict.too_few, ERRORED, 1),
        (verdict.errored & ~verdict.too_few, ERRORED, 2),
        (verdict.gated, REJECTED, first + verdict.first_gate[verdict.gated]),
        (gone, REJECTED, 3),
    ):
        after[mask], reason[mask] = state, why
    return Decided(before, after, reason, verdict.closeness)


@dataclass
class Totals:
    """What a preview says, added up over parts of the table in their order."""

    clips: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(STATES), len(STATES)), np.int64))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("before", "after", "in", "out"), 0.0))
    reasons: dict[str, Counter[tuple[str, str]]] = field(
        default_factory=lambda: {side: Counter() for side in ("before", "after", "in", "out")}
    )
    metrics: dict[str, Array] = field(default_factory=dict)  # name -> clips and sum before, clips and sum after

    def add(self, other: Totals) -> None:
        self.clips += other.clips
        for side in self.seconds:
            self.seconds[side] += other.seconds[side]
            self.reasons[side].update(other.reasons[side])
        for name, sums in other.metrics.items():
            self.metrics[name] = self.metrics.get(name, np.zeros(4)) + sums


def preview(
    run_dir: Path,
    profile: str | None = None,
    threshold: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What a finished run would become with another ranking, as values of JSON. What is None stays as configured.

    `in` are clips that would be accepted and were not, `out` the reverse. `setting` is the section `rank` that does
    it for real. `published` is None, or what the sentinel says, and whether it `is_compared_with`: else the
    comparison is with the run's last report.

    Raises:
        SpeechmillError: the run has no current report, or a table of it cannot be read.
        ConfigError: the profile or weights are not valid.
    """
    summary = _summary(run_dir)
    setting, other = _setting(run_dir, summary, profile, threshold, weights)
    frozen = _frozen(run_dir, setting)
    table = run_dir / "report" / "ranking.parquet"
    found = Totals()
    try:
        for part in _totals(table, frozen, read_removals(run_dir)):
            found.add(part)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SpeechmillError(
            f"{table} cannot be read: {plain(error, 200).rstrip('.')}. Delete {run_dir / 'report' / 'summary.json'} "
            "and run again: that makes both anew"
        ) from error
    failed = sum(summary["failed_batches"].values())  # these have no rows
    found.clips[ERRORED, ERRORED] += failed
    for side in ("before", "after"):
        found.reasons[side]["errored", "batch_failed"] += failed
    sides = {"before": found.clips.sum(1).tolist(), "after": found.clips.sum(0).tolist()}
    if dict(zip(STATES, sides["before"], strict=True)) != {state: summary["clips"][state] for state in STATES}:
        raise SpeechmillError(f"{table} and the summary beside it do not have the same clips: run again")
    before = read_json(run_dir / "ranking" / "profile.json")
    return {
        "run": str(run_dir),
        "published": _published(run_dir, summary),
        "profile": {
            side: {"name": one["name"], "sha256": one["sha256"], "threshold": one["threshold"], "weights": _shares(one)}
            for side, one in (("before", before), ("after", frozen.to_json()))
        },
        "clips": {state: _pair(*(sides[side][n] for side in sides)) for n, state in enumerate(STATES)},
        "hours_accepted": _pair(*(round(found.seconds[side] / 3600, 6) for side in sides)),
        **{
            side: {
                "clips": int(count),
                "hours": round(found.seconds[side] / 3600, 6),
                "reasons": _ordered({reason: number for (_, reason), number in found.reasons[side].items()}),
            }
            for side, count in (
                ("in", found.clips[:, ACCEPTED].sum() - found.clips[ACCEPTED, ACCEPTED]),
                ("out", found.clips[ACCEPTED].sum() - found.clips[ACCEPTED, ACCEPTED]),
            )
        },
        "transitions": {
            state: dict(zip(STATES, line, strict=True))
            for state, line in zip(STATES, found.clips.tolist(), strict=True)
        },
        **{f"{state}_by": _by_reason(found, state) for state in ("rejected", "errored")},
        "metrics": {name: _means(sums) for name, sums in sorted(found.metrics.items())},
        "setting": setting,
        "other_settings": other,
    }


def read_weights(pairs: Iterable[str]) -> dict[str, float]:
    """Weights by group from GROUP=W.

    Raises:
        ConfigError: one has another form.
    """
    found = {}
    for pair in pairs:
        name, separator, weight = pair.partition("=")
        try:
            found[name] = float(weight)
        except ValueError:
            separator = ""
        if not separator:
            raise ConfigError(f"--weights {pair}: expected the name of a group and a number, such as noise=0.4")
    return found


def setting_line(setting: Mapping[str, Any]) -> str:
    """A section `rank` as one line of YAML, which is also a value for --config."""
    return yaml.safe_dump(
        dict(setting), default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True
    ).strip()


def publish_plan(run_dir: Path, found: Mapping[str, Any]) -> Plan:
    """How to start the run so that it becomes what a preview `found`: as it was started, but for the ranking.

    Raises:
        SpeechmillError: `speechmill run` did not start it, or more than the ranking has changed since its report.
    """
    setting = f"rank={setting_line(found['setting'])}"
    if not (run_dir / RUN_FILE).exists():
        raise SpeechmillError(
            f"{run_dir} was not started by speechmill run ({RUN_FILE} is missing), so how is not known: start it as before, "
            f"with --config '{setting}'"
        )
    if found["other_settings"]:
        raise SpeechmillError(
            f"{run_dir}: since its report other settings have changed, too ({', '.join(found['other_settings'])}); to "
            f"have all of it done: speechmill run, with --config '{setting}'"
        )
    plan = read_plan(run_dir)
    plan = replace(plan, config=[*(pair for pair in plan.config if not pair.startswith("rank=")), setting])
    plan_config(plan)
    return plan


def _summary(run_dir: Path) -> dict[str, Any]:
    """The summary of a run whose report is of its present ranking."""
    again = f"go on with it first: speechmill resume {run_dir} (or speechmill run)"
    try:
        summary: dict[str, Any] = read_json(run_dir / "report" / "summary.json")
        frozen = read_json(run_dir / "ranking" / "profile.json")
        if summary["profile_sha256"] != frozen["sha256"]:
            raise SpeechmillError(f"{run_dir}: its report is older than its ranking; {again}")
        missing = {"config", "clips", "failed_batches"} - {*summary}
    except OSError as error:
        raise SpeechmillError(f"{run_dir}: no finished report here ({error.filename} is missing); {again}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpeechmillError(f"{run_dir}: its report cannot be read ({plain(error, 200)}); {again}") from error
    if missing:
        raise SpeechmillError(f"{run_dir}: its report is by an older version of speechmill; {again}")
    if not (run_dir / "report" / "ranking.parquet").exists():
        raise SpeechmillError(f"{run_dir}: no finished report here (report/ranking.parquet is missing); {again}")
    return summary


def _setting(
    run_dir: Path,
    summary: Mapping[str, Any],
    profile: str | None,
    threshold: float | None,
    weights: Mapping[str, float] | None,
) -> tuple[dict[str, Any], list[str]]:
    """The section `rank` as it is configured now, with what is given; other settings that differ from the report's."""
    other: list[str] = []
    configured, reported = summary["config"], summary["config"]
    if (run_dir / RUN_FILE).exists():
        configured = json.loads(json.dumps(deciding_settings(plan_config(read_plan(run_dir)))))
        other = _differing(reported, configured)
    rank = configured["rank"]
    setting = {
        "profile": rank["profile"] if profile is None else _absolute(profile, Path()),
        "threshold": rank["threshold"] if threshold is None else threshold,
        "weights": changed_weights(rank, profile, weights),
    }
    return setting, other


def changed_weights(
    rank: Mapping[str, Any], profile: str | None, weights: Mapping[str, float] | None
) -> dict[str, float | None]:
    """The setting `rank.weights` of a section `rank` with what is given; None undoes a weight, as settings are merged."""
    kept = rank.get("weights", {})
    if profile is not None:
        kept = dict.fromkeys(kept)  # they are of the groups of the other profile
    return kept | dict(weights or {})


def _differing(reported: Mapping[str, Any], configured: Mapping[str, Any]) -> list[str]:
    """Settings that both have, with different values, other than of the ranking."""
    found = differing(dotted(reported), dotted(configured))
    return [name for name, sides in found.items() if len(sides) == 2 and not name.startswith("rank.")]


def _frozen(run_dir: Path, setting: Mapping[str, Any]) -> FrozenProfile:
    """The profile as the workflow would freeze it."""
    directory = Path(read_plan(run_dir).directory) if (run_dir / RUN_FILE).exists() else Path()
    profile = load_profile(_absolute(setting["profile"], directory), PROFILES, all_metrics())
    try:
        measured = read_json(run_dir / "preflight.json")["metrics"]
    except (OSError, ValueError, KeyError) as error:
        raise SpeechmillError(f"{run_dir}/preflight.json cannot be read ({error}): run again") from error
    return freeze(profile, measured, setting["threshold"], setting["weights"])


def _absolute(profile: str, directory: Path) -> str:
    """The name of one of our profiles as it is, a path in full."""
    is_ours = (PROFILES / f"{profile}.yaml").is_file()
    return profile if is_ours or not (directory / profile).is_file() else str((directory / profile).resolve())


def _totals(path: Path, profile: FrozenProfile, removals: Mapping[str, Sequence[str]]) -> Iterator[Totals]:
    """Of every row group, in their order; threads work on a few at a time."""
    with pq.ParquetFile(path) as file:
        metadata, names = file.metadata, file.schema_arrow.names
    metrics = [name for name in names if name not in RANKING.names]
    columns = [*_COLUMNS, *metrics, *(["id", "speaker_id"] if any(removals.values()) else [])]
    where = str(path.parents[1])

    def of_group(number: int) -> Totals:
        with pq.ParquetFile(path, metadata=metadata, read_dictionary=_WORDS) as file:
            table = file.read_row_group(number, columns=columns, use_threads=False)
        gone = is_removed(table, removals).to_numpy(zero_copy_only=False).astype(bool)
        return _counted(table, decide_again(table, profile, gone, where), reasons(profile), metrics)

    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        yield from bounded_map(pool, of_group, range(metadata.num_row_groups), ahead=2 * threads)


def _counted(table: pa.Table, decided: Decided, names: Sequence[str], metrics: Sequence[str]) -> Totals:
    before, after = decided.before, decided.after
    found = Totals()
    found.clips += np.bincount(before.astype(np.intp) * len(STATES) + after, minlength=len(STATES) ** 2).reshape(
        len(STATES), -1
    )
    was, becomes = before == ACCEPTED, after == ACCEPTED
    comes, goes = becomes & ~was, was & ~becomes
    kept = decided.reason == KEPT
    for state, column in ((REJECTED, "criterion"), (ERRORED, "error_class")):
        new = (after == state) & ~kept
        for side, mask in (
            ("before", before == state),
            ("after", (after == state) & kept),
            ("in", comes & (before == state)),
        ):
            found.reasons[side].update({(STATES[state], why): n for why, n in _counts(table[column], mask).items()})
        for side, mask in (("after", new), ("out", new & goes)):
            counts = np.bincount(decided.reason[mask], minlength=len(names)).tolist()
            found.reasons[side].update({(STATES[state], why): n for why, n in zip(names, counts, strict=True) if n})
    seconds = np.nan_to_num(numbers(table["duration"]))
    for side, mask in (("before", was), ("after", becomes), ("in", comes), ("out", goes)):
        found.seconds[side] = float(seconds[mask].sum())
    for name in (*AVERAGED, *metrics):
        values = numbers(table[name])
        present, values = np.isfinite(values), np.nan_to_num(values)
        sums = [float(value) for mask in (was, becomes) for value in ((mask & present).sum(), values[mask].sum())]
        if name == "closeness":
            sums[2:] = float(becomes.sum()), float(decided.closeness[becomes].sum())
        found.metrics[name] = np.array(sums)
    return found


def _counts(column: pa.ChunkedArray, mask: NDArray[np.bool_]) -> dict[str, int]:
    values = pc.value_counts(column.filter(pa.array(mask)).drop_null().cast(pa.string()))
    return {item["values"]: item["counts"] for item in values.to_pylist()}


def _published(run_dir: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    path = run_dir / "published" / "UPLOADED.json"
    if not path.exists():
        return None
    try:
        sentinel = read_json(path)
        same = sentinel["profile_sha256"] == summary["profile_sha256"]
        same &= sentinel["accepted"] == summary["clips"]["accepted"]
        names = ("target", "accepted", "hours", "profile_sha256")
        return {name: sentinel[name] for name in names} | {"is_compared_with": same}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpeechmillError(f"{path} cannot be read ({error}): delete it and run again") from error


def _shares(profile: Mapping[str, Any]) -> dict[str, float]:
    """Group -> its share of the weight."""
    found: dict[str, float] = {}
    for criterion in profile["criteria"]:
        found[criterion["group"]] = found.get(criterion["group"], 0.0) + criterion["weight"]
    return {name: round(weight, 6) for name, weight in found.items()}


def _by_reason(found: Totals, state: str) -> dict[str, dict[str, Any]]:
    counts = [
        {why: n for (of, why), n in found.reasons[side].items() if of == state and n} for side in ("before", "after")
    ]
    return {why: _pair(*(one.get(why, 0) for one in counts)) for why in _ordered(counts[0] | counts[1])}


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0])))


def _means(sums: Array) -> dict[str, Any]:
    means = [total / clips if clips else None for clips, total in (sums[:2].tolist(), sums[2:].tolist())]
    was, becomes = means
    difference = None if was is None or becomes is None else becomes - was
    return {"before": was, "after": becomes, "difference": difference}


def _pair(before: Any, after: Any) -> dict[str, Any]:
    return {"before": before, "after": after, "difference": round(after - before, 6)}
