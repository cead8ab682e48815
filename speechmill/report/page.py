"""The page that people look at, and the files of the report stage as a whole.

One file that opens from disk: images, audio, style and script are inside, and its content security policy forbids any
other, so that nothing is fetched and nothing from the corpus runs. What comes from the corpus is escaped by default.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from speechmill import __version__
from speechmill.metrics import INPUT_PREFIX, Metric, all_metrics
from speechmill.ranking.advice import SATURATED
from speechmill.ranking.profile import FrozenProfile
from speechmill.report.audit_sample import AuditEdges, audit_sheet, choose_audit
from speechmill.report.examples import Choice, Example, data_uri, headings, load_examples
from speechmill.report.history import compare_with_previous, previous
from speechmill.report.parts import OfFiles, read_parts
from speechmill.report.plot_files import write_plots
from speechmill.report.plots import closeness_chart, metric_charts, number
from speechmill.report.pulled_down import PulledDown, most_distant
from speechmill.report.spectrogram import level_scale
from speechmill.report.summary import Overview, OverviewReader, funnel, merge_ranking, summarize
from speechmill.report.whatif import WhatIf
from speechmill.storage.files import write_json, write_text
from speechmill.tables.schemas import RANKING
from speechmill.utils.text import plain
from speechmill.utils.threads import BackgroundWriter

AUDIT = "audit"  # the group of clips that are judged blind, beside those to listen to
PREVIOUS = {  # groups of the comparison with the previous report
    "clips": "clips",
    "percent": "share of clips (%)",
    "hours": "hours",
    "rejected_by": "rejected by",
    "errored_by": "errored by",
    "metrics": "median of",
}
SCRIPTS = ("players.js", "whatif.js", "audit.js")
MAX_FILES = 20  # source files that are listed
MAX_REASONS = 40
MAX_PULLED = 6  # criteria
CARD_METRICS = 6  # values on a clip's card; the others unfold
WIDE, NARROW = 10.5, 3.6  # inches of the closeness chart on a desk and on a phone
CORRELATED = 0.8
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")


def make_report(
    ranking_files: Sequence[Path],
    enhanced_files: Sequence[Path],
    profile: FrozenProfile,
    advice: Mapping[str, Any],
    source: Mapping[str, Any],
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    skipped: Sequence[Mapping[str, str]],
    timing: Mapping[str, Any],
    page: Path,
    summary: Path,
    ranking: Path,
    plots: Path,
    failed: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Write report.html, summary.json, ranking.parquet and the folder plots; returns the summary.

    `ranking_files` are in the order in which the merged table has them; `enhanced_files` are {batch}.parquet. `advice`
    and `source` are the contents of ranking/advice.json and source.json; `skipped` are {name, reason} of metric
    groups; `timing` is {stage: {jobs, seconds}}; `failed` is {batch: clips} of batches that failed for good. The same
    input gives the same bytes.

    Raises:
        LedgerError: the states of a batch or of the run do not balance.
        SpeechmillError: a ranked clip is not in its enhanced shard.
    """
    settings = config["report"]
    on_disk = {path.stem for path in enhanced_files}  # of a published run that keeps none, maybe no batch
    heard = [path for path in ranking_files if path.stem in on_disk]
    counted, options, pulled = OverviewReader(), WhatIf(profile), PulledDown()
    chosen, edges = Choice(settings["examples"], settings["rejected_examples"]), AuditEdges()
    with BackgroundWriter() as background:
        background.call(merge_ranking, ranking_files, ranking)
        read_parts(ranking_files, counted, options, pulled, OfFiles(heard, chosen), OfFiles(heard, edges))
    found = counted.result(failed)
    content = summarize(found, profile, source, config, versions, skipped, timing)
    content["rejected_by_closeness"] = dict(pulled.clips.most_common())
    audited = choose_audit(heard, settings["audit"], edges)
    groups = chosen.result() | {AUDIT: [one["row"] for one in audited]}
    examples = load_examples(groups, enhanced_files, only_audio=[AUDIT])
    sheet = audit_sheet(audited, examples.pop(AUDIT), content)
    before = previous(summary.parents[1], content)
    about = (content, found, examples, profile, advice, source, config)
    write_report(page, *about, options=options.result(), sheet=sheet, before=before)
    write_plots(plots, found, profile, all_metrics())
    write_json(summary, content)
    return content


def write_report(
    out: Path,
    summary: Mapping[str, Any],
    found: Overview,
    examples: Mapping[str, Sequence[Example]],
    profile: FrozenProfile,
    advice: Mapping[str, Any],
    source: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    options: Mapping[str, Any] | None = None,
    sheet: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] | None = None,
) -> None:
    """Draw the charts and write the page, atomically; arguments as in `make_report`.

    `options` are those of `whatif`, `sheet` that of `audit_sheet`, `before` the entry of the `previous` report; without
    one of them the page has no such section.
    """
    declared = all_metrics()
    source = {"kind": "", "path": "", "files": [], "bytes": 0, "license": None, "attribution": None, **source}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("speechmill.report"),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda value, digits=4: "—" if value is None else number(float(value), digits),
        "percent": _percent,
        "signed": _signed,
        "shown": lambda value: "—" if value is None else plain(str(value), 200),
        "points": lambda share: _signed(None if share is None else round(100 * share, 1) + 0.0),
        "plain": plain,
        "name": lambda name: Markup(str(escape(plain(name))).replace("_", "_<wbr>")),
        "hours": _hours,
        "bytes": _bytes,
        "csp": lambda script: "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        "svg": lambda chart: data_uri("image/svg+xml", chart.svg),
        "unit": lambda name: _unit(name, declared),
    }
    run = f"{config.get('outdir', 'results')}/{config['dataset']}"
    ranked_clips = found.closeness["ranked"].count
    files = resources.files(__package__).joinpath("templates")
    html = environment.get_template("report.html").render(
        style=Markup(files.joinpath("style.css").read_text("utf-8")),
        script=Markup("\n".join(files.joinpath(name).read_text("utf-8") for name in SCRIPTS)),
        summary=summary,
        steps=funnel(found),
        reasons=_reasons(found)[:MAX_REASONS],
        pulled_down=_pulled_down(summary),
        closeness=closeness_chart(found, profile.threshold, WIDE),
        closeness_narrow=closeness_chart(found, profile.threshold, NARROW),
        ranked=ranked_clips,
        median=found.closeness["ranked"].quantile(0.5),
        charts=metric_charts(found, profile, declared),
        level=level_scale(),
        groups=_cards(examples, found, profile),
        profile=profile,
        gates=[(gate, found.failed_gates[gate.metric]) for gate in profile.gates],
        criteria=_criteria(profile, advice),
        warnings=advice.get("warnings", []),
        advised=advice.get("rows", 0),
        correlated=_correlated(advice.get("correlation", {})),
        source=source,
        files=source["files"][:MAX_FILES],
        config=yaml.safe_dump(dict(config), allow_unicode=True, sort_keys=True),
        version=__version__,
        input_prefix=INPUT_PREFIX,
        saturated=SATURATED,
        whatif=_whatif_data(options, found, config, run) if options and ranked_clips else None,
        audit=sheet if sheet and sheet["clips"] else None,
        command=f"speechmill audit {shlex.quote(run)}",
        audible=any(examples.values()),
        breakdown=summary["breakdown"],
        sensitivity=advice.get("sensitivity"),
        previous=compare_with_previous(summary, before) if before else None,
        titles=PREVIOUS,
    )
    write_text(out, html)


def _whatif_data(options: Mapping[str, Any], found: Overview, config: Mapping[str, Any], run: str) -> dict[str, Any]:
    """The sliders' data with what is true now, and what the settings and the command are called."""
    ranked_by = config.get("rank", {})
    weights = ranked_by.get("weights")
    return {
        **options,
        "now": {
            "input": found.clips["input"],
            "clips": found.clips["accepted"],
            "seconds": found.seconds["accepted"],
        },
        "unclear": found.errored_by["too_few_metrics"],
        "setting": ranked_by.get("profile", options["profile"]),
        "weights": f", weights: {json.dumps(weights, ensure_ascii=False)}" if weights else "",
        "run": run,
    }


def _printable(value: Any) -> Any:
    """What HTML cannot hold, control characters but for tab and line feed, as spaces; markup of our own as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else _CONTROL.sub(" ", value)


def _signed(value: float | None) -> str:
    return "—" if value is None else ("+" if value > 0 else "") + number(float(value))


def _percent(part: float | None, whole: float = 1.0, digits: int = 0) -> str:
    if part is None or not whole:
        return "—"
    share = part / whole
    if 0 < share < 0.5 * 10 ** -(digits + 2):
        return f"< {10**-digits:g} %"
    if share < 1 and round(share, digits + 2) == 1:
        return f"> {100 - 10**-digits:g} %"
    return f"{share:.{digits}%}".replace("%", " %")


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _bytes(size: int) -> str:
    power = next((p for p in (4, 3, 2, 1) if size >= 1000**p), 0)
    return f"{size / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def _unit(name: str, declared: Mapping[str, Metric]) -> str:
    metric = declared.get(name)
    return "s" if name == "duration" else "" if metric is None or metric.unit == "1" else metric.unit


def _reasons(found: Overview) -> list[dict[str, Any]]:
    """What kept clips out, most frequent first: state, reason, clips, and one message as an example."""
    counted = [("rejected", reason, count) for reason, count in found.rejected_by.items()]
    counted += [("errored", reason, count) for reason, count in found.errored_by.items()]
    rows: list[dict[str, Any]] = [
        {"state": state, "reason": reason, "clips": count, "message": found.messages.get((state, reason), "")}
        for state, reason, count in counted
    ]
    if found.clips["duplicate"]:
        message = "The decoded samples are those of another clip, which is kept."
        rows.append(
            {"state": "duplicate", "reason": "same samples", "clips": found.clips["duplicate"], "message": message}
        )
    rows.sort(key=lambda row: (-row["clips"], row["state"], row["reason"]))
    return rows


def _pulled_down(summary: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Criterion, clips that it keeps furthest from the ideal, and all clips that closeness rejects; most first."""
    counts: Mapping[str, int] = summary.get("rejected_by_closeness") or {}
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(name, count, total) for name, count in ordered[:MAX_PULLED]]


def _criteria(profile: FrozenProfile, advice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The profile's criteria, heaviest group first, with the weights that the corpus itself would give them."""
    heaviest = {c.group: sum(o.weight for o in profile.criteria if o.group == c.group) for c in profile.criteria}
    ordered = sorted(profile.criteria, key=lambda c: (-heaviest[c.group], c.group, -c.weight, c.metric))
    nothing = dict.fromkeys(("entropy", "critic", "at_low", "at_high"))
    shares = profile.distance_shares
    return [
        {
            "criterion": criterion,
            "distance": shares[criterion.metric],
            **nothing,
            **advice.get("criteria", {}).get(criterion.metric, {}),
        }
        for criterion in ordered
    ]


def _correlated(correlation: Mapping[str, Mapping[str, float | None]]) -> list[tuple[str, str, float]]:
    """Pairs of criteria that say nearly the same, most alike first."""
    pairs = [
        (a, b, value)
        for a, row in correlation.items()
        for b, value in row.items()
        if a < b and value is not None and abs(value) >= CORRELATED
    ]
    return sorted(pairs, key=lambda pair: (-abs(pair[2]), pair[0], pair[1]))


def _cards(examples: Mapping[str, Sequence[Example]], found: Overview, profile: FrozenProfile) -> list[dict[str, Any]]:
    """The groups of clips to listen to. A clip that is in several of them is played in the first."""
    heavy = sorted(profile.criteria, key=lambda criterion: (-criterion.weight, criterion.metric))
    shown = [criterion.metric for criterion in heavy[:CARD_METRICS]]
    criteria = [criterion.metric for criterion in profile.criteria]
    played: dict[str, tuple[str, str]] = {}  # clip -> where it plays: anchor, title of the group
    titles = headings({name: [example.row for example in members] for name, members in examples.items()}, found)
    groups = []
    for name, members in examples.items():
        title, why = titles[name]
        cards: list[dict[str, Any]] = []
        for example in members:
            row = example.row
            measured = {key: row[key] for key in sorted(row) if key not in RANKING.names}
            cards.append(
                {
                    "example": example,
                    "row": row,
                    "anchor": f"{name}-{len(cards) + 1}",
                    "most_distant": most_distant(row, criteria),
                    "played": played.get(row["id"]),
                    "lang": row["language"] if _LANGUAGE.fullmatch(row["language"] or "") else None,
                    "values": [(key, row.get(key)) for key in shown],
                    "others": [(key, value) for key, value in measured.items() if key not in shown],
                }
            )
            played.setdefault(row["id"], (f"{name}-{len(cards)}", title))
        groups.append({"name": name, "title": title, "why": why, "cards": cards})
    return groups
