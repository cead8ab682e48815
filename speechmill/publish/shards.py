"""The Parquet files of a published data set: which clip goes where, and how it is written.

Order. Readers shuffle only a buffer of a few thousand rows, so a shard must mix the whole corpus; and a corpus of
terabytes can be read about once. Therefore the shuffle has two levels, both decided by a seeded hash: the row
groups of the enhanced files are drawn in the order of sha256(seed:batch:row group) and cut into shards; inside a
shard the rows lie in the order of sha256(seed:id). With row groups of 100 clips of 250 kB, a shard of 1 GB holds
clips from 40 places of the corpus, and a corpus of one shard lies in the order of sha256(seed:id) altogether.

Cost. Planning reads a few small columns of every batch and keeps 33 bytes for each accepted clip (330 MB for ten
million). Writing reads every row group of the enhanced files once, and once more where a cut falls into it, and
opens at most as many files for a shard as it has row groups. Memory is about twice the audio of one shard plus one
row group of an enhanced file. Nothing is quadratic in clips or batches, and nothing is spilled to disk.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.errors import LedgerError
from speechmill.shards import AUDIO, ENHANCED, RANKING, ROW_GROUP_BYTES, conform, leaf_paths, models_of, reading_shard
from speechmill.splits import SPLITS, split_index

ROW_GROUP_ROWS = 100
SCORES_ROWS = 1_000_000  # of one shard of scores, about
KINDS_COUNTED = 1000  # distinct (source, licence) pairs and languages kept apart; a hostile corpus may bring millions
OTHERS = "(others)"

_HEAD = "id audio text text_norm language duration sampling_rate speaker_id source source_id source_split license"
_TAIL = (
    "closeness variant variant_reason source_revision source_file source_row source_member near_duplicate_of input_sha256 trim_start_s trim_end_s gain_db "
    "enhancer enhancer_sha256 models profile_sha256 config_sha256 code_version extra"
)


@dataclass(frozen=True)
class Batch:
    """The tables of one batch."""

    id: str
    enhanced: Path
    ranking: Path


@dataclass
class Survey:
    """What the small columns of all batches say.

    The arrays have one value per accepted clip: `cell` (index into `cells`), `row` (in its row group), `size`
    (estimated bytes of its audio) and `split` (index into SPLITS). `cells` are (batch index, row group).
    `clips` and `seconds` (of input) are by state, `reasons` maps (rejected or errored, criterion or class) to (clips,
    seconds of input), `sources` maps (source, licence) to accepted (clips, seconds).
    """

    batches: list[Batch]
    metrics: list[str] = field(default_factory=list)
    cells: list[tuple[int, int]] = field(default_factory=list)
    cell: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    row: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    size: np.ndarray = field(default_factory=lambda: np.empty(0, np.float64))
    split: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    rows: list[int] = field(default_factory=list)  # of each batch's ranking table
    clips: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    reasons: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    sources: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)

    @property
    def accepted_seconds(self) -> float:
        """Seconds of the accepted clips as they are published."""
        return sum(seconds for _, seconds in self.sources.values())


def survey(batches: Iterable[Batch]) -> Survey:
    """Read what the plan and the card need; no audio is read.

    The size of a clip is its share, by duration, of its row group's audio: the exact one is known only to who reads it.

    Raises:
        LedgerError: an accepted clip is not, or more than once, in its enhanced file.
    """
    found = Survey(sorted(batches, key=lambda batch: batch.id))
    parts = []
    for index, batch in enumerate(found.batches):
        found.metrics.extend(
            column.name
            for column in pq.read_schema(batch.ranking)
            if pa.types.is_floating(column.type) and column.name not in {*RANKING.names, *found.metrics}
        )
        columns = ["id", "source", "license", "language", "source_split", "state", "input_duration", "duration"]
        ranking = pq.read_table(batch.ranking, columns=[*columns, "criterion", "error_class"])
        accepted = ranking.filter(pc.equal(ranking["state"], "accepted"))
        found.rows.append(ranking.num_rows)
        _count(found, ranking, accepted)
        _count_reasons(found, ranking)
        parts.append(_locate(found.cells, index, batch, accepted))
    if parts:
        found.cell, found.row, found.size, found.split = (np.concatenate(column) for column in zip(*parts, strict=True))
    return found


def _count(found: Survey, ranking: pa.Table, accepted: pa.Table) -> None:
    sums = ranking.group_by("state", use_threads=False).aggregate([("id", "count"), ("input_duration", "sum")])
    for row in sums.to_pylist():
        found.clips[row["state"]] += row["id_count"]
        found.seconds[row["state"]] += row["input_duration_sum"] or 0.0
    sums = accepted.group_by(["source", "license"], use_threads=False).aggregate([("id", "count"), ("duration", "sum")])
    for row in sums.to_pylist():
        key = (row["source"] or "", row["license"] or "")
        if key not in found.sources and len(found.sources) >= KINDS_COUNTED:
            key = (OTHERS, OTHERS)
        clips, seconds = found.sources.get(key, (0, 0.0))
        found.sources[key] = (clips + row["id_count"], seconds + (row["duration_sum"] or 0.0))
    for row in pc.value_counts(accepted["language"]).to_pylist():
        language = row["values"] or ""
        found.languages[language if len(found.languages) < KINDS_COUNTED else OTHERS] += row["counts"]


def _count_reasons(found: Survey, ranking: pa.Table) -> None:
    reason = pc.coalesce(ranking["criterion"], ranking["error_class"], "")
    sums = ranking.append_column("reason", reason).group_by(["state", "reason"], use_threads=False)
    for row in sums.aggregate([("id", "count"), ("input_duration", "sum")]).to_pylist():
        if row["state"] in ("rejected", "errored"):
            key = (row["state"], row["reason"])
            if key not in found.reasons and len(found.reasons) >= KINDS_COUNTED:
                key = (row["state"], OTHERS)
            clips, seconds = found.reasons.get(key, (0, 0.0))
            found.reasons[key] = (clips + row["id_count"], seconds + (row["input_duration_sum"] or 0.0))


def _locate(cells: list[tuple[int, int]], index: int, batch: Batch, accepted: pa.Table) -> tuple[np.ndarray, ...]:
    """`cell`, `row`, `size` and `split` of a batch's accepted clips; its row groups are added to `cells`."""
    with reading_shard(batch.enhanced), pq.ParquetFile(batch.enhanced) as file:
        enhanced = file.read(columns=["id", "duration"])
        groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
    position = pc.index_in(accepted["id"].combine_chunks(), value_set=enhanced["id"].combine_chunks())
    good = len(position.unique().drop_null())
    if good < len(position):
        raise LedgerError(
            f"batch {batch.id}: {len(position) - good} of {len(position)} accepted clips are missing from "
            f"{batch.enhanced} or listed twice in {batch.ranking}; delete both files and run again"
        )
    where = position.to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.array([group.num_rows for group in groups], dtype=np.int64)
    group_of = np.repeat(np.arange(len(groups)), rows)
    seconds = np.maximum(np.nan_to_num(enhanced["duration"].to_numpy()), 1e-3)
    audio = np.array([_audio_bytes(group) for group in groups], dtype=np.float64)
    bytes_per_second = audio / np.maximum(np.bincount(group_of, weights=seconds, minlength=len(groups)), 1e-3)
    group = group_of[where]
    split = [split_index(name) for name in accepted["source_split"].to_pylist()]
    first = len(cells)
    cells.extend((index, g) for g in range(len(groups)))
    row = (where - (np.cumsum(rows) - rows)[group]).astype(np.int32)
    return first + group, row, bytes_per_second[group] * seconds[where], np.array(split, np.uint8)


def _audio_bytes(group: Any) -> int:
    columns = (group.column(c) for c in range(group.num_columns))
    return next(c.total_uncompressed_size for c in columns if c.path_in_schema == "audio.bytes")


@dataclass(frozen=True)
class Shard:
    """One planned file of accepted clips: `path` below the data set, and its clips in the order of reading."""

    path: str
    cell: np.ndarray
    row: np.ndarray


def plan_data(found: Survey, seed: int, shard_bytes: int) -> list[Shard]:
    """Cut the accepted clips of every split into shards of about `shard_bytes` of audio.

    Without any accepted clip there is no shard: `datasets` refuses to load a split without rows.
    """
    keys = np.array(
        [_key(f"{seed}:{found.batches[batch].id}:{group}") for batch, group in found.cells], dtype=np.uint64
    )
    shards = []
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(found.split == number)
        rows = rows[np.lexsort((found.row[rows], found.cell[rows], keys[found.cell[rows]]))]
        starts_at = np.cumsum(found.size[rows]) - found.size[rows]
        cuts = np.flatnonzero(np.diff(starts_at // shard_bytes)) + 1
        pieces = np.split(rows, cuts) if len(rows) else []
        paths = _paths("data", split, len(pieces))
        shards += [Shard(p, found.cell[piece], found.row[piece]) for p, piece in zip(paths, pieces, strict=True)]
    return shards


def plan_scores(found: Survey) -> list[tuple[str, list[Batch]]]:
    """Path and batches of every shard of scores: whole batches in the order of their ids, a million rows or so."""
    starts_at = np.cumsum(found.rows) - found.rows
    cuts = np.flatnonzero(np.diff(starts_at // SCORES_ROWS)) + 1
    pieces = np.split(np.arange(len(found.batches)), cuts)
    paths = _paths("scores", SPLITS[0], len(pieces))
    return [(path, [found.batches[i] for i in piece]) for path, piece in zip(paths, pieces, strict=True)]


def _paths(folder: str, split: str, count: int) -> list[str]:
    return [f"{folder}/{split}-{k:05d}-of-{count:05d}.parquet" for k in range(count)]


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def data_schema(metrics: Sequence[str], sampling_rate: int) -> pa.Schema:
    """Columns of a published row, with the `huggingface` key that makes `audio` an Audio feature at that rate in Hz."""
    known = {f.name: f.type for f in (*RANKING, *ENHANCED)} | dict.fromkeys(("models", "profile_sha256"), pa.string())
    names = [*_HEAD.split(), *metrics, *_TAIL.split()]
    types = [known.get(name, pa.float64()) for name in names]
    features: dict[str, Any] = {
        name: {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}
        for name, kind in zip(names, types, strict=True)
    }
    features["audio"] = {"sampling_rate": sampling_rate, "_type": "Audio"}
    key = json.dumps({"info": {"features": features}}, separators=(",", ":"))
    return pa.schema(list(zip(names, types, strict=True)), metadata={"huggingface": key})


def write_data(sink: BinaryIO, shard: Shard, found: Survey, schema: pa.Schema, seed: int, profile_sha256: str) -> int:
    """Write one shard of accepted clips; returns its rows.

    Raises:
        LedgerError: an accepted clip has no audio.
    """
    tables = [pa.schema([f for f in schema if f.name != "audio"]).empty_table()]
    audio: list[bytes] = []
    for part, data in _read(shard, found, schema, profile_sha256):
        tables.append(part)
        audio += data
    table = pa.concat_tables(tables).combine_chunks()
    ids = table["id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"{seed}:{ids[i]}".encode()).digest())
    with _writer(sink, schema, uncompressed="audio.bytes") as writer:
        for rows in _row_groups(order, [len(data) for data in audio]):
            part = table.take(rows)
            paths = pa.array([f"{ids[i]}.flac" for i in rows], pa.string())
            struct = pa.StructArray.from_arrays([pa.array([audio[i] for i in rows], pa.binary()), paths], fields=AUDIO)
            writer.write_table(part.add_column(schema.get_field_index("audio"), schema.field("audio"), struct))
            for i in rows:
                audio[i] = b""  # written: let go of it
    return len(ids)


def _read(shard: Shard, found: Survey, schema: pa.Schema, profile: str) -> Iterator[tuple[pa.Table, list[bytes]]]:
    """The rows of a shard, one row group of an enhanced file at a time: the columns but `audio`, and the audio."""
    wanted: dict[int, list[tuple[int, np.ndarray]]] = {}
    for cell in np.unique(shard.cell):
        batch, group = found.cells[cell]
        wanted.setdefault(batch, []).append((group, shard.row[shard.cell == cell]))
    columns = [f for f in schema if f.name != "audio"]
    for index, groups in wanted.items():
        batch = found.batches[index]
        there = pq.read_schema(batch.ranking).names
        scored = [name for name in ("closeness", "near_duplicate_of", *found.metrics) if name in there]
        ranking = pq.read_table(batch.ranking, columns=["id", *scored])
        ranked_ids = ranking["id"].combine_chunks()
        with pq.ParquetFile(batch.enhanced) as file:
            models = models_of(file.schema_arrow) | models_of(ranking.schema)
            own = [f.name for f in columns if f.name in file.schema_arrow.names and f.name not in scored]
            for group, rows in groups:
                with reading_shard(batch.enhanced):
                    part = file.read_row_group(group, columns=[*own, "audio.bytes"])
                audio = part["audio"]  # indexed, not taken from: a row group may hold more than Arrow's 2 GB offsets
                data = [audio[int(row)]["bytes"].as_py() for row in rows]
                part = part.select(own).take(pa.array(rows))
                ranked = ranking.take(pc.index_in(part["id"].combine_chunks(), value_set=ranked_ids))
                if not all(data):
                    bad = part["id"][next(i for i, value in enumerate(data) if not value)]
                    raise LedgerError(f"batch {batch.id}: accepted clip {bad} has no audio in {batch.enhanced}")
                values = {name: part[name] for name in own} | {name: ranked[name] for name in scored}
                values["models"] = pa.repeat(pa.scalar(json.dumps(models, sort_keys=True), pa.string()), len(rows))
                values["profile_sha256"] = pa.repeat(pa.scalar(profile, pa.string()), len(rows))
                values |= {f.name: pa.nulls(len(rows), f.type) for f in columns if f.name not in values}
                yield pa.table([values[f.name].cast(f.type) for f in columns], schema=pa.schema(columns)), data


def _row_groups(order: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Cut rows into groups of at most ROW_GROUP_ROWS, and ROW_GROUP_BYTES of audio where a group has several rows."""
    group: list[int] = []
    held = 0
    for i in order:
        if group and (len(group) == ROW_GROUP_ROWS or held + sizes[i] > ROW_GROUP_BYTES):
            yield group
            group, held = [], 0
        group.append(i)
        held += sizes[i]
    if group:
        yield group


def write_scores(sink: BinaryIO, batches: Sequence[Batch], schema: pa.Schema) -> int:
    """Write one shard of scores, one batch in memory at a time; returns its rows."""
    rows = 0
    with _writer(sink, schema) as writer:
        for batch in batches:
            table = conform(pq.read_table(batch.ranking), schema)
            writer.write_table(table, row_group_size=10_000)
            rows += table.num_rows
    return rows


def _writer(sink: BinaryIO, schema: pa.Schema, uncompressed: str = "") -> pq.ParquetWriter:
    """A writer whose bytes depend on the rows and pyarrow's version only; `uncompressed` is a leaf to store plain.

    FLAC does not compress further, and the Hub finds unchanged clips only in bytes that are stored as they are.
    """
    packed = [name for name in leaf_paths(schema) if name != uncompressed]
    return pq.ParquetWriter(
        sink,
        schema,
        compression={name: "zstd" if name in packed else "none" for name in leaf_paths(schema)},
        use_dictionary=packed,
        write_statistics=packed,
        write_page_index=True,
        write_batch_size=4 if uncompressed else None,  # rows between looks at the page size: small pages for the viewer
    )
