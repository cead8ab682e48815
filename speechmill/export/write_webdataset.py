"""WebDataset: {split}-00000.tar and so on. A sample is {id}.flac and {id}.json (all other columns)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from speechmill.export.place import json_line
from speechmill.export.rows import Clip, Origin
from speechmill.export.tar_shards import Shard, tar_file, write_shards


def write(clips: Iterable[Clip], origin: Origin, dest: Path, shard_bytes: int) -> None:
    """Write tar shards of about `shard_bytes` for each split."""

    @contextmanager
    def shard(split: str, number: int) -> Iterator[Shard]:
        with tar_file(dest / f"{split}-{number:05d}.tar") as add:

            def sample(clip: Clip) -> int:
                columns = json_line(clip.row).encode()
                add(f"{clip.id}.flac", clip.audio)
                add(f"{clip.id}.json", columns)
                return len(clip.audio) + len(columns)

            yield sample

    write_shards(clips, shard_bytes, shard)
