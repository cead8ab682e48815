"""What a request may set: names on a list, values that the schema of the configuration allows. All else is refused.

Nothing of it reaches a shell or a command line: the settings are written into a file that Snakemake is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from speechmill.errors import ConfigError
from speechmill.utils.schema import nearest

CHECKED_AGAINST_CORPUS = "publish.kind"
WHOLE = ("enhance", "report", "alerts")  # all settings of these sections
ALLOWED = frozenset(
    {
        *("batch_size", "keep_enhanced", "failed_batches", CHECKED_AGAINST_CORPUS),
        *("score.metrics", "score.batch_seconds", "rank.profile", "rank.threshold", "rank.weights"),
        *(f"{section}.*" for section in WHOLE),
    }
)
SECTIONS = frozenset(name.partition(".")[0] for name in ALLOWED if "." in name)
LARGEST = 10**15


def check_settings(config: Mapping[str, Any], corpus_kind: str, profiles: Collection[str]) -> None:
    """Whether a request may set these.

    Args:
        config: of the request.
        corpus_kind: `publish.kind` of the corpus.
        profiles: names of ranking profiles.

    Raises:
        ConfigError: names every setting that it may not.
    """
    problems = []
    for name, value in _flat(config):
        if not _is_allowed(name):
            hint = nearest(name, (each.removesuffix(".*") for each in ALLOWED))
            problems.append(f"{name} cannot be set by a request; {hint}; the operator sets it in the corpus's file")
        elif name == "rank.profile" and value not in profiles:
            problems.append(f"rank.profile must be the name of one of ours, and no path: {nearest(value, profiles)}")
        elif name == CHECKED_AGAINST_CORPUS and value not in ("none", corpus_kind):
            problems.append(f'publish.kind may be "none" or, as in the corpus\'s file, "{corpus_kind}"')
        elif _is_too_large(value):
            problems.append(f"{name} is too large a number")
    if problems:
        raise ConfigError("the configuration of the request is refused:\n" + "\n".join(f"  - {p}" for p in problems))


def check_types(config: Mapping[str, Any], complete: Mapping[str, Any]) -> None:
    """Whether the complete configuration took strings of a request as strings: those of a command line become numbers.

    Raises:
        ConfigError: names every setting where it did not.
    """
    problems = [f"{name}: a string is given where none is expected" for name in _retyped("", config, complete)]
    if problems:
        raise ConfigError("the configuration of the request is refused:\n" + "\n".join(f"  - {p}" for p in problems))


def _retyped(name: str, given: Any, taken: Any) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(taken, dict):
        for key, value in given.items():
            yield from _retyped(f"{name}.{key}" if name else key, value, taken.get(key))
    elif isinstance(given, list) and isinstance(taken, list):
        for each, value in zip(given, taken, strict=True):
            yield from _retyped(name, each, value)
    elif isinstance(given, str) and not isinstance(taken, str):
        yield name


def _flat(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Settings with the names of their sections before them."""
    found: list[tuple[str, Any]] = []
    for name, value in config.items():
        if name in SECTIONS and isinstance(value, dict):
            found += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            found.append((name, value))
    return found


def _is_allowed(name: str) -> bool:
    section, dot, _ = name.partition(".")
    return name in ALLOWED or (bool(dot) and section in WHOLE)


def _is_too_large(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_too_large, value.values()))
    if isinstance(value, list):
        return any(map(_is_too_large, value))
    return isinstance(value, int | float) and not -LARGEST <= value <= LARGEST
