"""The configuration: merged by Snakemake, completed with defaults and checked here.

Order of precedence, lowest first: defaults of config/schema.yaml, config/config.yaml,
config/datasets/NAME.yaml, `--configfile`, `--config`.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

import yaml

from speechmill import bucket
from speechmill.errors import ConfigError

SCHEMA_FILE = "schema.yaml"


def nearest(name: object, valid: Iterable[str]) -> str:
    """A hint that names the nearest valid name, or all of them: `did you mean "x"?`."""
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f'did you mean "{close[0]}"?'
    return f"valid: {', '.join(names)}" if names else "there is none"


def load_schema(config_dir: Path) -> dict[str, Any]:
    """The JSON schema of the configuration."""
    return yaml.safe_load((config_dir / SCHEMA_FILE).read_text(encoding="utf-8"))


def dataset_file(config: dict[str, Any], config_dir: Path) -> str:
    """Path of the data set's own configuration file.

    Raises:
        ConfigError: `dataset` is missing or names no file in config/datasets/.
    """
    name = config.get("dataset")
    known = [path.stem for path in (config_dir / "datasets").glob("*.yaml")]
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"unknown data set {name!r}: {nearest(name, known)} "
            f"A data set is a file {config_dir / 'datasets'}/NAME.yaml; choose one with --config dataset=NAME."
        )
    return str(config_dir / "datasets" / f"{name}.yaml")


def validate_config(config: dict[str, Any], config_dir: Path) -> dict[str, Any]:
    """A copy of the configuration with all defaults filled in.

    Raises:
        ConfigError: lists every unknown key (with the nearest valid one), wrong type and value out of range.
    """
    from jsonschema import Draft202012Validator

    schema = load_schema(config_dir)
    config = _typed(copy.deepcopy(config), schema)
    _fill_defaults(config, schema)
    alerts = config.get("alerts")
    if isinstance(alerts, dict) and isinstance(alerts["deadline"], date):  # without quotes, YAML makes one of it
        alerts["deadline"] = alerts["deadline"].isoformat()
    problems = []
    for error in sorted(Draft202012Validator(schema).iter_errors(config), key=lambda e: [str(p) for p in e.path]):
        problems.extend(_explain(error))
    if not problems:
        problems += _source_problems(config["source"]) + _publish_problems(config)
        problems += _deadline_problems(config["alerts"])
    enhance = config.get("enhance", {})
    if not problems and enhance["min_seconds"] >= enhance["max_seconds"]:
        problems.append(
            f"enhance.min_seconds ({enhance['min_seconds']}) must be below enhance.max_seconds ({enhance['max_seconds']})"
        )
    if problems:
        raise ConfigError("the configuration is not valid:\n" + "\n".join(f"  - {p}" for p in problems))
    return config


# Which settings say where a kind of source lies: exactly one of them has to be given.
PLACES = {
    "folder": ("path",),
    "parquet": ("path",),
    "hf_parquet": ("repo",),
    "gigaspeech2": ("repo", "path"),
    "common_voice": ("path", "datacollective"),
    "webdataset": ("path", "repo"),
    "lhotse_shar": ("path",),
}


def result_settings(section: dict[str, Any]) -> dict[str, Any]:
    """The settings of the section `enhance` or `score` that results depend on: how clips are grouped changes none."""
    return {name: value for name, value in section.items() if name != "batch_seconds"}


# What clips' states and metrics depend on. A list of these, not of the others: a new section stays out until it is named.
DECIDING = ("dataset", "source", "batch_size", "held_out", "compare_with", "enhance", "score", "rank")


def deciding_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that the report's numbers depend on; two runs are compared by them."""
    found = {name: config[name] for name in DECIDING if name in config}
    return found | {name: result_settings(found[name]) for name in ("enhance", "score") if name in found}


def _source_problems(source: dict[str, Any]) -> list[str]:
    kind, places = source["kind"], PLACES[source["kind"]]
    given = [place for place in ("path", "repo", "datacollective") if source[place] is not None]
    problems = []
    if len(given) != 1 or given[0] not in places:
        there = f"; given: {', '.join(f'source.{place}' for place in given)}" if given else ""
        problems.append(f"source.kind {kind} needs {' or '.join(f'source.{place}' for place in places)}{there}")
    if kind == "gigaspeech2" and source["language"] is None:
        problems.append("source.kind gigaspeech2 needs source.language: th, id or vi")
    return problems


def shuffled_by(publish: dict[str, Any]) -> str:
    """`publish.shuffle`: unless set, by corpus in a folder, and by batch on the Hub, where shards are sent early."""
    return publish["shuffle"] or ("batch" if publish["kind"] == "hub" else "corpus")


def _publish_problems(config: dict[str, Any]) -> list[str]:
    publish = config["publish"]
    problems = []
    if publish["kind"] == "hub" and publish["repo"] is None:
        problems.append("publish.kind hub needs publish.repo: owner/name of a data set on the Hugging Face Hub")
    if publish["kind"] == "hub" and publish["shuffle"] == "corpus" and not config["keep_enhanced"]:
        problems.append("publish.shuffle corpus draws every shard from all batches: it needs keep_enhanced true")
    return problems


def _deadline_problems(alerts: dict[str, Any]) -> list[str]:
    given = alerts["deadline"]
    try:
        if given is None or datetime.fromisoformat(given).tzinfo is not None:
            return []
    except ValueError:
        pass
    return [f'alerts.deadline is "{given}": expected date, time and zone, such as "2026-03-01T12:00+07:00"']


def _typed(value: Any, schema: dict[str, Any]) -> Any:
    """The value with numbers, booleans and null in place of strings, where the schema expects them and no string.

    Snakemake hands on all that stands after --config as strings.
    """
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties") or {}
        return {name: _typed(inner, properties.get(name, others)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner, schema.get("items", {})) for inner in value]
    types = schema.get("type", [])
    types = types if isinstance(types, list) else [types]
    wrong_type = bool(types) and "string" not in types
    if isinstance(value, str) and (wrong_type or value == "null" or value not in schema.get("enum", [value])):
        with suppress(yaml.YAMLError, ValueError):  # such as a date that there is not
            parsed = yaml.safe_load(value)
            allowed = parsed is not None or "null" in types or None in schema.get("enum", [])
            return parsed if allowed else value
    return value


def _fill_defaults(value: Any, schema: dict[str, Any]) -> None:
    if isinstance(value, list):
        for item in value:
            _fill_defaults(item, schema.get("items", {}))
    if not isinstance(value, dict):
        return
    for key, child in schema.get("properties", {}).items():
        if key not in value and "default" in child:
            value[key] = copy.deepcopy(child["default"])
        if key in value:
            _fill_defaults(value[key], child)


def _explain(error: Any) -> list[str]:
    """Turn one jsonschema error into lines for a person."""
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        valid = error.schema.get("properties", {})
        extra = sorted(str(key) for key in error.instance if key not in valid)
        return [f"unknown setting {where + '.' if where else ''}{key}: {nearest(key, valid)}" for key in extra]
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return [f"missing setting {where + '.' if where else ''}{key}" for key in missing]
    if error.validator == "enum":
        return [f"{where} is {error.instance!r}: {nearest(error.instance, map(str, error.validator_value))}"]
    if error.validator == "anyOf":
        allowed = [str(v) for option in error.validator_value for v in option.get("enum", [])]
        return [f"{where} is {error.instance!r}: {nearest(error.instance, allowed)} (or a list)"]
    if error.validator == "type":
        return [
            f"{where or 'the configuration'} is {json.dumps(error.instance, default=str)}: expected {error.validator_value}"
        ]
    return [f"{where}: {error.message}"]


def missing_paths(config: dict[str, Any], config_dir: Path) -> list[str]:
    """One line for each path of a valid configuration that is not there, with the nearest name beside it."""
    problems = []
    source = config["source"]
    for key in ("path", "metadata"):
        value = source[key]
        if value is None or bucket.is_url(value):
            continue
        if any(letter in value for letter in "*?["):
            if (
                not any(True for _ in Path().glob(value))
                if not Path(value).is_absolute()
                else not _glob_absolute(value)
            ):
                problems.append(f"source.{key}: nothing matches {value}")
        elif not Path(value).exists():
            problems.append(f"source.{key}: {value} does not exist; {_nearest_path(Path(value))}")
    named = [("score.squim_weights", config["score"]["squim_weights"])]
    named += [("held_out", entry["path"]) for entry in config["held_out"]]
    named += [("compare_with", run) for run in config["compare_with"]]
    for setting, value in named:
        if value is not None and not Path(value).exists():
            problems.append(f"{setting}: {value} does not exist; {_nearest_path(Path(value))}")
    try:
        profile_path(config, config_dir)
    except ConfigError as error:
        problems.append(str(error))
    return problems


def _glob_absolute(pattern: str) -> bool:
    path = Path(pattern)
    return any(True for _ in Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _nearest_path(path: Path) -> str:
    """A hint for a path that does not exist: the deepest folder that does, and the nearest name in it."""
    parent, name = path.parent, path.name
    while not parent.is_dir():
        parent, name = parent.parent, parent.name
    try:
        return f"in {parent}/ {nearest(name, (entry.name for entry in parent.iterdir()))}"
    except OSError as error:
        return f"{parent}/ cannot be read: {error.strerror}"


def profile_path(config: dict[str, Any], config_dir: Path) -> Path:
    """Path of the ranking profile: a name in config/ranking/, or a path.

    Raises:
        ConfigError: there is no such profile.
    """
    name = config["rank"]["profile"]
    directory = config_dir / "ranking"
    known = {path.stem: path for path in directory.glob("*.yaml") if path.stem != "schema"}
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    raise ConfigError(f"rank.profile: no profile {name!r}: {nearest(name, known)}")
