"""Ranking profiles: what makes a clip good for a use, as a file that people write, checked, frozen and hashed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from speechmill.errors import ConfigError
from speechmill.storage.files import sha256_json
from speechmill.utils.schema import explain, fill_defaults, nearest

SCHEMA_FILE = "schema.yaml"
# Columns that every run has beside its metrics, and that a profile may judge like one.
SHARD_COLUMNS = ("duration",)


@dataclass(frozen=True)
class Gate:
    """A bound that every accepted clip keeps: `min` <= value <= `max`, in the metric's unit; None is no bound."""

    metric: str
    min: float | None
    max: float | None
    reason: str


@dataclass(frozen=True)
class Criterion:
    """How a metric is scaled to 0 (useless) .. 1 (nothing left to wish for), and what it weighs.

    `low` < `high` are fixed bounds in the metric's unit; `direction` is benefit, cost or target; `ideal` is the
    interval within the bounds that a target scores 1 in; `scale` is linear or log10; `weight` is the share of
    the whole profile, so that the weights of a frozen profile sum to 1.
    """

    metric: str
    group: str
    low: float
    high: float
    direction: str
    weight: float
    ideal: tuple[float, float] | None = None
    scale: str = "linear"


@dataclass(frozen=True)
class FrozenProfile:
    """A profile fitted to the metrics that a run measures. `sha256` is over all the other fields."""

    name: str
    version: int
    description: str
    threshold: float
    min_coverage: float
    gates: tuple[Gate, ...]
    criteria: tuple[Criterion, ...]
    dropped_criteria: tuple[str, ...]  # metrics of the profile that the run does not measure
    dropped_gates: tuple[str, ...]
    sha256: str

    @property
    def distance_shares(self) -> dict[str, float]:
        """Criterion -> its share of the squared distance to the ideal, for a clip with equal scaled values.

        Weights enter squared: a criterion with 0.44 of the weight may have 0.76 of the distance.
        """
        total = sum(criterion.weight**2 for criterion in self.criteria)
        return {criterion.metric: criterion.weight**2 / total if total else 0.0 for criterion in self.criteria}

    def to_json(self) -> dict[str, Any]:
        """The content of ranking/profile.json."""
        value = asdict(self)
        value["dropped"] = {"criteria": value.pop("dropped_criteria"), "gates": value.pop("dropped_gates")}
        return json.loads(json.dumps(value))  # tuples become lists, as in the file

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FrozenProfile:
        """The inverse of `to_json`.

        Raises:
            ConfigError: it is no frozen profile, or was edited after it was frozen.
        """
        try:
            body = {key: item for key, item in value.items() if key not in ("sha256", "dropped")}
            body["gates"] = tuple(Gate(**gate) for gate in value["gates"])
            body["criteria"] = tuple(
                Criterion(**{**item, "ideal": tuple(item["ideal"]) if item["ideal"] else None})
                for item in value["criteria"]
            )
            body["dropped_criteria"] = tuple(value["dropped"]["criteria"])
            body["dropped_gates"] = tuple(value["dropped"]["gates"])
            profile = cls(**body, sha256=value["sha256"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the frozen ranking profile cannot be read ({error}); remove it and freeze again"
            ) from None
        if _hash(profile) != profile.sha256:
            raise ConfigError(
                f"the frozen ranking profile {profile.name} does not match its sha256: it was edited by hand. "
                "Change the profile in config/ranking/ instead and remove the frozen one."
            )
        return profile


def load_profile(name_or_path: str | Path, directory: Path, metrics: Iterable[str]) -> dict[str, Any]:
    """Read and check a profile: a name (NAME.yaml in `directory`) or a path. `metrics`: all that there can be.

    `directory` also holds the JSON schema. The result has all defaults filled in.

    Raises:
        ConfigError: lists everything that is wrong with the profile.
    """
    from jsonschema import Draft202012Validator

    path = _find(name_or_path, directory)
    try:
        profile = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"ranking profile {path} cannot be read: {error}") from None
    schema = yaml.safe_load((directory / SCHEMA_FILE).read_text(encoding="utf-8"))
    errors = sorted(Draft202012Validator(schema).iter_errors(profile), key=lambda e: [str(p) for p in e.absolute_path])
    strange = list(_non_finite(profile))
    problems = explain(errors, "the profile")
    problems += [f"{'.'.join(map(str, path))} must be a finite number" for path in strange]
    if isinstance(profile, dict):
        misshapen = {*(tuple(error.absolute_path) for error in errors), *strange}
        problems += _semantic_problems(profile, sorted({*metrics, *SHARD_COLUMNS}), misshapen)
    if problems:
        raise ConfigError(
            f"ranking profile {path} is not valid:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )
    fill_defaults(profile, schema)
    return profile


def with_weights(profile: dict[str, Any], weights: Mapping[str, float | None]) -> dict[str, Any]:
    """A loaded profile with other weights of some groups (`rank.weights`); None leaves the profile's own.

    Raises:
        ConfigError: a group is unknown, a weight below 0 or not finite, or all weights are 0.
    """
    groups = profile["groups"]
    given = {name: weight for name, weight in weights.items() if weight is not None}
    known = ", ".join(f"{name} {group['weight']:g}" for name, group in groups.items())
    for name, weight in given.items():
        if name not in groups:
            raise ConfigError(
                f"rank.weights: profile {profile['name']} has no group {name!r}: {nearest(name, groups)} "
                f"Its groups and weights: {known}"
            )
        if not (weight >= 0 and math.isfinite(weight)):
            raise ConfigError(f"rank.weights.{name} is {weight}: a weight is 0 or more")
    changed = {name: group | {"weight": given.get(name, group["weight"])} for name, group in groups.items()}
    total = sum(group["weight"] for group in changed.values())
    if not 0 < total < math.inf:
        raise ConfigError(f"rank.weights: the weights of profile {profile['name']} sum to {total:g}; its own: {known}")
    return profile | {"groups": changed}


def freeze(
    profile: dict[str, Any],
    available_metrics: Iterable[str],
    threshold_override: float | None = None,
    weights_override: Mapping[str, float | None] | None = None,
) -> FrozenProfile:
    """Fit a loaded profile to the metrics that this run measures.

    A criterion or gate on a metric that the run does not measure at all is left out and named in `dropped`; the
    rest of its group keeps the group's weight. So coverage is about clips that lack a value, never about sets of
    metrics. Weights: group / sum of groups * criterion / sum of its group.

    Raises:
        ConfigError: the run measures nothing that the profile ranks by, the threshold is outside 0..1, or as of
            `with_weights`.
    """
    profile = with_weights(profile, weights_override or {})
    available = {*available_metrics, *SHARD_COLUMNS}
    threshold = float(profile["threshold"] if threshold_override is None else threshold_override)
    if not 0 <= threshold <= 1:
        raise ConfigError(f"rank.threshold is {threshold}: closeness lies between 0 and 1")
    gates = [
        Gate(gate["metric"], _float(gate["min"]), _float(gate["max"]), gate["reason"]) for gate in profile["gates"]
    ]
    groups = {
        name: {metric: item for metric, item in group["criteria"].items() if metric in available}
        for name, group in profile["groups"].items()
    }
    inside = {name: sum(item["weight"] for item in group.values()) for name, group in groups.items()}
    total = sum(profile["groups"][name]["weight"] for name in groups if inside[name] > 0)
    if total <= 0:
        raise ConfigError(
            f"ranking profile {profile['name']} ranks by nothing that this run measures "
            f"(measured: {', '.join(sorted(available))}); choose another profile or more metrics"
        )
    criteria = tuple(
        Criterion(
            metric=metric,
            group=name,
            low=float(item["low"]),
            high=float(item["high"]),
            direction=item["direction"],
            weight=profile["groups"][name]["weight"] / total * item["weight"] / inside[name],
            ideal=(float(item["ideal"][0]), float(item["ideal"][1])) if item["ideal"] is not None else None,
            scale=item["scale"],
        )
        for name, group in groups.items()
        if inside[name] > 0
        for metric, item in group.items()
    )
    kept = {criterion.metric for criterion in criteria}
    frozen = FrozenProfile(
        name=profile["name"],
        version=profile["version"],
        description=profile["description"],
        threshold=threshold,
        min_coverage=float(profile["min_coverage"]),
        gates=tuple(gate for gate in gates if gate.metric in available),
        criteria=criteria,
        dropped_criteria=tuple(
            sorted(metric for group in profile["groups"].values() for metric in group["criteria"] if metric not in kept)
        ),
        dropped_gates=tuple(sorted(gate.metric for gate in gates if gate.metric not in available)),
        sha256="",
    )
    return FrozenProfile(**{**frozen.__dict__, "sha256": _hash(frozen)})


def _hash(profile: FrozenProfile) -> str:
    return sha256_json({key: value for key, value in profile.to_json().items() if key != "sha256"})


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _find(name_or_path: str | Path, directory: Path) -> Path:
    known = {path.stem: path for path in directory.glob("*.yaml") if path.name != SCHEMA_FILE}
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    raise ConfigError(f"no ranking profile {str(name_or_path)!r}: {nearest(name_or_path, known)}")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice: the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _non_finite(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of NaN and infinity, which YAML can write and a JSON schema lets through."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _non_finite(child, (*path, key))


def _semantic_problems(profile: dict[str, Any], metrics: list[str], misshapen: set[tuple[Any, ...]]) -> Iterator[str]:
    """What a JSON schema cannot say. Parts that already broke the schema are skipped."""

    def intact(*path: Any) -> bool:
        return not any(bad[: len(path)] == path for bad in misshapen)

    seen: dict[str, str] = {}
    gated: set[str] = set()
    gates, groups = profile.get("gates", []), profile.get("groups", {})
    for index, gate in enumerate(gates if isinstance(gates, list) else []):
        if not intact("gates", index):
            continue
        metric = gate["metric"]
        bounds = [gate[key] for key in ("min", "max") if gate.get(key) is not None]
        if metric not in metrics:
            yield f"gates.{index}: unknown metric {metric!r}, {nearest(metric, metrics)}"
        if metric in gated:
            yield f"gates.{index}: a second gate on {metric}; one gate can have both min and max"
        gated.add(metric)
        if not bounds:
            yield f"gates.{index} ({metric}) has neither min nor max"
        elif bounds != sorted(bounds):
            yield f"gates.{index} ({metric}): min ({bounds[0]}) is above max ({bounds[1]})"
    for name, group in groups.items() if isinstance(groups, dict) else []:
        criteria = group.get("criteria") if isinstance(group, dict) else None
        if not isinstance(criteria, dict):
            continue
        for metric, item in criteria.items():
            where = f"groups.{name}.{metric}"
            if metric not in metrics:
                yield f"{where}: unknown metric, {nearest(metric, metrics)}"
            if metric in seen:
                yield f"{where}: {metric} is already in group {seen[metric]}; it would count twice"
            seen.setdefault(metric, name)
            if intact("groups", name, "criteria", metric):
                yield from (f"{where}: {problem}" for problem in _criterion_problems(item))
        if intact("groups", name) and sum(item.get("weight", 1) for item in criteria.values()) <= 0:
            yield f"groups.{name}: all its criteria have weight 0"
    if "groups" in profile and intact("groups") and sum(group["weight"] for group in groups.values()) <= 0:
        yield "groups: all groups have weight 0"


def _criterion_problems(item: dict[str, Any]) -> Iterator[str]:
    low, high, ideal = item["low"], item["high"], item.get("ideal")
    if low >= high:
        yield f"low ({low}) must be below high ({high})"
    if item.get("scale") == "log10" and low <= 0:
        yield f"low ({low}) must be above 0 on a log10 scale"
    if (item["direction"] == "target") != (ideal is not None):
        yield "a target needs an ideal interval [a, b], and only a target has one"
    elif ideal is not None and not low <= ideal[0] <= ideal[1] <= high:
        yield f"ideal {ideal} must be an interval within low ({low}) and high ({high})"
