"""Source kind `webdataset`: tar archives on disk or on the Hub.

    sample-0001.flac, sample-0001.json (its columns), sample-0001.txt (its text)

`samples.group_samples` says which members make one sample. An archive is one batch. Its number of samples is known only
after it was read. It is read twice: first the names and the descriptions, then the audio. So members of a sample may
be anywhere in the archive, and memory does not grow with its audio.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from speechmill.audio.containers import looks_like_audio
from speechmill.errors import ClipError, SourceError
from speechmill.sources import BatchPlan, Clip, Listing, batch_id
from speechmill.sources.archives import TarStream
from speechmill.sources.boundary import read_row
from speechmill.sources.checksums import CACHE
from speechmill.sources.columns import clip_columns, map_columns
from speechmill.sources.folder import OTHER_SUFFIXES, SUFFIXES
from speechmill.sources.parquet import split_of
from speechmill.sources.repositories import RepositorySource, matching
from speechmill.sources.samples import TEXTS, Sample, first_dot, group_samples
from speechmill.sources.text_files import decode_text, parse_json

ARCHIVES = ("*.tar", "*.tar.gz", "*.tgz")
DESCRIPTIONS = (".json", ".txt", ".lab")
DESCRIPTION_BYTES = 1 << 22  # of one member
DESCRIPTIONS_BYTES = 1 << 30  # of all of an archive together


@dataclass
class _Contents:
    """What an archive contains besides its audio: names in order, descriptions, why it could not be read to its end."""

    audio: list[str] = field(default_factory=list)
    descriptions: dict[str, bytes | ClipError] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)  # suffixes
    last: str | None = None
    problem: str | None = None


class WebDatasetSource(RepositorySource):
    """A clip per audio member of the archives below `source.path` or in `source.repo`. `source.files` selects archives."""

    def list_files(self) -> Listing:
        found = matching(self.repository.names(), self.section["files"] or ARCHIVES)
        wanted = self.section["splits"]
        chosen = [name for name in found if wanted is None or split_of(name) in wanted]
        if not chosen:
            raise SourceError(
                f"{self.where}: no archive ({', '.join(self.section['files'] or ARCHIVES)}) of the splits in "
                "source.splits; check source.files and source.splits"
            )
        files = self.repository.files(chosen, self.work / CACHE)
        return Listing([replace(f, split=split_of(f.path)) for f in files], [], self.repository.commit())

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        for file in listing.files:
            yield BatchPlan(batch_id(file.path, 0), file.path, split=file.split)

    def clips(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.source_file is not None
        path = self.place(plan.source_file, file)
        contents = _contents(path, self.max_bytes)
        samples, repeated = group_samples(contents.audio, list(contents.descriptions), self.section["sample_key"])
        for name in repeated:
            passed_over[f"audio beside other audio of the same sample ({PurePosixPath(name).suffix})"] += 1
        for suffix, count in contents.others.items():
            passed_over[f"members that are neither audio nor a description ({suffix})"] += count
        by_audio: dict[str | None, Sample] = {sample.audio: sample for sample in samples if sample.audio}
        archive = TarStream(path, self.max_bytes, passed_over, wanted=lambda name, size: name in by_audio or None)
        cut = self._cut(contents, by_audio)
        for name, data in archive:
            if (sample := by_audio.pop(name, None)) is not None:
                data = (
                    ClipError("archive_cut", f"{plan.source_file}: {archive.problem or contents.problem}")
                    if (name in cut)
                    else data
                )
                yield self._clip(plan, sample, data, contents)
        problem = archive.problem or contents.problem
        for sample in by_audio.values():  # the archive is damaged differently each time it is read
            yield self._clip(plan, sample, ClipError("archive_cut", f"{plan.source_file}: {problem}"), contents)
        for sample in samples:
            if sample.audio is None:
                error = ClipError("no_audio", f"{plan.source_file}: sample {sample.key} has no audio")
                yield self._clip(plan, sample, error, contents)
        if problem:
            passed_over[f"{plan.source_file}: {problem}"] += 1

    def _cut(self, contents: _Contents, by_audio: dict[str | None, Sample]) -> set[str]:
        """The audio whose description may be behind the place where the archive breaks off."""
        if not contents.problem or not contents.last:
            return set()
        last = first_dot(contents.last)
        cut = {name for name in contents.audio if first_dot(name) == last}
        if contents.audio and first_dot(contents.audio[-1]) != last:  # descriptions come after all audio
            cut |= {sample.audio for sample in by_audio.values() if sample.audio and not sample.members}
        return cut

    def _clip(self, plan: BatchPlan, sample: Sample, data: bytes | ClipError, contents: _Contents) -> Clip:
        place = {
            "source_file": plan.source_file,
            "source_member": sample.key,
            "source_id": sample.key,
            "source_split": plan.split,
            "language": self.section["language"],
            "license": self.section["license"],
        }

        def read() -> Clip:
            described = self._described(sample, contents)
            mapping = {"text": _text_column(described)} if _text_column(described) else {}
            mapping |= map_columns(described, self.section["columns"])
            row = {**place, **clip_columns(described, mapping, self.section)}
            row["source_id"] = row["source_id"] or sample.key
            row["source_split"] = row["source_split"] or plan.split
            return row | ({"size": len(data)} if isinstance(data, bytes) else {}), data

        row, found = read_row(place, f"{plan.source_file}, {sample.key}", read)
        return row, data if isinstance(data, ClipError) else found

    def _described(self, sample: Sample, contents: _Contents) -> dict[str, Any]:
        """The columns of a sample: those of its JSON object, and each text by its suffix (.txt and .lab as `text`)."""
        described: dict[str, Any] = {}
        texts: dict[str, str] = {}
        for suffix, name in sample.members.items():
            content = contents.descriptions[name]
            if isinstance(content, ClipError):
                raise content
            try:
                if suffix.rpartition(".")[2] == "json":
                    found = parse_json(content, self.section["encodings"])
                    described |= found if suffix == "json" else {suffix: found}
                else:
                    texts[suffix] = decode_text(content, self.section["encodings"]).strip()
            except ClipError as error:
                raise ClipError(error.error_class, f"{name}: {error.message}") from None
        for suffix in ("txt", "lab"):
            if suffix in texts and described.setdefault("text", texts[suffix]) == texts[suffix]:
                del texts[suffix]
        return texts | described


def _text_column(described: dict[str, Any]) -> str:
    """The column with the text if none has a usual name: the preferred one of `TEXTS`, else the only text; or empty."""
    texts = [name for name in described if name.endswith(("txt", "lab"))]
    return next((name for name in TEXTS if name in texts), texts[0] if len(texts) == 1 else "")


def _contents(path: Path, max_bytes: int) -> _Contents:
    contents = _Contents()
    large: dict[str, int] = {}
    total = 0

    def wanted(name: str, size: int) -> bool | None:
        if not _describes(name):
            return None if _suffix(name) in SUFFIXES else False
        if size > DESCRIPTION_BYTES:
            large[name] = size
        return size <= DESCRIPTION_BYTES

    archive = TarStream(path, max_bytes, wanted=wanted)
    for name, data in archive:
        contents.last = name
        suffix = _suffix(name)
        if suffix in SUFFIXES:
            contents.audio.append(name)
        elif _describes(name):
            total += len(data) if isinstance(data, bytes) else 0
            if total > DESCRIPTIONS_BYTES:
                raise SourceError(f"{path}: its texts and JSON have more than {DESCRIPTIONS_BYTES} bytes together")
            if name in large:
                data = ClipError("bad_row", f"{name} has {large[name]} bytes; {DESCRIPTION_BYTES} are allowed")
            contents.descriptions[name] = data
        elif suffix not in OTHER_SUFFIXES and isinstance(data, bytes) and looks_like_audio(data):
            contents.audio.append(name)
        else:
            contents.others[suffix if suffix.startswith(".") else "no suffix"] += 1
    contents.problem = archive.problem
    return contents


def _suffix(name: str) -> str:
    """Suffix of a member in small letters; of a name such as `.wav`, all of it."""
    base = name.rpartition("/")[2].lower()
    dot = base.rfind(".")
    return base[dot:] if dot >= 0 else base


def _describes(name: str) -> bool:
    return name.lower().endswith(DESCRIPTIONS)
