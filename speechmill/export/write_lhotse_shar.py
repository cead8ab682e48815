"""Lhotse Shar: {split}/cuts.000000.jsonl.gz and {split}/recording.000000.tar, for `CutSet.from_shar(in_dir=...)`.

lhotse makes the cuts and recordings. The tar and gzip files are written here: lhotse's writer would decode and encode
the audio again, and its gzip files contain the current time.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.export.place import json_line
from speechmill.export.rows import Clip, Origin
from speechmill.export.tar_shards import Shard, tar_file, write_shards
from speechmill.storage.files import atomic_path

try:
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.shar.utils import to_shar_placeholder
except ImportError as error:
    raise SpeechmillError("this format needs lhotse: pip install 'speechmill[lhotse]'") from error

# Columns that have a field of their own in lhotse.
LHOTSE_FIELDS = frozenset(["id", "text", "language", "speaker_id", "duration", "sampling_rate"])


def write(clips: Iterable[Clip], origin: Origin, dest: Path, shard_bytes: int) -> None:
    """Write a Shar folder for each split, in shards of about `shard_bytes`."""

    @contextmanager
    def shard(split: str, number: int) -> Iterator[Shard]:
        folder = dest / split
        with (
            tar_file(folder / f"recording.{number:06d}.tar") as add,
            atomic_path(folder / f"cuts.{number:06d}.jsonl.gz") as temporary,
            open(temporary, "wb") as handle,
            gzip.GzipFile("", "wb", fileobj=handle, mtime=0) as cuts,
        ):

            def pair(clip: Clip) -> int:
                cut = cut_of(clip)
                add(f"{clip.id}.flac", clip.audio)
                add(f"{clip.id}.json", json_line(cut["recording"]).encode())
                return len(clip.audio) + cuts.write(json_line(cut).encode())

            yield pair

    write_shards(clips, shard_bytes, shard)


def cut_of(clip: Clip) -> dict[str, Any]:
    """A clip as a cut of its whole recording, as lhotse writes it. The other columns are the cut's custom fields."""
    recording = to_shar_placeholder(Recording.from_bytes(clip.audio, clip.id))
    supervision = SupervisionSegment(
        id=clip.id,
        recording_id=clip.id,
        start=0.0,
        duration=recording.duration,
        text=clip.row.get("text"),
        language=clip.row.get("language"),
        speaker=clip.row.get("speaker_id"),
    )
    cut = MonoCut(
        id=clip.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        supervisions=[supervision],
        recording=recording,
        custom={name: value for name, value in clip.row.items() if name not in LHOTSE_FIELDS and value is not None},
    )
    return cut.to_dict()
