"""NVIDIA NeMo: {split}_manifest.json, JSON lines, beside audio/{xx}/{id}.flac.

NeMo resolves a relative `audio_filepath` from the folder of the manifest. With `sampling_rate` it need not open each
file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechmill.export.place import json_lines, write_clip
from speechmill.export.rows import Clip, Origin

RENAMED = frozenset(["text", "language", "speaker_id", "duration", "sampling_rate"])


def write(clips: Iterable[Clip], origin: Origin, dest: Path, shard_bytes: int) -> None:
    """Write the clips, then the manifest of each split that has clips."""
    with json_lines(lambda split: dest / f"{split}_manifest.json") as manifest:
        for clip in clips:
            path = f"audio/{clip.id[:2]}/{clip.id}.flac"
            write_clip(dest / path, clip.audio)
            manifest(clip.split, {"audio_filepath": path, **entry(clip)})


def entry(clip: Clip) -> dict[str, Any]:
    """NeMo's own fields, then all other columns, without nulls. A null `text` becomes an empty string."""
    row = clip.row
    fields = {
        "duration": row["duration"],
        "text": row.get("text") or "",
        "offset": 0,
        "lang": row.get("language"),
        "speaker": row.get("speaker_id"),
        "sampling_rate": row["sampling_rate"],
        **{name: value for name, value in row.items() if name not in RENAMED},
    }
    return {name: value for name, value in fields.items() if value is not None}
