"""Merge, complete and validate the configuration, for the Snakefile, the commands and the API alike.

Order of precedence, lowest first: defaults of config/schema.yaml, config/config.yaml,
config/datasets/NAME.yaml, `--configfile`, `--config`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

import yaml

from speechmill.errors import ConfigError
from speechmill.storage import s3
from speechmill.utils.schema import explain, fill_defaults, nearest

SCHEMA_FILE = "schema.yaml"


def load_schema(config_dir: Path) -> dict[str, Any]:
    """The JSON schema of the configuration."""
    return yaml.safe_load((config_dir / SCHEMA_FILE).read_text(encoding="utf-8"))


def dataset_file(config: Mapping[str, Any], config_dir: Path) -> Path:
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
    return config_dir / "datasets" / f"{name}.yaml"


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: the file is not valid YAML, or has no settings.
    """
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} has no settings: expected lines such as batch_size: 10000")
    return found


def update(config: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Override settings in place, section by section, as Snakemake does."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            update(config[key], value)
        else:
            config[key] = copy.deepcopy(value)


def config_files(given: Mapping[str, Any], config_dir: Path) -> list[Path]:
    """The files that the user's settings override, lowest first: config.yaml and the file of the data set.

    Raises:
        ConfigError: the data set does not exist.
    """
    base = config_dir / "config.yaml"
    return [base, dataset_file({**read_settings(base), **given}, config_dir)]


def complete_config(given: Mapping[str, Any], config_dir: Path) -> dict[str, Any]:
    """The complete configuration.

    Args:
        given: what the user set with --configfile and --config.
        config_dir: the folder with config.yaml, schema.yaml and datasets/.

    Raises:
        ConfigError: the data set does not exist, or a setting is not valid.
    """
    config: dict[str, Any] = {}
    for file in config_files(given, config_dir):
        update(config, read_settings(file))
    update(config, given)
    return validate_config(config, config_dir)


def validate_config(config: dict[str, Any], config_dir: Path) -> dict[str, Any]:
    """A copy of the configuration with all defaults filled in.

    Raises:
        ConfigError: lists every unknown key (with the nearest valid one), wrong type and value out of range.
    """
    from jsonschema import Draft202012Validator

    schema = load_schema(config_dir)
    config = _typed(copy.deepcopy(config), schema)
    fill_defaults(config, schema)
    alerts = config.get("alerts")
    if isinstance(alerts, dict) and isinstance(alerts["deadline"], date):  # YAML parses it if it has no quotes
        alerts["deadline"] = alerts["deadline"].isoformat()
    errors = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda e: [str(p) for p in e.path])
    problems = explain(errors)
    if not problems:
        places = schema["properties"]["source"]["properties"]["kind"]["places"]
        problems += _source_problems(config["source"], places) + _publish_problems(config)
        problems += _deadline_problems(config["alerts"])
    enhance = config.get("enhance", {})
    if not problems and enhance["min_seconds"] >= enhance["max_seconds"]:
        problems.append(
            f"enhance.min_seconds ({enhance['min_seconds']}) must be below enhance.max_seconds ({enhance['max_seconds']})"
        )
    if problems:
        raise ConfigError("the configuration is not valid:\n" + "\n".join(f"  - {p}" for p in problems))
    return config


def result_settings(section: dict[str, Any]) -> dict[str, Any]:
    """The settings of the section `enhance` or `score` that results depend on: all but the size of device batches."""
    return {name: value for name, value in section.items() if name != "batch_seconds"}


# How and where jobs run. Changing one of these changes no results and triggers no job.
HOW_JOBS_RUN = ("alerts", "cluster", "dataset", "device", "download", "failed_batches", "outdir", "without_batches")
HOW_CLIPS_ARE_READ = ("batch_seconds", "max_bytes")  # of the section `enhance`; of `score` only the first


def job_settings(job: Any, **sections: Any) -> dict[str, Any]:
    """The configuration of a job: the sections that trigger it again when they change, and how jobs run.

    Args:
        job: Snakemake's `snakemake` object.
        sections: name -> section, from the job's `params`.
    """
    how: dict[str, Any] = {name: job.config[name] for name in HOW_JOBS_RUN}
    sections = {name: section for name, section in sections.items() if name not in HOW_JOBS_RUN}
    for name in ("enhance", "score"):
        section = {key: job.config[name][key] for key in HOW_CLIPS_ARE_READ if key in job.config[name]}
        sections[name] = section | dict(sections.get(name, {}))
    return how | sections


# Sections that clips' states and metrics depend on. A new section is excluded until it is listed here.
DECIDING = ("dataset", "source", "batch_size", "held_out", "compare_with", "enhance", "score", "rank")


def deciding_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that the report's numbers depend on, to compare two runs."""
    found = {name: config[name] for name in DECIDING if name in config}
    return found | {name: result_settings(found[name]) for name in ("enhance", "score") if name in found}


def _source_problems(source: dict[str, Any], places_of: Mapping[str, Sequence[str]]) -> list[str]:
    kind, places = source["kind"], places_of[source["kind"]]
    given = [place for place in ("path", "repo", "datacollective") if source[place] is not None]
    problems = []
    if len(given) != 1 or given[0] not in places:
        found = f"; given: {', '.join(f'source.{place}' for place in given)}" if given else ""
        problems.append(f"source.kind {kind} needs {' or '.join(f'source.{place}' for place in places)}{found}")
    if kind == "gigaspeech2" and source["language"] is None:
        problems.append("source.kind gigaspeech2 needs source.language: th, id or vi")
    return problems


def _publish_problems(config: dict[str, Any]) -> list[str]:
    publish = config["publish"]
    if publish["kind"] != "hub":
        return []
    problems = []
    if publish["repo"] is None:
        problems.append("publish.kind hub needs publish.repo: owner/name of a data set on the Hugging Face Hub")
    if publish["shuffle"] == "corpus" and not config["keep_enhanced"]:
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
    """The value with strings parsed to numbers, booleans and null where the schema does not allow a string.

    Snakemake passes the values of --config as strings.
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
        with suppress(yaml.YAMLError, ValueError):  # such as an impossible date
            parsed = yaml.safe_load(value)
            allowed = parsed is not None or "null" in types or None in schema.get("enum", [])
            return parsed if allowed else value
    return value


def missing_paths(config: dict[str, Any]) -> list[str]:
    """One line for each path of a valid configuration that does not exist, with the nearest existing name."""
    problems = []
    source = config["source"]
    for key in ("path", "metadata"):
        value = source[key]
        if value is None or s3.is_url(value):
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
    return problems


def _glob_absolute(pattern: str) -> bool:
    path = Path(pattern)
    return any(True for _ in Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _nearest_path(path: Path) -> str:
    """A hint for a path that does not exist: its deepest existing folder, and the nearest name in that."""
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
        ConfigError: the profile does not exist.
    """
    name = config["rank"]["profile"]
    directory = config_dir / "ranking"
    known = {path.stem: path for path in directory.glob("*.yaml") if path.stem != "schema"}
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    raise ConfigError(f"rank.profile: no profile {name!r}: {nearest(name, known)}")
