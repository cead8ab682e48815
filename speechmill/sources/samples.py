"""Which members of a WebDataset archive make one sample: audio, and what describes it, by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

TEXTS = ("txt", "lab", "normalized.txt", "original.txt")  # suffixes of texts, the preferred one first


@dataclass
class Sample:
    """A sample: its key, its audio (None if it has none), and suffix -> name of the members that describe it."""

    key: str
    audio: str | None
    members: dict[str, str] = field(default_factory=dict)


def group_samples(audio: list[str], others: list[str], rule: str) -> tuple[list[Sample], list[str]]:
    """Group the members of an archive into samples, whatever their order.

    With the rule `stem`, a sample has the name of its audio without the last suffix, and the longest such name that a
    member begins with decides. So `talk_11.708.json` belongs to `talk_11.708.flac` and not to `talk_11.97.flac`,
    and `x.normalized.txt` to `x.flac`. A member without audio of its own that names several, such as `s.json`
    beside `s.left.wav` and `s.right.wav`, describes each.
    With the rule `first_dot`, all members with the same name up to the first dot belong together, as in the library
    webdataset; each audio of such a group is a sample with the name of the group and its own suffix.

    Args:
        audio: names of members with audio, in the order of the archive.
        others: names of members that may describe audio.
        rule: `stem` or `first_dot`.

    Returns:
        Samples in the order of their audio, then those without audio; audio that has the key of another one, which
        no sample has.
    """
    samples: dict[str, Sample] = {}
    repeated: list[str] = []
    groups: dict[str, list[Sample]] = defaultdict(list)  # key up to the first dot, or of a prefix -> samples
    alone = _alone(audio)
    for name in audio:
        key = first_dot(name) if rule == "first_dot" and alone[first_dot(name)] else stem(name)
        if key in samples:
            repeated.append(name)
            continue
        samples[key] = sample = Sample(key, name)
        for prefix in {first_dot(name)} if rule == "first_dot" else _prefixes(key):
            groups[prefix].append(sample)
    orphans: dict[str, Sample] = {}
    for name in others:
        owners = groups.get(first_dot(name), []) if rule == "first_dot" else _owners(name, samples, groups)
        if not owners:
            key = first_dot(name) if rule == "first_dot" else stem(name)
            owners = [orphans.setdefault(key, Sample(key, None))]
        for owner in owners:
            owner.members.setdefault(_suffix(name, owner.key), name)
    if rule == "stem":
        orphans = _joined(orphans)
    return [*samples.values(), *orphans.values()], repeated


def _owners(name: str, samples: Mapping[str, Sample], groups: Mapping[str, list[Sample]]) -> list[Sample]:
    """The samples that a member describes: the one with the longest key that it begins with, or those it is a prefix of."""
    key = stem(name)
    found = next((samples[prefix] for prefix in (key, *_prefixes(key)) if prefix in samples), None)
    return [found] if found else groups.get(key, [])


def _joined(orphans: dict[str, Sample]) -> dict[str, Sample]:
    """Samples without audio: `x.normalized.txt` belongs to `x.txt`."""
    joined: dict[str, Sample] = {}
    for key in sorted(orphans, key=len):
        owner = next((joined[prefix] for prefix in _prefixes(key) if prefix in joined), None)
        if owner is None:
            joined[key] = orphans[key]
        else:
            for name in orphans[key].members.values():
                owner.members.setdefault(_suffix(name, owner.key), name)
    return joined


def _alone(audio: list[str]) -> dict[str, bool]:
    alone: dict[str, bool] = {}
    for name in audio:
        alone[first_dot(name)] = first_dot(name) not in alone
    return alone


def _prefixes(key: str) -> list[str]:
    """The names that a key begins with, cut at its dots, the longest first."""
    folder, slash, name = key.rpartition("/")
    parts = name.split(".")
    return [folder + slash + ".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1) if parts[0]]


def _suffix(name: str, key: str) -> str:
    return name[len(key) + 1 :].lower() if name.startswith(f"{key}.") else PurePosixPath(name).suffix[1:].lower()


def stem(name: str) -> str:
    """A member's name without its last suffix; a name such as `.wav` is kept."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix else name


def first_dot(name: str) -> str:
    """A member's name up to the first dot of its last part; a name such as `.wav` is kept."""
    path = PurePosixPath(name)
    first = path.name.partition(".")[0]
    return str(path.with_name(first)) if first else name
