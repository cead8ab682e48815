"""How large a corpus is, before it is read: from a manifest, a cheap look at the source, or what its file says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill import bucket
from speechmill.errors import ConfigError, SourceError
from speechmill.files import read_json
from speechmill.manifest import batch_identity, read_batches
from speechmill.sources import open_source
from speechmill.sources.revision import asked_for
from speechmill.throughput import Past

MOST_BATCHES = 100_000


@dataclass(frozen=True)
class BatchSize:
    """A batch of a manifest (`name`), or one as large as they will be. None: not known."""

    name: str | None
    clips: float | None
    seconds: float | None


@dataclass(frozen=True)
class CorpusSize:
    """Batches, and where clips and seconds of audio are known from; no batches: nothing is known, and why."""

    batches: Sequence[BatchSize]
    clips_basis: str
    seconds_basis: str
    is_cut: bool  # these are batches of the run's own manifest

    @property
    def clips(self) -> float | None:
        return _total([batch.clips for batch in self.batches])

    @property
    def seconds(self) -> float | None:
        return _total([batch.seconds for batch in self.batches])


def corpus_size(config: Mapping[str, Any], own: Past, mine: Sequence[Past], directory: Path) -> CorpusSize:
    """Of the corpus that is configured. `mine` are runs of the same corpus; relative paths begin in `directory`."""
    for run in (own, *(other for other in mine if other is not own)):
        found = _of_manifest(config, run, run is own)
        if found:
            return found
    looked, why = _glance(config, directory)
    if looked:
        return _cut(config, looked[0], looked[1], looked[2], looked[3])
    expected = config.get("expected")
    if expected:
        basis = f"expected, by the file of {config['dataset']}"
        return _cut(config, expected["clips"], expected["hours"] * 3600, basis, basis)
    unknown = f"unknown: {why}; run once, or say it under `expected` in the data set's file"
    return CorpusSize([], unknown, unknown, False)


def _of_manifest(config: Mapping[str, Any], run: Past, is_own: bool) -> CorpusSize | None:
    table = run.run_dir / "manifest" / "batches.tsv"
    try:
        rows = read_batches(table)
    except OSError:
        return None
    if not rows or (is_own and run.source and run.source.get("asked_for") != asked_for(config["source"])):
        return None
    told = {batch: job for (stage, batch, _), job in run.finished.items() if stage == "enhance"}
    sizes = []
    for row in rows:
        clips, seconds = _number(row["clips"]), _number(row["seconds"])
        job = told.get(row["batch"], {})
        if clips is None and job.get("clips"):
            clips = sum(job["clips"].values())
        if job.get("audio_seconds"):  # what was decoded: headers may claim anything
            seconds = math.fsum(job["audio_seconds"].values())
        elif seconds is not None:
            seconds = _claimed(table.with_name(f"{row['batch']}.parquet"), config["enhance"]["max_seconds"], seconds)
        sizes.append(BatchSize(row["batch"], clips, seconds))
    sizes, clips_basis, seconds_basis = _filled(sizes, config.get("expected"), str(table))
    same = _identity(table.parent, rows[0]["batch"]) == batch_identity(dict(config))
    if same:
        kept = [batch for batch in sizes if batch.name not in config["without_batches"]] if is_own else sizes
        return CorpusSize(kept, clips_basis, seconds_basis, is_own)
    clips, seconds = (_total([getattr(batch, name) for batch in sizes]) for name in ("clips", "seconds"))
    return _cut(config, clips, seconds, clips_basis, seconds_basis) if clips and seconds is not None else None


def _claimed(table: Path, longest: float, seconds: float) -> float:
    """Seconds by the headers of a batch, without clips that are rejected before they are decoded."""
    try:
        durations = pq.read_table(table, columns=["header_duration"])["header_duration"].to_pylist()
    except (OSError, pa.ArrowException):
        return seconds
    return math.fsum(value for value in durations if value is not None and 0 <= value <= longest)


def _filled(
    sizes: Sequence[BatchSize], expected: Mapping[str, float] | None, table: str
) -> tuple[list[BatchSize], str, str]:
    """Batches whose size is not known take the mean of the others, or an equal part of what is expected."""
    filled: dict[str, list[float | None]] = {}
    basis = {}
    for name, whole in (("clips", expected and expected["clips"]), ("seconds", expected and expected["hours"] * 3600)):
        values: list[float | None] = [getattr(batch, name) for batch in sizes]
        known = [value for value in values if value is not None]
        basis[name] = f"{table}, {len(sizes)} batches"
        if len(known) < len(values):
            mean = sum(known) / len(known) if known else whole / len(sizes) if whole else None
            values = [mean if value is None else value for value in values]
            how = f"the mean of {len(known)} that are known" if known else "parts of what is expected"
            basis[name] += (
                f"; {len(values) - len(known)} of them as {how}" if mean is not None else ": unknown until read"
            )
        filled[name] = values
    pairs = zip(sizes, filled["clips"], filled["seconds"], strict=True)
    return [BatchSize(batch.name, clips, seconds) for batch, clips, seconds in pairs], basis["clips"], basis["seconds"]


def _glance(config: Mapping[str, Any], directory: Path) -> tuple[tuple[int, float, str, str] | None, str]:
    section = config["source"]
    if section["path"] is None:
        return None, "the source is not on this machine, and no run has listed it"
    local = [name for name in ("path", "metadata") if section[name] and not bucket.is_url(section[name])]
    placed = {name: str(directory / section[name]) for name in local}
    try:
        found = open_source(dict(config) | {"source": dict(section) | placed}).glance(config["enhance"]["max_seconds"])
    except (SourceError, ConfigError, OSError) as error:
        return None, str(error)
    if found is None:
        return None, f"{section['path']} cannot be looked at quickly, and no run has listed it"
    clips, seconds, read = found
    how = "the headers of all" if read >= clips else f"the headers of {read}"
    return (clips, seconds, f"a look at {section['path']}", f"a look at {section['path']}: {how}"), ""


def _cut(config: Mapping[str, Any], clips: float, seconds: float, clips_basis: str, seconds_basis: str) -> CorpusSize:
    """Batches of batch_size clips, the last one shorter.

    Raises:
        ConfigError: they are too many to run.
    """
    size = config["batch_size"]
    if clips / size > MOST_BATCHES:
        raise ConfigError(
            f"batch_size {size} makes {math.ceil(clips / size)} batches: take {math.ceil(clips / MOST_BATCHES)} or more, "
            f"which makes {MOST_BATCHES} at most"
        )
    counts = [min(size, clips - first) for first in range(0, math.ceil(clips), size)]
    mean = seconds / clips if clips else 0.0
    return CorpusSize([BatchSize(None, n, n * mean) for n in counts], clips_basis, seconds_basis, False)


def _identity(manifest: Path, batch: str) -> Any:
    try:
        return read_json(manifest / f"{batch}.json")["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if values and len(known) == len(values) else None
