"""Survey of the ranking tables: positions and seconds of accepted clips, and counts of all others.

It reads a few small columns of every batch, and needs 29 bytes per accepted clip (290 MB for ten million clips).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.errors import LedgerError
from speechmill.storage.run_folder import run_folder
from speechmill.tables.schemas import RANKING
from speechmill.tables.splits import split_index

RUN_ROWS = 100  # consecutive rows of a ranking table that stay together when a corpus is shuffled
MAX_COUNTED = 1000  # distinct reasons, languages and (source, licence) pairs; a hostile corpus may have millions
OTHERS = "(others)"


@dataclass(frozen=True)
class Batch:
    """The tables of one batch.

    Attributes:
        id: id of the batch.
        ranking: its ranking table.
        audio: the files with the audio of its accepted clips: the enhanced shard, or published shards.
        audio_origin: changes when the audio may have changed (`origin_of` the ledger).
        metrics_origin: changes when the metrics may have changed (`origin_of` the scores).
    """

    id: str
    ranking: Path
    audio: tuple[Path, ...]
    audio_origin: str = ""
    metrics_origin: str = ""


def origin_of(path: Path) -> str:
    """A string that changes whenever the file is written again."""
    return run_folder().state(path)


@dataclass
class Survey:
    """The result of `survey`. The arrays `cell` to `start` have one value per accepted clip.

    Attributes:
        batches: all batches, by id.
        metrics: names of all metrics.
        cells: (C, 2): index of the batch, and number of the run of `RUN_ROWS` rows in it.
        cell: index into `cells`.
        row: row of the ranking table.
        seconds: duration of the published audio.
        split: index into SPLITS.
        start: seconds of the clips (of any state) before this one in its batch and split.
        rows: number of rows of the ranking table of each batch.
        clips: state -> clips.
        input_seconds: state -> seconds of decoded input.
        reasons: (rejected or errored, criterion or error class) -> (clips, seconds of decoded input).
        sources: (source, licence) -> (accepted clips, seconds of their published audio).
        languages: language -> accepted clips.
    """

    batches: list[Batch]
    metrics: list[str] = field(default_factory=list)
    cells: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int32))
    cell: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    row: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    seconds: np.ndarray = field(default_factory=lambda: np.empty(0, np.float64))
    split: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    start: np.ndarray = field(default_factory=lambda: np.empty(0, np.float64))
    rows: list[int] = field(default_factory=list)
    clips: Counter[str] = field(default_factory=Counter)
    input_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    reasons: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    sources: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)

    @property
    def accepted_seconds(self) -> float:
        """Seconds of the published audio of all accepted clips."""
        return sum(seconds for _, seconds in self.sources.values())


def survey(batches: Iterable[Batch]) -> Survey:
    """Read the ranking tables of all batches; no audio is read.

    Raises:
        LedgerError: a ranking table lists an accepted clip twice.
    """
    found = Survey(sorted(batches, key=lambda batch: batch.id))
    parts, cells = [], 0
    for index, batch in enumerate(found.batches):
        found.metrics.extend(
            column.name
            for column in pq.read_schema(batch.ranking)
            if pa.types.is_floating(column.type) and column.name not in {*RANKING.names, *found.metrics}
        )
        columns = ["id", "source", "license", "language", "source_split", "state", "input_duration", "duration"]
        ranking = pq.read_table(batch.ranking, columns=[*columns, "criterion", "error_class"])
        accepted = ranking.filter(pc.equal(ranking["state"], "accepted"))
        if pc.count_distinct(accepted["id"]).as_py() < len(accepted):
            raise LedgerError(
                f"batch {batch.id}: an accepted clip is listed twice in {batch.ranking}; delete it and run again"
            )
        found.rows.append(ranking.num_rows)
        _count(found, ranking, accepted)
        _count_reasons(found, ranking)
        rows = np.flatnonzero(pc.equal(ranking["state"], "accepted").to_numpy())
        runs = np.arange(-(-ranking.num_rows // RUN_ROWS), dtype=np.int32)
        of_batch = np.stack([np.full_like(runs, index), runs], 1)
        split = np.array([split_index(name) for name in ranking["source_split"].to_pylist()], np.uint8)
        start = np.zeros(ranking.num_rows)
        for number in np.unique(split):
            of_split = split == number
            length = np.nan_to_num(ranking["duration"].to_numpy()[of_split].astype(np.float64))
            start[of_split] = np.cumsum(length) - length
        seconds = np.maximum(np.nan_to_num(accepted["duration"].to_numpy().astype(np.float64)), 1e-3)
        parts.append((of_batch, cells + rows // RUN_ROWS, rows.astype(np.int32), seconds, split[rows], start[rows]))
        cells += len(runs)
    if parts:
        columns_of = (np.concatenate(column) for column in zip(*parts, strict=True))
        found.cells, found.cell, found.row, found.seconds, found.split, found.start = columns_of
    return found


def _count(found: Survey, ranking: pa.Table, accepted: pa.Table) -> None:
    sums = ranking.group_by("state", use_threads=False).aggregate([("id", "count"), ("input_duration", "sum")])
    for row in sums.to_pylist():
        found.clips[row["state"]] += row["id_count"]
        found.input_seconds[row["state"]] += row["input_duration_sum"] or 0.0
    sums = accepted.group_by(["source", "license"], use_threads=False).aggregate([("id", "count"), ("duration", "sum")])
    for row in sums.to_pylist():
        key = (row["source"] or "", row["license"] or "")
        if key not in found.sources and len(found.sources) >= MAX_COUNTED:
            key = (OTHERS, OTHERS)
        clips, seconds = found.sources.get(key, (0, 0.0))
        found.sources[key] = (clips + row["id_count"], seconds + (row["duration_sum"] or 0.0))
    for row in pc.value_counts(accepted["language"]).to_pylist():
        language = row["values"] or ""
        found.languages[language if len(found.languages) < MAX_COUNTED else OTHERS] += row["counts"]


def _count_reasons(found: Survey, ranking: pa.Table) -> None:
    reason = pc.coalesce(ranking["criterion"], ranking["error_class"], "")
    sums = ranking.append_column("reason", reason).group_by(["state", "reason"], use_threads=False)
    for row in sums.aggregate([("id", "count"), ("input_duration", "sum")]).to_pylist():
        if row["state"] in ("rejected", "errored"):
            key = (row["state"], row["reason"])
            if key not in found.reasons and len(found.reasons) >= MAX_COUNTED:
                key = (row["state"], OTHERS)
            clips, seconds = found.reasons.get(key, (0, 0.0))
            found.reasons[key] = (clips + row["id_count"], seconds + (row["input_duration_sum"] or 0.0))
