"""The size of a corpus: from a manifest, a quick look at the source, or `expected` in the data set's file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.errors import ConfigError, SourceError
from speechmill.estimate.throughput import Past
from speechmill.sources import open_source
from speechmill.sources.manifest import batch_identity
from speechmill.sources.revision import asked_for
from speechmill.storage import s3
from speechmill.tables.batches import read_batches

MAX_BATCHES = 100_000


@dataclass(frozen=True)
class CorpusSize:
    """Seconds of audio by batch (None: unknown), and the basis of clips and seconds, or why there are no batches."""

    batches: Mapping[Any, float | None]  # by name, or by number if the manifest does not exist yet
    clips: float | None
    clips_basis: str
    seconds_basis: str
    is_cut: bool = False  # these are the batches of the run's manifest

    @property
    def seconds(self) -> float | None:
        return _total(self.batches.values()) if self.batches else None


def corpus_size(config: Mapping[str, Any], run: Past, directory: Path) -> CorpusSize:
    """The size of the corpus that `run` is configured for. Relative paths are relative to `directory`.

    Raises:
        ConfigError: `batch_size` makes too many batches.
    """
    if found := _of_manifest(config, run):
        return found
    try:
        clips, seconds, read = _quick_look(config, directory)
    except (SourceError, ConfigError, OSError) as error:
        if expected := config.get("expected"):
            basis = f"`expected` in the file of {config['dataset']}"
            return _cut(config, expected["clips"], expected["hours"] * 3600, basis, basis)
        unknown = f"unknown: {error}; run once, or set `expected` in the data set's file"
        return CorpusSize({}, None, unknown, unknown)
    basis = f"a quick look at {config['source']['path']}"
    return _cut(config, clips, seconds, basis, f"{basis}: the headers of {'all' if read >= clips else read}")


def _of_manifest(config: Mapping[str, Any], run: Past) -> CorpusSize | None:
    table = run.run_dir / "manifest" / "batches.tsv"
    listed = run.json("source.json")
    rows = read_batches(table) if table.exists() else []
    if not rows or (listed and listed.get("asked_for") != asked_for(config["source"])):
        return None
    expected = config.get("expected") or {"clips": 0, "hours": 0}
    clips, clips_basis = _filled([_clips(row, run) for row in rows], expected["clips"], table)
    found = [_seconds(row, run, table, config["enhance"]["max_seconds"]) for row in rows]
    seconds, seconds_basis = _filled(found, expected["hours"] * 3600, table)
    if run.json(f"manifest/{rows[0]['batch']}.json").get("identity") != batch_identity(dict(config)):
        total = _total(clips), _total(seconds)
        return _cut(config, total[0], total[1], clips_basis, seconds_basis) if total[0] and total[1] else None
    kept = [n for n, row in enumerate(rows) if row["batch"] not in config["without_batches"]]
    batches = {rows[n]["batch"]: seconds[n] for n in kept}
    return CorpusSize(batches, _total(clips[n] for n in kept), clips_basis, seconds_basis, True)


def _clips(row: Mapping[str, str], run: Past) -> float | None:
    read = run.finished.get(("enhance", row["batch"], None), {}).get("clips")
    return float(row["clips"]) if row["clips"] else sum(read.values()) if read else None


def _seconds(row: Mapping[str, str], run: Past, table: Path, longest: float) -> float | None:
    """Seconds that the enhance job decoded, or else those in the headers, without clips that are rejected unread."""
    if decoded := run.audio_seconds(row["batch"]):
        return decoded
    try:
        headers = pq.read_table(table.with_name(f"{row['batch']}.parquet"), columns=["header_duration"])
    except (OSError, pa.ArrowException):
        return float(row["seconds"]) if row["seconds"] else None
    return math.fsum(each for each in headers["header_duration"].to_pylist() if each and 0 <= each <= longest)


def _filled(values: list[float | None], whole: float, table: Path) -> tuple[list[float | None], str]:
    """Replace unknown values by the mean of the known ones, or else by equal parts of `whole`."""
    known = [value for value in values if value is not None] or ([whole / len(values)] if whole else [])
    mean = math.fsum(known) / len(known) if known else None
    count = values.count(None)
    how = f"; {count} of them estimated from the others or `expected`" if known else ": unknown until they are read"
    basis = f"{table}, {len(values)} batches" + (how if count else "")
    return [mean if value is None else value for value in values], basis


def _quick_look(config: Mapping[str, Any], directory: Path) -> tuple[int, float, int]:
    section = dict(config["source"])
    for name in ("path", "metadata"):
        if section[name] and not s3.is_url(section[name]):
            section[name] = str(directory / section[name])
    source = open_source(dict(config) | {"source": section}) if section["path"] else None
    found = source.quick_look(config["enhance"]["max_seconds"]) if source else None
    if found and found[0]:
        return found
    raise SourceError("no run has listed the source, and a quick look at it found no clips on this machine")


def _cut(config: Mapping[str, Any], clips: float, seconds: float, clips_basis: str, seconds_basis: str) -> CorpusSize:
    size, count = config["batch_size"], math.ceil(clips / config["batch_size"])
    if count > MAX_BATCHES:
        least = math.ceil(clips / MAX_BATCHES)
        raise ConfigError(
            f"batch_size {size} makes {count} batches, more than {MAX_BATCHES}: set it to {least} or more"
        )
    batches = {number: seconds * min(size, clips - number * size) / clips for number in range(count)}
    return CorpusSize(batches, clips if count else None, clips_basis, seconds_basis)


def _total(values: Iterable[float | None]) -> float | None:
    found = list(values)
    return None if None in found else math.fsum(value or 0 for value in found)
