"""The comparison of two runs for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from speechmill.analysis.compare import COUNTED, has_moved, moved
from speechmill.ranking.states import STATES
from speechmill.utils.differences import SIDES
from speechmill.utils.statistics import QUANTILES
from speechmill.utils.tables_text import number_text, signed, table_text
from speechmill.utils.text import plain


def comparison_text(found: Mapping[str, Any]) -> str:
    """The comparison in tables of at most 110 columns; what did not change is left out, except for states and rates."""
    unknown = found["configuration"] is None
    parts = [f"before: {plain(found['before'])}\nafter:  {plain(found['after'])}"]
    if not found["changed"]:
        same = "clips, states, metrics and versions" if unknown else "clips, states, metrics, settings and versions"
        parts.append(f"Nothing changed: {same} are the same.")
    parts += [_states_text(found), _transitions_text(found)]
    for name, title in zip(COUNTED, ("Rejected by", "Errored by", "Variant of ranked clips"), strict=True):
        reasons = sorted(found[name].items(), key=lambda item: -abs(item[1]["difference"]))
        lines = [[reason, *signed(one)] for reason, one in reasons if one["difference"]]
        parts.append(table_text(title, ["", "before", "after", "difference"], lines))
    parts += _metrics_text(found)
    for name, title in (("facts", "Run"), ("configuration", "Configuration"), ("versions", "Versions")):
        values = [[key, *(_shown(one, side) for side in SIDES)] for key, one in (found[name] or {}).items()]
        parts.append(table_text(title, ["", *SIDES], values, justify="left"))
    if unknown:
        parts.append("Configuration: unknown, an older summary does not tell it")
    stages = [
        [
            stage,
            *(_arrow(*(one.get(side, {}).get(key) for side in SIDES)) for key in ("jobs", "seconds", "hours_per_hour")),
        ]
        for stage, one in found["rates"].items()
    ]
    title = "Rates (before → after): hours of input per hour that the jobs took in their last attempts"
    parts.append(table_text(title, ["", "jobs", "seconds", "hours per hour"], stages))
    return "\n\n".join(part for part in parts if part)


def _states_text(found: Mapping[str, Any]) -> str:
    lines = []
    for state in ("input", *STATES):
        clips = found["clips"][state]
        shares = [f"{clips['percent_before']:.2f}", f"{clips['percent_after']:.2f}", f"{clips['percent_points']:+.2f}"]
        lines.append([state, *signed(clips), *shares, *signed(found["hours"][state], ".2f")])
    lines.append(["published", *[""] * 6, *signed(found["hours_published"], ".2f")])
    header = ["", "clips before", "after", "", "% before", "after", "points", "hours before", "after", ""]
    return table_text("Clips, and hours of their input, by state", header, lines)


def _transitions_text(found: Mapping[str, Any]) -> str:
    only = f"{found['clips_only_before']:,} only before, {found['clips_only_after']:,} only after"
    both = f"{found['clips_in_both']:,} clips are in both runs, {only}"
    if not found["clips_in_both"]:
        return both
    count = moved(found["transitions"])
    if not count:
        return f"{both}; each has the state that it had"
    lines = [[was, *(f"{line[became]:,}" for became in STATES)] for was, line in found["transitions"].items()]
    return table_text(f"{both}; {count:,} have another state", ["before \\ after", *STATES], lines)


def _metrics_text(found: Mapping[str, Any]) -> list[str]:
    different = [one for one in found["metrics"] if has_moved(one)]
    spread, clips = [], []
    for one in different:
        pairs = [_arrow(one["before"][key], one["after"][key]) for key in ("mean", *QUANTILES)]
        spread.append([one["metric"], number_text(one["ks_statistic"]), *pairs])
        both = one["in_both"]
        clips.append(
            [one["metric"], f"{both['clips']:,}", f"{both['changed']:,}", number_text(both["mean_difference"])]
        )
    title = "Metrics of ranked clips (before → after), by the Kolmogorov-Smirnov statistic (KS)"
    parts = [table_text(title, ["", "KS", "mean", *QUANTILES], spread)]
    if found["clips_in_both"]:
        header = ["", "measured in both", "changed", "mean difference"]
        parts.append(table_text("Metrics of clips that are in both runs", header, clips))
    same = len(found["metrics"]) - len(different)
    parts.append(f"{same} more metrics are the same" if different and same else "")
    for side in SIDES:
        names = ", ".join(plain(name, 80) for name in found[f"metrics_only_{side}"])
        parts.append(f"Metrics only {side}: {names}" if names else "")
    return parts


def _arrow(before: float | None, after: float | None) -> str:
    return f"{number_text(before)} → {number_text(after)}"


def _shown(one: Mapping[str, Any], side: str) -> str:
    if side not in one:
        return "—"
    value = one[side]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
