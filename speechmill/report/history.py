"""What became of a run from report to report: one line of `report/history.jsonl` for each that decided otherwise.

The file is appended to and belongs to no rule, so that it outlives the reports. A power cut costs a line at most.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speechmill import versions
from speechmill.ranking.states import STATES
from speechmill.storage import json_lines
from speechmill.utils.differences import FACTS, difference, differing, dotted
from speechmill.utils.times import utc_now

FILE = "history.jsonl"
DECIDED = ("clips", "hours", "rejected_by", "errored_by", "metrics", "near_duplicates", "failed_batches")
STAGES = ("ENHANCE", "SCORE", "DEDUP", "RANK", "RANKING_TABLE")  # of `versions`
_IDENTIFYING = ("profile", "profile_sha256", "threshold", "source_revision")


def entry_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says of a summary: of metrics the median alone, `hours` by state of decoded input, and published.

    The time is added when it is written.
    """
    stages = {f"speechmill, stage {name.lower()}": getattr(versions, name) for name in STAGES}
    return {
        **{name: summary.get(name) for name in (*FACTS, *DECIDED)},
        "hours": {
            "input": summary["hours"]["input"],
            **summary["input_hours"],
            "published": summary["hours"]["accepted"],
        },
        "metrics": {name: quantiles["p50"] for name, quantiles in summary["metrics"].items()},
        "versions": {**summary["versions"], **stages},
        "config": summary["config"],
    }


def previous(run_dir: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The last report of a run that decided otherwise than this one; None where there is none.

    A report that is made again is compared with the same one as before, whether or not it has its line already.
    """
    current = _decisions(entry_of(summary))
    return next((entry for entry in reversed(list(_entries(run_dir))) if _decisions(entry) != current), None)


def record_report(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Add a line for this report, unless the last one decided the same. What cannot be written is said, and no error."""
    entry = entry_of(summary)
    last = next(reversed(list(_entries(run_dir))), None)
    if last is not None and _decisions(last) == _decisions(entry):
        return
    line = json.dumps({"time": utc_now(), **entry}, ensure_ascii=False, sort_keys=True)
    path = run_dir / "report" / FILE
    try:
        json_lines.append(path, line, fsync=True)
    except OSError as error:
        print(f"{path} could not be written, the next report has nothing to compare with: {error}", file=sys.stderr)


def compare_with_previous(summary: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What is other than in an earlier report, as `previous` gives it, ready for a page.

    `time` of the earlier one; `rows` {group, name, before, after, difference} (after - before): clips and hours by
    state, the percentage of accepted clips, and of reasons and medians of metrics those that moved, None where only one
    side has it; `facts`, `settings`, `versions` {name: {before, after}}, without the side that does not have it.
    """
    after = entry_of(summary)
    rows = [_line("clips", state, before["clips"][state], after["clips"][state]) for state in ("input", *STATES)]
    shares = [100 * entry["clips"]["accepted"] / max(1, entry["clips"]["input"]) for entry in (before, after)]
    rows.append(_line("percent", "accepted", *(round(share, 3) for share in shares)))
    for group, missing in (("hours", 0.0), ("rejected_by", 0), ("errored_by", 0), ("metrics", None)):
        names = sorted({*before[group], *after[group]})
        lines = [_line(group, name, *(entry[group].get(name, missing) for entry in (before, after))) for name in names]
        rows += [line for line in lines if group == "hours" or line["before"] != line["after"]]
    return {
        "time": before["time"],
        "rows": rows,
        "facts": differing(*({name: entry.get(name) for name in FACTS} for entry in (before, after))),
        "settings": differing(dotted(before["config"]), dotted(after["config"])),
        "versions": differing(before["versions"], after["versions"]),
    }


def _line(group: str, name: str, before: float | None, after: float | None) -> dict[str, Any]:
    known = before is not None and after is not None
    values = difference(before, after) if known else {"before": before, "after": after, "difference": None}
    return {"group": group, "name": name, **values}


def _decisions(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a report another one: not the time, nor settings and packages that decided nothing."""
    return {name: entry.get(name) for name in (*_IDENTIFYING, *DECIDED)}


def _entries(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The lines that can be read, oldest first."""
    path = run_dir / "report" / FILE
    try:
        lines = json_lines.read(path)
    except FileNotFoundError:
        return
    except OSError as error:
        print(f"{path} cannot be read, there is nothing to compare with: {error}", file=sys.stderr)
        return
    yield from filter(_is_entry, lines)


def _is_entry(entry: dict[str, Any]) -> bool:
    """Whether a line has all that a comparison reads."""
    if not isinstance(entry.get("time"), str):
        return False
    parts = ("clips", "hours", "rejected_by", "errored_by", "metrics", "versions", "config")
    if not all(isinstance(entry.get(name), dict) for name in parts):
        return False
    counts = [entry["clips"].get(state) for state in ("input", *STATES)]
    counts += [value for name in ("hours", "rejected_by", "errored_by") for value in entry[name].values()]
    medians = [value for value in entry["metrics"].values() if value is not None]
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in counts + medians)
