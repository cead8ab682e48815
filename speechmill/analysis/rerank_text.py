"""A preview of another ranking for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechmill.analysis.rerank import setting_line
from speechmill.ranking.states import STATES
from speechmill.utils.tables_text import number_text, signed, table_text
from speechmill.utils.text import plain

SHOWN = 5  # reasons in a line


def preview_text(found: Mapping[str, Any]) -> str:
    """The preview in tables of at most 110 columns; reasons and metrics that stay as they are are left out."""
    parts = [_baseline_text(found)]
    if found["other_settings"]:
        parts.append(
            f"Since the report other settings have changed, too: {', '.join(found['other_settings'])}. "
            "A run will do more than rank anew."
        )
    lines = [
        [side, f"{one['name']} {one['sha256'][:8]}", number_text(one["threshold"]), _weights(one["weights"])]
        for side, one in found["profile"].items()
    ]
    parts.append(table_text("Ranking", ["", "profile", "threshold", "weights"], lines, justify="left"))
    lines = [[state, *signed(found["clips"][state])] for state in STATES]
    lines.append(["accepted hours", *signed(found["hours_accepted"], ".2f")])
    parts.append(table_text("Clips by state", ["", "before", "after", "difference"], lines))
    parts.append("\n".join(_moved(found[side], title) for side, title in (("in", "clips in: "), ("out", "clips out:"))))
    for state in ("rejected", "errored"):
        lines = [[why, *signed(one)] for why, one in found[f"{state}_by"].items() if one["difference"]]
        parts.append(table_text(f"{state.capitalize()} by", ["", "before", "after", "difference"], lines))
    lines = [
        [name, *(number_text(one[side]) for side in ("before", "after", "difference"))]
        for name, one in found["metrics"].items()
        if one["before"] != one["after"]
    ]
    parts.append(table_text("Mean over accepted clips", ["", "before", "after", "difference"], lines))
    parts.append(f"In the data set's file, this makes it permanent:\n  rank: {setting_line(found['setting'])}")
    return "\n\n".join(part for part in parts if part)


def _baseline_text(found: Mapping[str, Any]) -> str:
    published = found["published"]
    if published is None:
        return f"{found['run']}: nothing is published yet; before is the last report"
    there = f"{published['accepted']:,} clips, {published['hours']:.2f} h in {plain(published['target'])}"
    if published["is_compared_with"]:
        return f"{found['run']}: before is what is published ({there})"
    return f"{found['run']}: before is the last report, which is not what is published ({there})"


def _weights(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{plain(name, 40)} {weight:.3g}" for name, weight in weights.items())


def _moved(one: Mapping[str, Any], title: str) -> str:
    some = [f"{plain(why, 80)} {clips:,}" for why, clips in list(one["reasons"].items())[:SHOWN]]
    more = [f"{len(one['reasons']) - SHOWN} more"] if len(one["reasons"]) > SHOWN else []
    return f"{title} {one['clips']:,} ({one['hours']:.2f} h){': ' if some else ''}{', '.join(some + more)}"
