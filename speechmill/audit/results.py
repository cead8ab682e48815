"""Compare listeners' answers with the decisions of the ranking (docs/report.md).

Clips are weighted by the size of their stratum in the current ranking, so that shares are those of the whole corpus.
The sample itself has more borderline clips than the corpus.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from speechmill.audit.agreement import answers_needed, cohen_kappa, fleiss_kappa, weighted_share
from speechmill.audit.sheet import Sheet, read_sheet
from speechmill.audit.threshold import MIN_ANSWERS, best_threshold
from speechmill.errors import SpeechmillError
from speechmill.report.audit_sample import ACCEPTED, DECISION, STRATA, find_edges, strata
from speechmill.report.parts import Part, parts
from speechmill.storage.files import read_json
from speechmill.utils.text import plain

FIT = ("yes", "no")
BY_CLOSENESS = tuple(name for name in STRATA if name != "gate")  # strata whose decision depends on the threshold


def audit(run: Path, sheets: Sequence[Path]) -> dict[str, Any]:
    """Evaluate the sheets of a finished run, as JSON values.

    The majority of the listeners decides about a clip; a tie counts as no answer. Shares have 95 % intervals
    (`weighted_share`). `advice` is `few` (too few answers), `keep` or `move`.

    Raises:
        SpeechmillError: a sheet is not valid, or of another corpus; a listener answered twice; the run is not finished.
    """
    summary, table = _summary(run), run / "report" / "ranking.parquet"
    read = [read_sheet(path) for path in sheets]
    listeners = _listeners(read, summary["dataset"])
    try:
        corpus, rows = _corpus(table, {clip for sheet in read for clip in sheet.answers})
        unknown = [(sheet, clip) for sheet in read for clip in sheet.answers if clip not in rows]
        if unknown:
            raise SpeechmillError(
                f"{unknown[0][0].path}: {run} has no clip {unknown[0][1]} ({len(unknown)} such answers): "
                "the sheet is of another corpus of this name, or the clip is no longer in the source"
            )
        clips = [_answered(row, listeners) for row in rows.values() if row["stratum"] is not None]
        judged = _weighted([clip for clip in clips if clip["fit"] is not None], corpus)
        found = {
            "run": str(run),
            "dataset": summary["dataset"],
            "profile_sha256": summary["profile_sha256"],
            "threshold": summary["threshold"],
            "listeners": {name: _votes(answers.values(), "fit") for name, answers in listeners.items()},
            "remarks": _remarks(read, listeners, summary, len(rows) - len(clips)),
            "clips": clips,
            "strata": {name: corpus[name] | _agreement(judged, [name]) for name in STRATA},
            "agreement": _agreement(judged, STRATA) | {"covered": _covered(judged, corpus)},
            "accepted": _decision_share(judged, corpus, ACCEPTED, wrong=False),
            "rejected": _decision_share(judged, corpus, [name for name in STRATA if name not in ACCEPTED], wrong=True),
            "comparison": _comparison(clips),
            "between_listeners": _between_listeners(listeners, rows),
        }
        return found | {"advice": _advice(run, table, judged, found, summary["clips"]["input"])}
    except (pa.ArrowException, OSError) as error:
        raise SpeechmillError(
            f"{table} cannot be read: {plain(error, 200).rstrip('.')}. "
            f"Delete {table.with_name('summary.json')} and run again: that writes both files again"
        ) from error


def _summary(run: Path) -> dict[str, Any]:
    path = run / "report" / "summary.json"
    try:
        summary = read_json(path)
        return {
            "dataset": str(summary["dataset"]),
            "profile_sha256": str(summary["profile_sha256"]),
            "threshold": float(summary["threshold"]),
            "clips": {"input": int(summary["clips"]["input"])},
        }
    except OSError as error:
        raise SpeechmillError(f"{run}: no finished run here ({path}: {error.strerror}); run it first") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SpeechmillError(f"{path} is damaged: delete that file and run again") from error


def _listeners(sheets: Sequence[Sheet], dataset: str) -> dict[str, dict[str, Any]]:
    """All answers: listener -> clip -> answer."""
    found: dict[str, dict[str, Any]] = {}
    for sheet in sheets:
        if sheet.dataset != dataset:
            raise SpeechmillError(f"{sheet.path} is a sheet of {plain(sheet.dataset, 80)}, the run is {dataset}")
        known = found.setdefault(sheet.listener, {})
        answers = {clip: answer for clip, answer in sheet.answers.items() if answer["fit"] or answer["better"]}
        if known.keys() & answers.keys():
            raise SpeechmillError(
                f"{sheet.path}: {sheet.listener} answered clip {min(known.keys() & answers.keys())} in another sheet "
                "too; name only one of them"
            )
        known |= answers
    return found


def _corpus(table: Path, wanted: set[str]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Clips and hours of every stratum, and the rows of the wanted clips by id."""
    edges = find_edges([table])
    names, ids = list(STRATA), pa.array(sorted(wanted), pa.string())
    clips, seconds = np.zeros(len(names), np.int64), np.zeros(len(names))
    rows: dict[str, dict[str, Any]] = {}
    for part in parts([table], lambda names: ["id", *DECISION, "duration", "variant"]):
        stratum = strata(part, edges)
        ranked = stratum >= 0
        clips += np.bincount(stratum[ranked], minlength=len(names))
        seconds += np.bincount(stratum[ranked], _seconds(part)[ranked], len(names))
        places = np.flatnonzero(pc.is_in(part.table["id"], value_set=ids).to_numpy())
        for row, number in zip(part.table.take(places).to_pylist(), stratum[places].tolist(), strict=True):
            rows[row["id"]] = row | {"stratum": names[number] if number >= 0 else None}
    hours = (seconds / 3600).tolist()
    return {name: {"clips": int(clips[n]), "hours": hours[n]} for n, name in enumerate(names)}, rows


def _seconds(part: Part) -> np.ndarray:
    return np.nan_to_num(part.numbers("duration"))


def _answered(row: Mapping[str, Any], listeners: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A clip with all answers. `fit` and `better` are None if the votes are tied."""
    answers = {name: given[row["id"]] for name, given in listeners.items() if row["id"] in given}
    fit, better = (_votes(answers.values(), question) for question in ("fit", "better"))
    preferred = better["published"] - better["other"]
    if row["variant"] != "enhanced" or not better.total():  # other variants have one recording only
        preference = None
    else:
        preference = "published" if preferred > 0 else "other" if preferred < 0 else "same"
    return {
        "id": row["id"],
        "stratum": row["stratum"],
        "closeness": row["closeness"],
        "accepted": row["state"] == "accepted",
        "criterion": row["criterion"],
        "fit": None if fit["yes"] == fit["no"] else fit["yes"] > fit["no"],
        "better": preference,
        "votes": fit,
        "notes": [{"listener": name, "note": one["note"]} for name, one in answers.items() if one.get("note")],
    }


def _votes(answers: Any, question: str) -> Counter[str]:
    return Counter(answer[question] for answer in answers if answer[question])


def _weighted(judged: list[dict[str, Any]], corpus: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    answered = Counter(clip["stratum"] for clip in judged)
    return [clip | {"weight": corpus[clip["stratum"]]["clips"] / answered[clip["stratum"]]} for clip in judged]


def _share(clips: Sequence[Mapping[str, Any]], hits: Sequence[bool]) -> dict[str, Any]:
    return weighted_share(hits, [clip["weight"] for clip in clips])


def _agreement(judged: Sequence[Mapping[str, Any]], names: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    clips = [clip for clip in judged if clip["stratum"] in names]
    return _share(clips, [clip["fit"] == clip["accepted"] for clip in clips])


def _covered(judged: Sequence[Mapping[str, Any]], corpus: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Share of the ranked clips in strata with at least one answer."""
    clips, answered = sum(one["clips"] for one in corpus.values()), {clip["stratum"] for clip in judged}
    return sum(corpus[name]["clips"] for name in answered) / clips if clips else None


def _decision_share(
    judged: Sequence[Mapping[str, Any]], corpus: Mapping[str, Mapping[str, Any]], names: Sequence[str], wrong: bool
) -> dict[str, Any]:
    """Share of a decision's clips that listeners call fit, its hours, and the hours that listeners judge otherwise.

    `wrong` is the answer that contradicts the decision. Such clips are assumed to be as long as the others.
    """
    clips = [clip for clip in judged if clip["stratum"] in names]
    hours = sum(corpus[name]["hours"] for name in names)
    fit = _share(clips, [clip["fit"] for clip in clips])
    bounds = [fit[key] for key in ("share", "low", "high")]
    shares = bounds if wrong or fit["share"] is None else [1 - bounds[n] for n in (0, 2, 1)]
    missed = [None if share is None else share * hours for share in shares]
    return {"fit": fit, "hours": hours, "hours_wrong": dict(zip(("share", "low", "high"), missed, strict=True))}


def _comparison(clips: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often listeners preferred the published recording to the original, over clips that have both."""
    from scipy.stats import binomtest

    votes = Counter(clip["better"] for clip in clips if clip["better"])
    published, decided = votes["published"], votes["published"] + votes["other"]
    return {
        "clips": votes.total(),
        "published": published,
        "other": votes["other"],
        "same": votes["same"],
        "prefer_published": weighted_share([True] * published + [False] * votes["other"], np.ones(decided)),
        "p_value": float(binomtest(published, decided).pvalue) if decided else None,
    }


def _between_listeners(
    listeners: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Agreement on yes and no, for each pair of listeners, and for all of them on the clips that all answered."""
    fits = {
        name: {
            clip: answer["fit"] for clip, answer in answers.items() if answer["fit"] in FIT and rows[clip]["stratum"]
        }
        for name, answers in listeners.items()
    }
    pairs = []
    for first, second in itertools.combinations(fits, 2):
        both = sorted(fits[first].keys() & fits[second].keys())
        answers = [[fits[name][clip] for clip in both] for name in (first, second)]
        same = [a == b for a, b in zip(*answers, strict=True)]
        share = weighted_share(same, np.ones(len(same)))
        pairs.append({"listeners": [first, second], "agreement": share, "kappa": cohen_kappa(*answers)})
    found: dict[str, Any] = {"pairs": pairs}
    if len(fits) > 2:
        shared = set.intersection(*({*answers} for answers in fits.values()))
        counts = [[sum(answers[clip] == fit for answers in fits.values()) for fit in FIT] for clip in sorted(shared)]
        found |= {"fleiss_clips": len(counts), "fleiss_kappa": fleiss_kappa(counts)}
    return found


def _remarks(
    sheets: Sequence[Sheet], listeners: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any], unranked: int
) -> list[str]:
    """Warnings about the sheets."""
    remarks = [
        f"{sheet.path} was made with another profile or threshold: its clips are compared with the current ranking, "
        "and the weights of its strata are approximate"
        for sheet in sheets
        if sheet.profile_sha256 != summary["profile_sha256"]
    ]
    for first, second in itertools.combinations(listeners, 2):
        if listeners[first] and listeners[first] == listeners[second]:
            remarks.append(f"all answers of {first} and {second} are equal: one sheet saved twice?")
    if unranked:
        remarks.append(f"left out {unranked} clips that closeness or a gate no longer accepts or rejects")
    return remarks


def _advice(
    run: Path, table: Path, judged: Sequence[Mapping[str, Any]], found: Mapping[str, Any], clips_in: int
) -> dict[str, Any]:
    """The threshold that agrees best with listeners, what it would accept, and whether to change to it."""
    clips = [clip for clip in judged if clip["stratum"] in BY_CLOSENESS]
    advice: dict[str, Any] = {"answers": len(clips), "more_answers": answers_needed(found["agreement"])}
    if len(clips) < MIN_ANSWERS:
        return {"verdict": "few", **advice}
    today, fit = found["threshold"], [clip["fit"] for clip in clips]
    closeness, weights, groups = ([clip[key] for clip in clips] for key in ("closeness", "weight", "stratum"))
    best = best_threshold(closeness, fit, weights, groups, today)
    keeps = best["low"] <= today <= best["high"]
    outcomes = _accepted(table, [today, best["threshold"]], clips_in)
    for threshold, outcome in zip((today, best["threshold"]), outcomes, strict=True):
        agree = [(close >= threshold) == answer for close, answer in zip(closeness, fit, strict=True)]
        outcome["agreement"] = _share(clips, agree)["share"]
    advice |= {"verdict": "keep" if keeps else "move", **best, "today": outcomes[0], "then": outcomes[1]}
    if not keeps:
        advice["config"] = f"rank: {{threshold: {best['threshold']}}}"
        advice["command"] = f"speechmill rerank {shlex.quote(str(run))} --threshold {best['threshold']}"
    return advice


def _accepted(table: Path, thresholds: Sequence[float], clips_in: int) -> list[dict[str, Any]]:
    """What each threshold accepts: clips, their share of all input clips, hours."""
    clips, seconds = np.zeros(len(thresholds), np.int64), np.zeros(len(thresholds))
    for part in parts([table], lambda names: [*DECISION, "duration"]):
        judged = part.has_state("accepted") | part.has_criterion("closeness")
        closeness, duration = part.closeness[judged], _seconds(part)[judged]
        for number, threshold in enumerate(thresholds):
            above = closeness >= threshold
            clips[number] += np.count_nonzero(above)
            seconds[number] += duration[above].sum()
    return [
        {"clips": count, "share": count / clips_in if clips_in else None, "hours": total / 3600}
        for count, total in zip(clips.tolist(), seconds.tolist(), strict=True)
    ]
