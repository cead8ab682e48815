"""A folder of FLAC files, audio/{split}/{xx}/{id}.flac, with two copies of their columns.

`metadata.parquet` of each split is for `load_dataset("audiofolder", data_dir=...)`. (That function infers types from
the first rows of a JSON file, and refuses splits whose types differ.) `clips.jsonl` is for all other readers: its
`file_name` is relative to the top folder, so it can also be the metadata of a source of kind folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from speechmill.export.place import json_lines, write_clip
from speechmill.export.rows import Clip, Origin
from speechmill.tables.parquet_io import TableWriter, table_writer


def write(clips: Iterable[Clip], origin: Origin, dest: Path, shard_bytes: int) -> None:
    """Write the clips, then their metadata."""
    schema = pa.schema([("file_name", pa.string()), *origin.schema])
    tables: dict[str, TableWriter] = {}
    with ExitStack() as stack:
        lines = stack.enter_context(json_lines(lambda name: dest / name))
        for clip in clips:
            split = dest / "audio" / clip.split
            name = f"{clip.id[:2]}/{clip.id}.flac"
            write_clip(split / name, clip.audio)
            if clip.split not in tables:
                tables[clip.split] = stack.enter_context(table_writer(schema, split / "metadata.parquet"))
            tables[clip.split].write({"file_name": name, **clip.row})
            lines("clips.jsonl", {"file_name": f"audio/{clip.split}/{name}", **clip.row})
