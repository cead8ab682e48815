"""The balance of states: every input clip ends in exactly one state, with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from speechmill.errors import LedgerError

STATES = ("accepted", "rejected", "errored", "duplicate")
# The columns with the reason of each state. In a row, only those of its own state are filled.
REASONS = {
    "accepted": (),
    "rejected": ("criterion", "value", "threshold"),
    "errored": ("error_class",),
    "duplicate": ("duplicate_of",),
}
NAMED = 5  # ids that a message shows


def check_batch(manifest_ids: Iterable[str], ledger: pa.Table, ranking: pa.Table, batch: str) -> None:
    """Check that every clip of the manifest is in the ledger and has exactly one final state, with its reason.

    Raises:
        LedgerError: names the batch, what is wrong, how many clips and the first few.
    """
    expected = (
        pa.chunked_array([pa.array(manifest_ids, pa.string())])
        if not isinstance(manifest_ids, pa.ChunkedArray)
        else manifest_ids
    )
    unique = pc.count_distinct(expected).as_py() == len(expected)
    for where, ids in (("the ledger", ledger["id"]), ("the ranking", ranking["id"])):
        if not (unique and ids.equals(expected)):  # quick, and nearly always so
            _same_ids(expected.to_pylist(), ids.to_pylist(), where, batch)
    reasons = sorted({column for columns in REASONS.values() for column in columns})
    state = ranking["state"]
    known = pc.is_in(state, value_set=pa.array(STATES))
    problems: dict[str, pa.ChunkedArray] = {
        f"have the state {name!r}, which is none of {', '.join(STATES)}": pc.equal(state, name)
        for name in pc.unique(state.filter(pc.invert(known))).to_pylist()
    }
    for name, columns in REASONS.items():
        for column in reasons:
            wrong = pc.is_null(ranking[column]) if column in columns else pc.is_valid(ranking[column])
            problem = f"are {name} {'without' if column in columns else 'but with'} {column}"
            problems[problem] = pc.and_(pc.equal(state, name), wrong)
    problems["are accepted without closeness"] = pc.and_(pc.equal(state, "accepted"), pc.is_null(ranking["closeness"]))
    problems["repeat themselves"] = pc.fill_null(pc.equal(ranking["duplicate_of"], ranking["id"]), False)
    _fail(
        batch,
        {
            problem: ranking["id"].filter(wrong).to_pylist()
            for problem, wrong in problems.items()
            if pc.any(wrong).as_py()
        },
    )


def check_count(expected: int | None, ids: pa.ChunkedArray, batch: str) -> None:
    """Check that the ledger has as many rows as the manifest has clips of the batch (None: the number is unknown).

    Raises:
        LedgerError: the numbers differ.
    """
    if expected is not None and expected != len(ids):
        raise LedgerError(f"batch {batch} does not balance: the manifest has {expected} clips, the ledger {len(ids)}")


def _same_ids(expected: list[str], found: list[str], where: str, batch: str) -> None:
    wanted, there = Counter(expected), Counter(found)
    _fail(
        batch,
        {
            "are in the manifest twice": [name for name, count in wanted.items() if count > 1],
            f"are lost: they are in the manifest but not in {where}": sorted(wanted.keys() - there.keys()),
            f"are in {where} but not in the manifest": sorted(there.keys() - wanted.keys()),
            f"are in {where} twice": [name for name, count in there.items() if count > 1],
        },
    )


def _fail(batch: str, problems: Mapping[str, list[str]]) -> None:
    lines = [f"{len(ids)} clips {problem}: {_some(ids)}" for problem, ids in problems.items() if ids]
    if lines:
        raise LedgerError(f"batch {batch} does not balance:\n" + "\n".join(f"  - {line}" for line in lines))


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def count_states(ranking: pa.Table) -> dict[str, int]:
    """Number of rows (`input`) and of each final state. Other states are not counted, so they cannot balance."""
    counted = {item["values"]: item["counts"] for item in pc.value_counts(ranking["state"]).to_pylist()}
    return {"input": ranking.num_rows, **{state: counted.get(state, 0) for state in STATES}}


def tally(states: pa.ChunkedArray, seconds: pa.ChunkedArray) -> dict[str, dict[str, float]]:
    """Return `clips` and `audio_seconds` by state; a clip without a length counts as 0 seconds."""
    table = pa.table({"state": states, "seconds": pc.fill_null(seconds.cast(pa.float64()), 0.0)})
    rows = table.group_by("state").aggregate([("seconds", "count"), ("seconds", "sum")]).sort_by("state").to_pylist()
    return {
        "clips": {row["state"]: row["seconds_count"] for row in rows},
        "audio_seconds": {row["state"]: round(row["seconds_sum"], 3) for row in rows},
    }


def check_balance(counts: Mapping[str, int], where: str = "the run") -> None:
    """Check input = accepted + rejected + errored + duplicate.

    Raises:
        LedgerError: it is not so.
    """
    total = sum(counts[state] for state in STATES)
    if counts["input"] != total:
        parts = " + ".join(f"{counts[state]} {state}" for state in STATES)
        raise LedgerError(f"{where} does not balance: {counts['input']} clips came in, {parts} = {total} came out")


def check_manifest(clips: int, counts: Mapping[str, int]) -> None:
    """Check that as many clips came in as the manifest lists, and that their states balance.

    Raises:
        LedgerError: it is not so.
    """
    if counts["input"] != clips:
        raise LedgerError(f"the run does not balance: the manifest lists {clips} clips, {counts['input']} were ranked")
    check_balance(counts)
