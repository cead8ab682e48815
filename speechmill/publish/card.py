"""The data set card: README.md, with the YAML front matter that the Hub reads.

The template engine escapes every value that is not explicitly `Markup`. So text from the corpus, the profile or the
configuration cannot add Markdown or HTML.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import yaml

from speechmill import __version__
from speechmill.metrics import all_metrics
from speechmill.publish.figure import FIGURE, figure_metrics
from speechmill.publish.survey import Survey
from speechmill.ranking.profile import FrozenProfile
from speechmill.tables.splits import SPLITS
from speechmill.utils.text import plain

MAX_TEXT = 1000  # characters of one value
MAX_LANGUAGES = 50
MAX_SOURCES = 50
MAX_REASONS = 100
HUB = "https://huggingface.co/datasets"
# Order of the columns in the tables of the profile. All other columns follow.
_ORDER = {
    key: n for n, key in enumerate("name metric group weight direction low high ideal scale min max reason".split())
}
STRICTER = 0.1  # the threshold of the example is higher than the profile's by this

# Licences of corpora, as the Hub names them ("License identifiers" in its documentation of repository cards). In lower
# case, SPDX identifiers are the same, except for those of the Open Data Commons.
_HUB = """
    apache-2.0 mit bsd bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 odc-by odbl pddl
    gpl-2.0 gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 gfdl unlicense wtfpl
"""
HUB_LICENSES = frozenset(_HUB.split())
_SPDX = {"odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl", "gfdl-1.3": "gfdl"}
_CC_URL = re.compile(r"https?://(?:www\.)?creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)(?:/.*)?")
_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
_SIZES += [(10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B")]
_URL = re.compile(r"(https?://[A-Za-z0-9.~:/?@!&'*+,;=%_-]*[A-Za-z0-9/_=-])")
_MARKUP = re.compile(r"([\\`*_{}\[\]#|~!$])")
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "`": r"\textasciigrave{}",
}


class Markup(str):
    """Text that is Markdown already, and is not escaped."""


def escape(value: object) -> str:
    """A value as plain text in a line of Markdown: without markup, HTML, line breaks or invisible characters.

    An http(s) URL becomes a link that shows the URL.
    """
    if isinstance(value, Markup):
        return value
    parts = _URL.split(plain(value, MAX_TEXT))
    parts[::2] = [_MARKUP.sub(r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    parts[1::2] = [f"<{url}>" for url in parts[1::2]]
    return "".join(parts)


def hub_license(license: str | None) -> str:
    """The Hub's identifier of a licence (SPDX identifier or Creative Commons URL); `other` or `unknown` if none fits."""
    if not license or not license.strip():
        return "unknown"
    name = license.strip().lower()
    if match := _CC_URL.fullmatch(name):
        kind, code, version = match.groups()
        name = f"cc0-{version}" if kind == "publicdomain" and code == "zero" else f"cc-{code}-{version}"
    name = _SPDX.get(name, re.sub(r"-(only|or-later)$", "", name))
    return name if name in HUB_LICENSES else "other"


def front_matter(found: Survey, source: dict[str, Any], config: dict[str, Any], paths: Iterable[str]) -> str:
    """The YAML front matter, without the lines `---`. `paths` are the files of the data set."""
    publish = config["publish"]
    named = sorted({name for _, name in found.sources}) or [source.get("license") or ""]
    licenses = sorted({hub_license(name) for name in named})
    block: dict[str, Any] = {"license": licenses[0] if len(licenses) == 1 else licenses}
    if "other" in licenses:
        other = next(name for name in named if hub_license(name) == "other")
        block["license_name"] = re.sub(r"[^a-z0-9.]+", "-", other.lower()).strip("-")[:80] or "other"
        if _URL.fullmatch(other):
            block["license_link"] = other
    if languages := _languages(found):
        block["language"] = languages if len(languages) <= MAX_LANGUAGES else ["multilingual"]
    block["pretty_name"] = _name(config)
    block["task_categories"] = list(publish["task_categories"])
    accepted = found.clips["accepted"]
    block["size_categories"] = [next((name for limit, name in _SIZES if accepted < limit), "n>1T")]
    block["tags"] = ["audio", "speech", "speechmill"]
    block["configs"] = [{"config_name": "scores", "data_files": _data_files(paths, "scores")}]
    if accepted:
        block["configs"].insert(
            0, {"config_name": "default", "data_files": _data_files(paths, "data"), "default": True}
        )
    return yaml.safe_dump(block, sort_keys=False, allow_unicode=True, width=1000)


def _name(config: dict[str, Any]) -> str:
    return plain(config["publish"]["pretty_name"] or config["dataset"], MAX_TEXT)


def _languages(found: Survey) -> list[str]:
    """ISO 639 codes: the first parts of BCP 47 tags. Others are left out, because the Hub would reject the card."""
    codes = {re.split("[-_]", tag.strip().lower())[0] for tag in found.languages}
    return sorted(code for code in codes if re.fullmatch("[a-z]{2,3}", code) and code != "und")


def _data_files(paths: Iterable[str], folder: str) -> list[dict[str, str]]:
    # If a split is numbered as a whole, the pattern contains its number of shards. So it matches no shard of another
    # version.
    patterns = sorted({_pattern(path) for path in paths if path.startswith(f"{folder}/")})
    found = [(split, p) for split in SPLITS for p in patterns if p.startswith(f"{folder}/{split}-")]
    return [{"split": split, "path": pattern} for split, pattern in found]


def _pattern(path: str) -> str:
    of_corpus = re.fullmatch(r"(\w+/[a-z]+)-\d+-of-(\d+)\.parquet", path)
    # The name of a shard of one batch does not contain the number of all shards of the split.
    return f"{of_corpus[1]}-*-of-{of_corpus[2]}.parquet" if of_corpus else re.sub(r"-.*", "-*-of-*.parquet", path)


def funnel(found: Survey, failed: int) -> list[tuple[str, str, int, float | None, int]]:
    """Why clips were not accepted, in the order errored, duplicate, rejected; in each, the most frequent reason first.

    `failed` is the number of clips in batches that failed; their hours are unknown.

    Returns:
        (state, reason, clips, hours of decoded input or None, clips left) for each step. The clips left after the last
        step are accepted.
    """
    lost: list[tuple[str, str, int, float | None]] = [("errored", "batch_failed", failed, None)]
    lost.append(("duplicate", "", found.clips["duplicate"], found.input_seconds.get("duplicate", 0.0) / 3600))
    lost += [(state, reason, n, s / 3600) for (state, reason), (n, s) in found.reasons.items()]
    order = ("errored", "duplicate", "rejected")
    lost = sorted((step for step in lost if step[2]), key=lambda step: (order.index(step[0]), -step[2], step[1]))
    left = sum(found.clips.values())
    steps: list[tuple[str, str, int, float | None, int]] = []
    for state, reason, clips, hours in lost:
        left -= clips
        steps.append((state, reason, clips, hours, left))
    return steps


def bibtex(name: str, key: str, repository: str | None, tag: str | None) -> str:
    """A BibTeX entry with the known fields. It has no year and no author, and says to cite the sources."""
    fields = {"title": f"{{{_latex(name)}}}"}
    if repository:
        fields["url"] = f"{HUB}/{quote(repository)}"
    if tag:
        fields["version"] = _latex(tag)
    fields["note"] = f"Processed with speechmill {__version__}; cite its sources as well"
    label = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or "dataset"
    lines = [f"  {field} = {{{value}}}," for field, value in fields.items()]
    return "\n".join([f"@misc{{{label},", *lines, "}"])


def _latex(value: str) -> str:
    return "".join(_LATEX.get(character, character) for character in plain(value, MAX_TEXT))


def _loading(repository: str | None, tag: str | None) -> dict[str, Markup]:
    """Arguments of `load_dataset` in the examples: the data set, and `revision` if there is a tag.

    They are written as JSON strings, which are Python literals without line breaks. So a name cannot end the quotes or
    the code block.
    """
    revision = f", revision={json.dumps(plain(tag))}" if tag else ""
    return {"where": Markup(json.dumps(plain(repository)) if repository else "here"), "revision": Markup(revision)}


def table_of(value: Any) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of a part of the profile, which is a mapping (name -> value or settings) or a list of settings."""
    if isinstance(value, Mapping):
        items = [{"name": n, **(v if isinstance(v, Mapping) else {"value": v})} for n, v in value.items()]
    else:
        items = [dict(v) if isinstance(v, Mapping) else {"name": v} for v in value or []]
    header = sorted(dict.fromkeys(key for item in items for key in item), key=lambda key: _ORDER.get(key, len(_ORDER)))
    return header, [["" if item.get(key) is None else item[key] for key in header] for item in items]


def declared_metrics() -> Mapping[str, Any]:
    """Name -> declaration (unit, range, direction, description) of every metric."""
    return all_metrics()


def metric_rows(metrics: Mapping[str, Mapping[str, float | None]], declared: Mapping[str, Any]) -> list[list[Any]]:
    """Name, p5, p50, p95, unit and meaning of every metric. Unit and meaning are empty if it is not declared."""
    rows = []
    for name, quantiles in metrics.items():
        metric = declared.get(name)
        numbers = [quantiles.get(q) for q in ("p5", "p50", "p95")]
        rows.append([name, *numbers, metric.unit if metric else "", metric.description if metric else ""])
    return rows


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def _hours(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.2f}" if value >= 1 else f"{value:.4f}"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return escape(", ".join(f"{k} {v}" for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return escape(" … ".join(map(str, value)))
    return Markup(_number(value)) if _number(value) else escape(value)


def render_card(
    found: Survey,
    profile: dict[str, Any],
    summary: dict[str, Any],
    source: dict[str, Any],
    config: dict[str, Any],
    paths: Sequence[str],
    repository: str | None = None,
    tag: str | None = None,
) -> str:
    """The content of README.md. It does not depend on the time.

    Args:
        found: the survey of all batches.
        profile, summary, source: contents of ranking/profile.json, report/summary.json and source.json.
        config: the validated configuration.
        paths: shards of the data set, and `FIGURE` if there is one.
        repository: owner/name on the Hub, for the examples. Without it, they load the current folder.
        tag: the version that the examples load.

    Raises:
        ConfigError: the data set has a figure, and the profile was edited after it was frozen.
    """
    environment = jinja2.Environment(
        finalize=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "hours": _hours, "cell": lambda value: Markup(_cell(value))}
    template = environment.from_string(resources.files(__package__).joinpath("card.md").read_text(encoding="utf-8"))
    if not repository:
        tag = None  # it is a tag of the repository
    shown = figure_metrics(FrozenProfile.from_json(profile), summary["metrics"]) if FIGURE in paths else []
    per_split = np.bincount(found.split, minlength=len(SPLITS))
    steps = funnel(found, sum(summary["failed_batches"].values()))
    sources = [[*key, clips, s / 3600] for key, (clips, s) in sorted(found.sources.items())]
    return template.render(
        front_matter=Markup(front_matter(found, source, config, paths)),
        name=_name(config),
        accepted=found.clips["accepted"],
        hours=found.accepted_seconds / 3600,
        input_clips=sum(found.clips.values()),
        input_hours=sum(found.input_seconds.values()) / 3600,
        steps=steps[:MAX_REASONS],
        more_steps=len(steps) - MAX_REASONS,
        accepted_hours=found.input_seconds.get("accepted", 0.0) / 3600,
        removed=summary["rejected_by"].get("removed", 0),
        figure=FIGURE if FIGURE in paths else None,
        shown=shown,
        stricter=f"{min(1.0, round(profile['threshold'] + STRICTER, 6)):g}",
        repository=repository,
        tag=tag,
        page=Markup(f"{HUB}/{quote(repository)}") if repository else None,
        tree=Markup(f"tree/{quote(tag, safe='')}") if tag else None,
        loading=_loading(repository, tag),
        bibtex=Markup(bibtex(_name(config), repository or config["dataset"], repository, tag)),
        languages=", ".join(_languages(found)[:MAX_LANGUAGES]),
        summary=summary,
        metrics=metric_rows(summary["metrics"], declared_metrics()),
        profile=profile,
        tables=[(part, table_of(profile.get(part))) for part in ("criteria", "gates", "groups") if profile.get(part)],
        sources=sources[:MAX_SOURCES],
        more_sources=len(sources) - MAX_SOURCES,
        source=source,
        terms=config["source"]["terms"],
        enhance=config["enhance"],
        splits=[(e["split"], int(per_split[SPLITS.index(e["split"])])) for e in _data_files(paths, "data")],
        version=__version__,
    )
