"""Shards: the Parquet files of a published data set, their plan and how they are written.

Order. There are two ways to assign clips to shards (`publish.shuffle`). In both, the rows of a shard are in the order
of sha256(seed:id).

- `batch`: a shard contains clips of one batch only. It can be sent while other batches are processed, and does not
  change when the corpus grows. A batch is cut by the positions of all its clips, accepted or not. So a new threshold
  moves no clip to another shard. Readers shuffle the shards, and rows in a buffer.
- `corpus`: a shard mixes clips of the whole corpus. Because the corpus can be read only about once, runs of 100 rows
  are put in the order of sha256(seed:batch:run) and then cut into shards. With clips of 250 kB, a shard of 1 GB has
  clips from 40 places of the corpus. A corpus with one shard is completely in the order of sha256(seed:id).

The plan needs only the small tables (survey.py). A hash of everything that a shard is made from (`Planned.made_from`)
tells whether a shard has to be built again.

Cost. Every row group of the enhanced files is read once, or twice if shards divide it. Memory is about twice the audio
of one shard, plus one row group of an enhanced file. Time and memory are not quadratic in clips or batches, and nothing
is spilled to disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill import versions
from speechmill.errors import LedgerError, SpeechmillError
from speechmill.publish.order import shuffled_by
from speechmill.publish.survey import Batch, Survey, origin_of
from speechmill.ranking.removals import REMOVED
from speechmill.storage.files import sha256_bytes, sha256_json
from speechmill.tables.parquet_io import ROW_GROUP_BYTES, conform, leaf_paths, reading_shard
from speechmill.tables.schemas import AUDIO, ENHANCED, RANKING, models_of, scores_schema
from speechmill.tables.splits import SPLITS

ROW_GROUP_ROWS = 100
SCORES_ROWS = 1_000_000  # approximate number of rows in a shard of scores
MAX_FILES = 10_000  # in a folder on the Hub
FLAC_BYTES = 1.2  # approximate bytes per sample of mono speech with 16 bits

_HEAD = "id audio text text_norm language duration sampling_rate speaker_id source source_id source_split license"
# No column depends on other clips or on the threshold, so that unchanged shards are not sent again.
_TAIL = (
    "closeness variant variant_reason source_revision source_file source_row source_member input_sha256 input_channel "
    "offset_removed trim_start_s trim_end_s gain_db enhancer enhancer_sha256 models criteria_sha256 config_sha256 code_version extra"
)


@dataclass(frozen=True)
class Shard:
    """The accepted clips of one file: `cell` and `row` as in `Survey`, one value per clip."""

    path: str
    cell: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class Planned:
    """A file of the data set that is not built yet.

    Attributes:
        path: relative to the data set.
        made_from: hash (hex) of everything that the file is made from. The same hash gives the same bytes.
        build: writes the file to a sink, and returns its number of rows. For data, it also takes `audio`: other files
            with the audio, as in `write_data`.
        batches: the batches that it has clips of.
    """

    path: str
    made_from: str
    build: Callable[..., int]
    batches: tuple[Batch, ...]

    @property
    def is_data(self) -> bool:
        return self.path.startswith("data/")


def plan_files(found: Survey, profile: dict[str, Any], config: dict[str, Any]) -> list[Planned]:
    """Plan all Parquet files of the data set; `profile` is the content of ranking/profile.json.

    Raises:
        SpeechmillError: a folder would have more files than the Hub allows.
    """
    settings, rate = config["publish"], config["enhance"]["sampling_rate"]
    by_batch = shuffled_by(settings) == "batch"
    criteria = sha256_json(profile.get("criteria"))
    data, scores = data_schema(found.metrics, rate), scores_schema(found.metrics)
    common = [versions.PUBLISH, pa.__version__, settings["seed"], criteria, versions.RANK]
    plan = []
    for shard in plan_data(found, settings["seed"], settings["shard_bytes"], rate, by_batch):
        batches = tuple(found.batches[index] for index in np.unique(found.cells[shard.cell, 0]))
        made_from = sha256_json(
            [*common, data.to_string(), [[b.id, b.audio_origin, b.metrics_origin] for b in batches]]
        )
        # Positions of the batches within the shard, because they do not change when other batches are added.
        place = np.unique(found.cells[shard.cell, 0], return_inverse=True)[1]
        rows = shard.row.astype("<i4").tobytes() + place.astype("<i4").tobytes()
        build = partial(
            write_data, shard=shard, found=found, schema=data, seed=settings["seed"], criteria_sha256=criteria
        )
        plan.append(Planned(shard.path, sha256_bytes(made_from.encode() + rows), build, batches))
    for path, of in plan_scores(found, by_batch):
        made_from = sha256_json([*common[:2], scores.to_string(), [[b.id, origin_of(b.ranking)] for b in of]])
        plan.append(Planned(path, made_from, partial(write_scores, batches=of, schema=scores), tuple(of)))
    for folder in ("data", "scores"):
        count = sum(planned.is_data == (folder == "data") for planned in plan)
        if settings["kind"] == "hub" and count > MAX_FILES:
            raise SpeechmillError(
                f"{folder}/ would have {count} files, but the Hub allows {MAX_FILES} in a folder. Raise "
                "publish.shard_bytes and batch_size, or set publish.shuffle corpus"
            )
    return plan


def plan_data(found: Survey, seed: int, shard_bytes: int, rate: int, by_batch: bool) -> list[Shard]:
    """Cut the accepted clips of every split into shards of about `shard_bytes` of audio; `rate` is in Hz.

    A split without an accepted clip has no shard, because `datasets` cannot load a split without rows.
    """
    seconds = shard_bytes / (rate * FLAC_BYTES)
    keys = np.empty(0, np.uint64)
    if not by_batch:
        ids = (f"{seed}:{found.batches[batch].id}:{run}" for batch, run in found.cells.tolist())
        keys = np.array([_key(name) for name in ids], dtype=np.uint64)
    shards = []
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(found.split == number)
        if not by_batch:
            pieces = _cut(found, rows[np.lexsort((found.row[rows], found.cell[rows], keys[found.cell[rows]]))], seconds)
            shards += _shards(found, _paths("data", split, len(pieces)), pieces)
            continue
        batch_of = found.cells[found.cell[rows], 0]
        for of_batch in np.split(rows, np.flatnonzero(np.diff(batch_of)) + 1) if len(rows) else []:
            # Cut by position among all clips of the batch: the state of a clip does not move others to another shard.
            pieces = np.split(of_batch, np.flatnonzero(np.diff(found.start[of_batch] // seconds)) + 1)
            name = found.batches[found.cells[found.cell[of_batch[0]], 0]].id
            shards += _shards(found, _paths("data", f"{split}-{name}", len(pieces)), pieces)
    return shards


def _cut(found: Survey, rows: np.ndarray, seconds: float) -> list[np.ndarray]:
    """Cut clips, in their order, into pieces of about `seconds`."""
    starts_at = np.cumsum(found.seconds[rows]) - found.seconds[rows]
    cuts = np.flatnonzero(np.diff(starts_at // seconds)) + 1
    return np.split(rows, cuts) if len(rows) else []


def _shards(found: Survey, paths: list[str], pieces: list[np.ndarray]) -> list[Shard]:
    return [Shard(path, found.cell[piece], found.row[piece]) for path, piece in zip(paths, pieces, strict=True)]


def plan_scores(found: Survey, by_batch: bool) -> list[tuple[str, list[Batch]]]:
    """Path and batches of every shard of scores: one batch, or batches in the order of ids of about `SCORES_ROWS`."""
    if by_batch:
        return [(_paths("scores", f"{SPLITS[0]}-{batch.id}", 1)[0], [batch]) for batch in found.batches]
    starts_at = np.cumsum(found.rows) - found.rows
    cuts = np.flatnonzero(np.diff(starts_at // SCORES_ROWS)) + 1
    pieces = np.split(np.arange(len(found.batches)), cuts)
    paths = _paths("scores", SPLITS[0], len(pieces))
    return [(path, [found.batches[i] for i in piece]) for path, piece in zip(paths, pieces, strict=True)]


def _paths(folder: str, name: str, count: int) -> list[str]:
    return [f"{folder}/{name}-{k:05d}-of-{count:05d}.parquet" for k in range(count)]


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def data_schema(metrics: Sequence[str], sampling_rate: int) -> pa.Schema:
    """Columns of a published row. The metadata key `huggingface` makes `audio` an Audio feature; the rate is in Hz."""
    known = {f.name: f.type for f in (*RANKING, *ENHANCED)} | dict.fromkeys(("models", "criteria_sha256"), pa.string())
    names = [*_HEAD.split(), *metrics, *_TAIL.split()]
    types = [known.get(name, pa.float64()) for name in names]
    features: dict[str, Any] = {
        name: {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}
        for name, kind in zip(names, types, strict=True)
    }
    features["audio"] = {"sampling_rate": sampling_rate, "_type": "Audio"}
    key = json.dumps({"info": {"features": features}}, separators=(",", ":"))
    return pa.schema(list(zip(names, types, strict=True)), metadata={"huggingface": key})


def write_data(
    sink: BinaryIO,
    shard: Shard,
    found: Survey,
    schema: pa.Schema,
    seed: int,
    criteria_sha256: str,
    audio: Mapping[str, Sequence[Path]] | None = None,
) -> int:
    """Write one shard of accepted clips; returns its number of rows.

    Args:
        sink: a binary file.
        shard: the clips.
        found: the survey of all batches.
        schema: `data_schema`.
        seed: for the order of rows.
        criteria_sha256: hash of the criteria of the profile.
        audio: batch id -> files with the audio, instead of those of the batch.

    Raises:
        LedgerError: an accepted clip has no audio.
    """
    tables = [pa.schema([f for f in schema if f.name != "audio"]).empty_table()]
    recordings: list[bytes] = []
    for part, data in _read(shard, found, schema, criteria_sha256, audio or {}):
        tables.append(part)
        recordings += data
    table = pa.concat_tables(tables).combine_chunks()
    ids = table["id"].to_pylist()
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"{seed}:{ids[i]}".encode()).digest())
    with _writer(sink, schema, uncompressed="audio.bytes") as writer:
        for rows in _row_groups(order, [len(data) for data in recordings]):
            part = table.take(rows)
            paths = pa.array([f"{ids[i]}.flac" for i in rows], pa.string())
            struct = pa.StructArray.from_arrays(
                [pa.array([recordings[i] for i in rows], pa.binary()), paths], fields=AUDIO
            )
            writer.write_table(part.add_column(schema.get_field_index("audio"), schema.field("audio"), struct))
            for i in rows:
                recordings[i] = b""  # frees the memory
    return len(ids)


def _read(
    shard: Shard, found: Survey, schema: pa.Schema, criteria_sha256: str, audio: Mapping[str, Sequence[Path]]
) -> Iterator[tuple[pa.Table, list[bytes]]]:
    """Yield the rows of a shard, one row group of an audio file at a time: the columns without `audio`, the audio."""
    columns = [f for f in schema if f.name != "audio"]
    batch_of = found.cells[shard.cell, 0]
    for index in np.unique(batch_of).tolist():
        batch = found.batches[index]
        there = pq.read_schema(batch.ranking).names
        scored = [name for name in ("closeness", *found.metrics) if name in there]
        ranking = pq.read_table(batch.ranking, columns=["id", *scored])
        ranked = ranking.take(np.sort(shard.row[batch_of == index])).combine_chunks()
        missing = np.ones(len(ranked), bool)
        files = audio.get(batch.id, batch.audio)
        for path in files:
            for part, data, places in rows_of(path, ranked["id"], [f.name for f in columns if f.name not in scored]):
                published = "models" in part.column_names  # a shard of an earlier version
                models = json.loads(part["models"][0].as_py()) if published else models_of(pq.read_schema(path))
                models |= models_of(ranking.schema)
                given = {"models": json.dumps(models, sort_keys=True), "criteria_sha256": criteria_sha256}
                values = {name: part[name] for name in part.column_names}
                values |= {name: ranked[name].take(pa.array(places)) for name in scored}
                values |= {name: pa.repeat(pa.scalar(value, pa.string()), len(places)) for name, value in given.items()}
                values |= {f.name: pa.nulls(len(places), f.type) for f in columns if f.name not in values}
                missing[places] = False
                yield pa.table([values[f.name].cast(f.type) for f in columns], schema=pa.schema(columns)), data
        if missing.any():
            raise LedgerError(
                f"batch {batch.id}: {missing.sum()} of {len(missing)} accepted clips have no audio, such as "
                f"{ranked['id'][int(np.flatnonzero(missing)[0])]}, in {', '.join(map(str, files)) or 'any file'}; "
                "if that file exists, delete it; then run again"
            )


def rows_of(
    path: Path, ids: pa.ChunkedArray, columns: Sequence[str]
) -> Iterator[tuple[pa.Table, list[bytes], np.ndarray]]:
    """Read the rows with these ids from a Parquet file with audio, one row group at a time. Rows without audio are skipped.

    Yields:
        Those of `columns` that the file has; the audio; the positions of the rows in `ids`.
    """
    with reading_shard(path), pq.ParquetFile(path) as file:
        own = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            names = file.read_row_group(group, columns=["id"])["id"]
            place = pc.index_in(names, value_set=ids)
            if place.null_count == len(place):
                continue
            part = file.read_row_group(group, columns=[*own, "audio.bytes"])
            audio = part["audio"]  # not `take`: a row group may exceed the 2 GB that Arrow's offsets allow
            rows = [row for row in np.flatnonzero(place.is_valid()).tolist() if audio[row]["bytes"].as_py()]
            if not rows:
                continue
            data = [audio[row]["bytes"].as_py() for row in rows]
            taken = pa.array(rows, pa.int64())
            yield part.select(own).take(taken), data, place.take(taken).to_numpy().astype(np.int64)


def _row_groups(order: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Cut rows into groups of at most ROW_GROUP_ROWS rows, and ROW_GROUP_BYTES of audio if a group has several rows."""
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
    """Write one shard of scores, with one batch in memory at a time; returns its number of rows.

    Removed clips are left out, because a row contains text and speaker.
    """
    rows = 0
    with _writer(sink, schema) as writer:
        for batch in batches:
            table = conform(pq.read_table(batch.ranking), schema)
            table = table.filter(pc.fill_null(pc.not_equal(table["criterion"], REMOVED), True))
            writer.write_table(table, row_group_size=10_000)
            rows += table.num_rows
    return rows


def _writer(sink: BinaryIO, schema: pa.Schema, uncompressed: str = "") -> pq.ParquetWriter:
    """A Parquet writer whose output depends only on the rows and the version of pyarrow.

    `uncompressed` is a leaf column that is stored without compression. FLAC does not compress further, and the Hub
    deduplicates unchanged clips only if their bytes are stored uncompressed.
    """
    packed = [name for name in leaf_paths(schema) if name != uncompressed]
    return pq.ParquetWriter(
        sink,
        schema,
        compression={name: "zstd" if name in packed else "none" for name in leaf_paths(schema)},
        use_dictionary=packed,
        write_statistics=packed,
        write_page_index=True,
        # One page per row group of audio: page headers between clips would move if a clip is missing, and prevent
        # deduplication on the Hub.
        data_page_size=2 * ROW_GROUP_BYTES if uncompressed else None,
    )
