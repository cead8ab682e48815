"""The data set card: README.md with the YAML block that the Hub reads and a body for people.

Everything that comes from the corpus, the profile or the configuration is escaped on its way into the body: the
template cannot forget to, because escaping is what happens to every value that is not explicitly markup.
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
from speechmill.publish.figure import FIGURE, telling_metrics
from speechmill.publish.survey import Survey
from speechmill.ranking.profile import FrozenProfile
from speechmill.splits import SPLITS
from speechmill.text import plain

MAX_TEXT = 1000  # characters of one value
MAX_LANGUAGES = 50
MAX_SOURCES = 50
MAX_REASONS = 100
HUB = "https://huggingface.co/datasets"
# Columns of the profile's tables; others follow.
_ORDER = {
    key: n for n, key in enumerate("name metric group weight direction low high ideal scale min max reason".split())
}
STRICTER = 0.1  # by which the example's threshold is above the profile's

# The Hub's identifiers (repository cards, "License identifiers") that licences of corpora have. SPDX spells the same in
# other letters, except for the Open Data Commons'.
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
    """Text that is markup already and is not escaped again."""


def escape(value: object) -> str:
    """A value as plain text inside a line of Markdown: no markup, no HTML, no line breaks or invisible characters.

    An http(s) address stays a link that shows where it leads.
    """
    if isinstance(value, Markup):
        return value
    parts = _URL.split(plain(value, MAX_TEXT))
    parts[::2] = [_MARKUP.sub(r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    parts[1::2] = [f"<{url}>" for url in parts[1::2]]
    return "".join(parts)


def hub_license(license: str | None) -> str:
    """The Hub's identifier of a licence given as SPDX identifier or Creative Commons address; `other`, `unknown`."""
    if not license or not license.strip():
        return "unknown"
    name = license.strip().lower()
    if match := _CC_URL.fullmatch(name):
        kind, code, version = match.groups()
        name = f"cc0-{version}" if kind == "publicdomain" and code == "zero" else f"cc-{code}-{version}"
    name = _SPDX.get(name, re.sub(r"-(only|or-later)$", "", name))
    return name if name in HUB_LICENSES else "other"


def front_matter(found: Survey, source: dict[str, Any], config: dict[str, Any], paths: Iterable[str]) -> str:
    """The YAML block between the dashes."""
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
    """ISO 639 codes: the first part of the BCP 47 tags; what is no such code is left out (the Hub refuses a card)."""
    codes = {re.split("[-_]", tag.strip().lower())[0] for tag in found.languages}
    return sorted(code for code in codes if re.fullmatch("[a-z]{2,3}", code) and code != "und")


def _data_files(paths: Iterable[str], folder: str) -> list[dict[str, str]]:
    # Where all shards of a split are counted, the count is part of the pattern: those of another version never mix in.
    patterns = sorted({_pattern(path) for path in paths if path.startswith(f"{folder}/")})
    found = [(split, p) for split in SPLITS for p in patterns if p.startswith(f"{folder}/{split}-")]
    return [{"split": split, "path": pattern} for split, pattern in found]


def _pattern(path: str) -> str:
    of_corpus = re.fullmatch(r"(\w+/[a-z]+)-\d+-of-(\d+)\.parquet", path)
    # A shard of one batch says nothing about the number of all.
    return f"{of_corpus[1]}-*-of-{of_corpus[2]}.parquet" if of_corpus else re.sub(r"-.*", "-*-of-*.parquet", path)


def funnel(found: Survey, failed: int) -> list[tuple[str, str, int, float | None, int]]:
    """What took clips out, in the order errored, duplicate, rejected, the most clips of each first.

    (state, reason, clips, hours of decoded input, clips left) each; what is left at the end is accepted. `failed` are
    the clips of batches that could not be processed: nothing is known of their hours.
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
    """An entry of what is known; it names no year, and no author but the sources that it says to cite."""
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
    """Python of the examples: what they load, and the argument that names its version, if any.

    A JSON string is a Python literal without line breaks, so that no name leaves the quotes or the code block.
    """
    revision = f", revision={json.dumps(plain(tag))}" if tag else ""
    return {"where": Markup(json.dumps(plain(repository)) if repository else "here"), "revision": Markup(revision)}


def table_of(value: Any) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of a part of the profile: a mapping of names to values or settings, or a list of settings."""
    if isinstance(value, Mapping):
        items = [{"name": n, **(v if isinstance(v, Mapping) else {"value": v})} for n, v in value.items()]
    else:
        items = [dict(v) if isinstance(v, Mapping) else {"name": v} for v in value or []]
    header = sorted(dict.fromkeys(key for item in items for key in item), key=lambda key: _ORDER.get(key, len(_ORDER)))
    return header, [["" if item.get(key) is None else item[key] for key in header] for item in items]


def declared_metrics() -> Mapping[str, Any]:
    """Every metric that a module declares: name to unit, range, direction and description."""
    return all_metrics()


def metric_rows(metrics: Mapping[str, Mapping[str, float | None]], declared: Mapping[str, Any]) -> list[list[Any]]:
    """Name, p5, p50, p95, unit and meaning of every metric; a metric that nobody declares has its name only."""
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
    """The whole README.md. Nothing in it depends on time.

    `paths` are the shards below the data set, and `FIGURE` where it is there. `repository` (owner/name on the Hub) and
    `tag` (the version's) are what readers load; without them the examples load the folder that they run in.

    Raises:
        ConfigError: there is a figure, and the profile was edited after it was frozen.
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
        tag = None  # alone it says nothing
    shown = telling_metrics(FrozenProfile.from_json(profile), summary["metrics"]) if FIGURE in paths else []
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
