"""WebDataset: tar archives whose members with the same name up to the first dot make a sample; local or on the Hub.

    sample-0001.flac, sample-0001.json (its columns), sample-0001.txt (its text)

An archive is one batch. How many samples it holds is known once it was read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from speechmill.errors import ClipError, SourceError
from speechmill.sources import BatchPlan, Clip, Listing, batch_id
from speechmill.sources.archives import TarStream
from speechmill.sources.checksums import CACHE
from speechmill.sources.columns import clip_columns, map_columns
from speechmill.sources.folder import SUFFIXES
from speechmill.sources.parquet import split_of
from speechmill.sources.repositories import RepositorySource, matching

ARCHIVES = ("*.tar", "*.tar.gz", "*.tgz")
SAMPLE_BYTES = 1 << 22  # of JSON and text beside the audio of one sample


class WebDatasetSource(RepositorySource):
    """A clip per sample of the archives below `source.path` or in `source.repo`, or of those that `source.files` name."""

    def list_files(self) -> Listing:
        found = matching(self.repository.names(), self.section["files"] or ARCHIVES)
        wanted = self.section["splits"]
        chosen = [name for name in found if wanted is None or split_of(name) in wanted]
        if not chosen:
            raise SourceError(
                f"{self.where}: no archive ({', '.join(self.section['files'] or ARCHIVES)}) of these splits"
            )
        files = self.repository.files(chosen, self.work / CACHE)
        return Listing([replace(f, split=split_of(f.path)) for f in files], [], self.repository.commit())

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        for file in listing.files:
            yield BatchPlan(batch_id(file.path, 0), file.path, split=file.split)

    def read(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        assert plan.source_file is not None
        archive = TarStream(self.place(plan.source_file, file), self.max_bytes, passed_over)
        current: str | None = None
        parts: dict[str, bytes | ClipError] = {}
        seen: set[str] = set()
        for name, data in archive:
            path = PurePosixPath(name)
            stem, _, suffix = path.name.partition(".")
            key = str(path.with_name(stem)) if stem else name
            if key != current:
                if current is not None:
                    yield from self._sample(plan, current, parts, passed_over)
                if key in seen:
                    passed_over["members of a sample that was there before"] += 1
                    current, parts = None, {}
                    continue
                seen.add(key)
                current, parts = key, {}
            if f".{suffix.lower()}" in SUFFIXES or len(data if isinstance(data, bytes) else b"") <= SAMPLE_BYTES:
                parts[suffix.lower()] = data
        if current is not None:
            if archive.problem:  # the last sample may lack its audio's end, or its text
                reason = ClipError("archive_cut", f"{plan.source_file}: {archive.problem}")
                parts = {suffix: reason if f".{suffix}" in SUFFIXES else data for suffix, data in parts.items()}
            yield from self._sample(plan, current, parts, passed_over)
        if archive.problem:
            passed_over[f"{plan.source_file}: {archive.problem}"] += 1

    def _sample(
        self, plan: BatchPlan, key: str, parts: dict[str, bytes | ClipError], passed_over: Counter[str]
    ) -> Iterator[Clip]:
        audio = [suffix for suffix in parts if f".{suffix.rpartition('.')[2]}" in SUFFIXES]
        if not audio and not {"json", "txt"} & parts.keys():
            passed_over["samples without audio, JSON and text"] += 1
            return
        described = self._described(parts, passed_over)
        row: dict[str, Any] = {"source_file": plan.source_file, "source_member": key}
        row |= clip_columns(described, map_columns(described, self.section["columns"]), self.section)
        row["source_id"] = row["source_id"] or key
        row["source_split"] = row["source_split"] or plan.split
        data = parts[audio[0]] if audio else ClipError("no_audio", f"{plan.source_file}: sample {key} has no audio")
        yield row | ({"size": len(data)} if isinstance(data, bytes) else {}), data

    def _described(self, parts: dict[str, bytes | ClipError], passed_over: Counter[str]) -> dict[str, Any]:
        """The columns of a sample: its JSON object, and its text."""
        described: dict[str, Any] = {}
        encoded, text = parts.get("json"), parts.get("txt")
        if isinstance(encoded, bytes):
            try:
                value = json.loads(encoded)
                described = value if isinstance(value, dict) else {}
            except (ValueError, RecursionError):
                passed_over["JSON that cannot be read"] += 1
        if isinstance(text, bytes):
            described.setdefault("text", text.decode("utf-8", "replace").strip())
        return described
