"""The result of a listening audit as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechmill.audit.threshold import MIN_ANSWERS
from speechmill.report.audit_sample import MAX_CLIPS, STRATA
from speechmill.utils.tables_text import table_text
from speechmill.utils.text import plain

MAX_LINES = 20  # clips or pairs listed


def audit_text(found: Mapping[str, Any]) -> str:
    """Tables of at most 110 columns, with the advice at the end."""
    listeners = found["listeners"]
    judged = sum(clip["fit"] is not None for clip in found["clips"])
    parts = [
        f"{plain(found['dataset'])}: {judged} clips judged by {len(listeners)} listener{'s' * (len(listeners) != 1)}, "
        f"threshold {found['threshold']:g}",
        *found["remarks"],
        table_text(
            "Listeners: is the clip fit?",
            ["", "yes", "no", "unsure"],
            [[name, *(str(votes.get(fit, 0)) for fit in ("yes", "no", "unsure"))] for name, votes in listeners.items()],
        ),
        _strata_text(found),
        _decisions_text(found),
        _comparison_text(found["comparison"]),
        _between_text(found["between_listeners"]),
        _against_text(found["clips"]),
        _advice_text(found),
    ]
    return "\n\n".join(part for part in parts if part)


def _strata_text(found: Mapping[str, Any]) -> str:
    lines = [
        [name, f"{one['clips']:,}", f"{one['hours']:,.2f}", str(one["answers"]), *_interval(one)]
        for name, one in ((name, found["strata"][name]) for name in STRATA)
    ]
    whole = found["agreement"]
    clips, hours = (sum(one[key] for one in found["strata"].values()) for key in ("clips", "hours"))
    lines.append(["corpus", f"{clips:,}", f"{hours:,.2f}", str(whole["answers"]), *_interval(whole)])
    title = "Listeners agree with the decision: accepted and fit, or rejected and not fit"
    text = table_text(title, ["", "clips", "hours", "judged", "agree %", "95 % interval"], lines)
    if whole["answers"] and whole["covered"] < 1:
        text += f"\n  Strata without an answer are left out: the figures cover {whole['covered']:.0%} of the corpus."
    return text


def _decisions_text(found: Mapping[str, Any]) -> str:
    lines = []
    for name, title in (("accepted", "accepted, and not fit"), ("rejected", "rejected, and fit")):
        fit, hours = found[name]["fit"], found[name]["hours_wrong"]
        between = "—" if hours["share"] is None else f"{hours['low']:,.2f}–{hours['high']:,.2f}"
        lines.append([name, str(fit["answers"]), *_interval(fit), title, _number(hours["share"], ",.2f"), between])
    header = ["", "judged", "fit %", "95 % interval", "", "hours", "95 % interval"]
    return table_text("Clips that listeners call fit, by decision", header, lines)


def _comparison_text(one: Mapping[str, Any]) -> str:
    if not one["clips"]:
        return ""
    counts = f"published {one['published']}, not denoised {one['other']}, no difference {one['same']}"
    text = f"The better recording, over {one['clips']} clips: {counts}"
    if one["p_value"] is not None:
        share, interval = _interval(one["prefer_published"])
        text += f"\n  {share} % of those with a preference prefer the published one ({interval} %), sign test p = {one['p_value']:.3g}"
    return text


def _between_text(between: Mapping[str, Any]) -> str:
    lines = [
        [
            " – ".join(pair["listeners"]),
            str(pair["agreement"]["answers"]),
            *_interval(pair["agreement"]),
            _number(pair["kappa"]),
        ]
        for pair in between["pairs"][:MAX_LINES]
    ]
    text = table_text("Agreement between listeners", ["", "clips", "agree %", "95 % interval", "Cohen's kappa"], lines)
    if "fleiss_kappa" in between:
        text += f"\n  all, over {between['fleiss_clips']} clips: Fleiss' kappa {_number(between['fleiss_kappa'])}"
    return text


def _against_text(clips: list[Mapping[str, Any]]) -> str:
    """Clips that listeners judge otherwise, the furthest from the threshold first, with their notes."""
    against = [clip for clip in clips if clip["fit"] is not None and clip["fit"] != clip["accepted"]]
    against.sort(key=lambda clip: (-clip["closeness"] if clip["accepted"] else clip["closeness"] - 1, clip["id"]))
    lines = [
        [
            clip["id"],
            f"{clip['closeness']:.3f}",
            "accepted" if clip["accepted"] else f"rejected: {plain(clip['criterion'], 40)}",
            "fit" if clip["fit"] else "not fit",
            "; ".join(plain(one["note"], 60) for one in clip["notes"]),
        ]
        for clip in against[:MAX_LINES]
    ]
    title = f"Clips that listeners judge otherwise ({min(len(against), MAX_LINES)} of {len(against)})"
    return table_text(title, ["clip", "closeness", "decision", "listeners", "notes"], lines, justify="left")


def _advice_text(found: Mapping[str, Any]) -> str:
    advice, today = found["advice"], found["threshold"]
    lines = []
    if advice["verdict"] == "few":
        lines.append(
            f"Threshold: {advice['answers']} clips that were decided by closeness have an answer; "
            f"advice needs {MIN_ANSWERS}."
        )
    else:
        bounds = f"{advice['low']:.3f}–{advice['high']:.3f}"
        if advice["verdict"] == "keep":
            lines.append(
                f"Threshold: the audit gives no reason to change {today:g}: listeners agree best within {bounds}."
            )
        else:
            lines.append(
                f"Threshold: listeners agree best at {advice['threshold']:g} ({bounds}); currently it is {today:g}."
            )
            columns = [f"{today:g}", f"{advice['threshold']:g}"]
            sides = (advice["today"], advice["then"])
            rows = [
                ["accepted clips", *(f"{side['clips']:,}" for side in sides)],
                ["% of all clips", *(_percent(side["share"]) for side in sides)],
                ["accepted hours", *(f"{side['hours']:,.2f}" for side in sides)],
                ["agreement %, without gates", *(_percent(side["agreement"]) for side in sides)],
            ]
            lines.append(table_text("With a threshold of", ["", *columns], rows))
            lines.append(f"In the configuration:  {advice['config']}\nTo preview it:         {advice['command']}")
    if more := advice["more_answers"]:
        total = found["agreement"]["answers"] + more
        how = f" (report: {{audit: {total}}})" if total <= MAX_CLIPS else ""
        lines.append(f"{more} more judged clips narrow the interval of agreement to ±5 points{how}.")
    return "\n".join(lines)


def _interval(estimate: Mapping[str, Any]) -> tuple[str, str]:
    if estimate["share"] is None:
        return "—", "—"
    return _percent(estimate["share"]), f"{_percent(estimate['low'])}–{_percent(estimate['high'])}"


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share, ".1f")


def _number(value: float | None, form: str = ".2f") -> str:
    return "—" if value is None else f"{value:{form}}"
