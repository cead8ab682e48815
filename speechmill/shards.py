"""The Parquet schemas that the stages exchange, and how a table is written.

Metric columns are appended to these by name (float64, null where missing); `speechmill.metrics` declares them. Enhanced
shards, scores and rankings carry the models that made them, by name, in the schema's metadata (`with_models`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.errors import ClipError, SpeechmillError
from speechmill.files import atomic_path

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

# Who a clip is and where it comes from: first columns of every table with one row per clip.
IDENTITY = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("source", pa.string()),  # name of the corpus
    pa.field("source_id", pa.string()),  # the corpus's own name of the clip
    pa.field("source_split", pa.string()),
    pa.field("source_file", pa.string()),  # path below the source's root
    pa.field("source_row", pa.int64()),  # row of a table; null where a file is a clip
    pa.field("source_member", pa.string()),  # of an archive
]

# What a corpus says of the person who speaks: for the report's counts. The published tables have no such columns.
PERSONAL = [pa.field("gender", pa.string()), pa.field("age", pa.string())]

MANIFEST = pa.schema(
    [
        *IDENTITY,
        pa.field("size", pa.int64()),  # bytes of the encoded clip, null where not known before reading
        pa.field("sha256", pa.string()),  # of the encoded clip, null where the source file's stands for it
        pa.field("header_duration", pa.float64()),  # seconds as its header claims, null where unreadable
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field("speaker_id", pa.string()),
        pa.field("license", pa.string()),
        pa.field("extra", pa.string()),  # the corpus's other columns as one JSON object
    ]
)

LEDGER = pa.schema(
    [
        *IDENTITY,
        pa.field("state", pa.string(), nullable=False),  # passed | rejected | errored
        pa.field("criterion", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string()),
        pa.field("input_duration", pa.float64()),  # seconds decoded, null where it was not
        pa.field("input_sha256", pa.string()),  # of the encoded input
        pa.field("pcm_sha256", pa.string()),  # of the decoded mono samples and their rate
        pa.field("fingerprint", pa.binary()),  # of what they sound like, for near duplicates
        pa.field("utterance", pa.string()),  # the same for the same sentence of the same speaker
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field("speaker_id", pa.string()),
        *PERSONAL,
        pa.field("license", pa.string()),
    ]
)

ENHANCED = pa.schema(
    [
        *IDENTITY,
        pa.field("audio", AUDIO),  # what is published: FLAC, mono, 16 bit
        pa.field("original", AUDIO),  # the same clip not denoised; null where `variant` is original
        pa.field("text", pa.string()),  # as the corpus wrote it
        pa.field("text_norm", pa.string()),  # speechmill.transcript.normalize
        pa.field("language", pa.string()),
        pa.field("duration", pa.float64()),  # seconds of `audio`
        pa.field("sampling_rate", pa.int32()),
        pa.field("speaker_id", pa.string()),
        pa.field("license", pa.string()),
        pa.field("extra", pa.string()),
        pa.field("variant", pa.string()),  # original | enhanced
        pa.field("variant_reason", pa.string()),  # the guard's criterion that decided
        pa.field("trim_start_s", pa.float64()),  # seconds cut from the decoded input's start
        pa.field("trim_end_s", pa.float64()),  # ... and from its end
        pa.field("gain_db", pa.float64()),
        pa.field("input_sha256", pa.string()),
        pa.field("pcm_sha256", pa.string()),
        pa.field("input_duration", pa.float64()),
        pa.field("input_sampling_rate", pa.int32()),
        pa.field("input_channels", pa.int32()),
        pa.field("input_codec", pa.string()),  # container/subtype, such as FLAC/PCM_16
        pa.field("source_revision", pa.string()),
        pa.field("enhancer", pa.string()),  # name, version and level
        pa.field("enhancer_sha256", pa.string()),  # of its weights
        pa.field("config_sha256", pa.string()),  # of the enhance section
        pa.field("code_version", pa.string()),
    ]
)

RANKING = pa.schema(
    [
        *IDENTITY,
        pa.field("batch", pa.string()),
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field("speaker_id", pa.string()),
        *PERSONAL,
        pa.field("license", pa.string()),
        pa.field("input_duration", pa.float64()),
        pa.field("duration", pa.float64()),
        pa.field("variant", pa.string()),
        pa.field("variant_reason", pa.string()),
        pa.field("state", pa.string(), nullable=False),  # accepted | rejected | errored | duplicate
        pa.field("criterion", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("error_class", pa.string()),
        pa.field("message", pa.string()),
        pa.field("duplicate_of", pa.string()),
        pa.field("near_duplicate_of", pa.string()),  # a clip of this or another run that sounds the same
        pa.field("closeness", pa.float64()),  # 0..1, null where not ranked
        pa.field("coverage", pa.float64()),  # share of the profile's weight that was measured
        pa.field("failed_gates", pa.list_(pa.string())),
    ]
)


def with_models(schema: pa.Schema, models: Mapping[str, str]) -> pa.Schema:
    """The schema with the models (name -> sha256 or version) whose results a file holds."""
    return schema.with_metadata({"models": json.dumps(models, sort_keys=True)})


def models_of(schema: pa.Schema) -> dict[str, str]:
    """What `with_models` wrote; empty where it did not."""
    return json.loads((schema.metadata or {}).get(b"models", b"{}"))


def noted(metadata: Mapping[bytes, bytes] | None, name: str) -> Any:
    """What `TableWriter.note` wrote under a name into a file's metadata; None where it did not."""
    value = (metadata or {}).get(name.encode())
    return None if value is None else json.loads(value)


@contextmanager
def reading_shard(path: str | os.PathLike[str], clip_id: str | None = None) -> Iterator[None]:
    """Around the reading of an enhanced shard, or of one clip of it: damage becomes one message.

    Errors that are the machine's (memory, a failing disk) pass through: deleting the shard would not help.

    Raises:
        SpeechmillError: names the shard, the clip where it is known, and what to do.
    """
    try:
        yield
    except (pa.ArrowException, ClipError, OSError) as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise
        clip = f": clip {clip_id}" if clip_id else ""
        what = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise SpeechmillError(
            f"the enhanced shard {path} is damaged{clip}: {what}. "
            "Delete that file and run again: its batch is enhanced anew"
        ) from error


ROW_GROUP_BYTES = (
    256_000_000  # of audio: bounds what writers and readers hold, and stays below Arrow's 2 GB of a column
)


def ranking_schema(metrics: Iterable[str]) -> pa.Schema:
    """`RANKING`, then a column for each metric, in the order given."""
    return pa.schema([*RANKING, *(pa.field(name, pa.float64()) for name in metrics)])


def scores_schema(metrics: Iterable[str]) -> pa.Schema:
    """As `ranking_schema`, without `PERSONAL`: what is published of every clip."""
    return pa.schema([field for field in ranking_schema(metrics) if field not in PERSONAL])


def conform(part: pa.Table | pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, cast to its types; one that `part` lacks is null, one that `schema` lacks is left out."""
    names = part.schema.names
    columns = [part[f.name].cast(f.type) if f.name in names else pa.nulls(len(part), f.type) for f in schema]
    return pa.table(columns, schema=schema)


# Columns that hold another value in nearly every row.
DISTINCT = frozenset(
    [
        "id",
        "source_id",
        "source_row",
        "source_member",
        "fingerprint",
        "utterance",
        "sha256",
        "input_sha256",
        "pcm_sha256",
    ]
)


class TableWriter:
    """Writes a Parquet file from rows (`write`) or tables (`write_table`), never both.

    Rows are cut into row groups by their number and the bytes of their audio alone, so the same rows in the same
    order give the same file. Tables are cut anew at each call: their boundaries show.
    """

    def __init__(self, path: Path, schema: pa.Schema, row_group_size: int, uncompressed: Sequence[str]):
        compression = {name: ("none" if name in uncompressed else "zstd") for name in leaf_paths(schema)}
        self._schema = schema
        self._row_group_size = row_group_size
        self._rows: list[dict[str, Any]] = []
        self._audio_bytes = 0
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression=compression,
            use_dictionary=[name for name in compression if name not in uncompressed and _repeats(schema, name)],
            write_page_index=True,
        )

    def write(self, row: dict[str, Any]) -> None:
        """Add one row: a value per column, None where it is missing."""
        size = sum(len(value["bytes"] or b"") for value in row.values() if isinstance(value, dict))
        if self._audio_bytes + size > ROW_GROUP_BYTES:
            self._flush()
        self._rows.append(row)
        self._audio_bytes += size
        if len(self._rows) == self._row_group_size:
            self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Add all rows of a table."""
        self._writer.write_table(table.cast(self._schema), row_group_size=self._row_group_size)

    def note(self, **values: Any) -> None:
        """Add values that JSON can hold to the file's metadata, each under its name."""
        self._writer.add_key_value_metadata({k: json.dumps(v, sort_keys=True) for k, v in values.items()})

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._audio_bytes = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


@contextmanager
def table_writer(
    schema: pa.Schema,
    final: str | os.PathLike[str],
    *,
    row_group_size: int = 10_000,
    uncompressed: Sequence[str] = (),
) -> Iterator[TableWriter]:
    """A `TableWriter` whose file gets its final name only if the block ends without an exception.

    `uncompressed` names columns (struct columns by their dotted leaf paths) that hold already compressed
    bytes: they are stored plain, which the Hub's chunk de-duplication needs. All others are zstd.
    """
    with atomic_path(final) as temporary:
        writer = TableWriter(temporary, schema, row_group_size, uncompressed)
        try:
            yield writer
        finally:
            writer.close()


def write_table(
    table: pa.Table,
    final: str | os.PathLike[str],
    *,
    row_group_size: int = 10_000,
    uncompressed: Sequence[str] = (),
) -> None:
    """Write a whole table as `table_writer` does."""
    with table_writer(table.schema, final, row_group_size=row_group_size, uncompressed=uncompressed) as writer:
        writer.write_table(table)


def _repeats(schema: pa.Schema, leaf: str) -> bool:
    """Whether a leaf column's values come again and again: a dictionary of the others costs time and space."""
    return leaf not in DISTINCT and not (leaf in schema.names and pa.types.is_floating(schema.field(leaf).type))


def count_rows(path: Path | None) -> int:
    """Rows of a Parquet file; none without one."""
    return 0 if path is None else int(pq.read_metadata(path).num_rows)


def leaf_paths(schema: pa.Schema) -> list[str]:
    """The dotted paths of a schema's leaf columns, as Parquet names them."""

    def leaves(field: pa.Field, prefix: str) -> list[str]:
        name = f"{prefix}{field.name}"
        if pa.types.is_struct(field.type):
            return [leaf for child in field.type for leaf in leaves(child, f"{name}.")]
        if pa.types.is_list(field.type):
            return [f"{name}.list.element"]
        return [name]

    return [leaf for field in schema for leaf in leaves(field, "")]
