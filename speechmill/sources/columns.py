"""How a corpus's own columns become ours: text, language, speaker_id, source_id, source_split, license, extra."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

import pyarrow as pa

from speechmill.shards import MANIFEST
from speechmill.text import plain

# What a source says of a clip; who it is (id, source) is added by the manifest or the enhance job.
CLIP = pa.schema([field for field in MANIFEST if field.name not in ("id", "source")])
OURS = ("text", "language", "speaker_id", "source_id", "source_split", "license")

# Column names that corpora use, most specific first.
GUESSES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "language": ("language", "locale", "lang"),
    "speaker_id": ("speaker_id", "client_id", "speaker"),
    "source_id": ("source_id", "segment_id", "utterance_id", "utt_id", "id"),
    "source_split": ("source_split", "split"),
    "license": ("license", "licence"),
}

# What corpora call what they say of the speaker; among their other columns these stay where they are, in `extra`.
STATED: dict[str, tuple[str, ...]] = {"gender": ("gender", "sex"), "age": ("age", "age_group")}
STATED_LENGTH = 40  # characters


def map_columns(available: Iterable[str], configured: dict[str, str]) -> dict[str, str]:
    """Which of the corpus's columns holds each of ours: as configured, else by the usual names."""
    available = list(available)
    mapping = {}
    for ours in OURS:
        if ours in configured:
            mapping[ours] = configured[ours]
        else:
            guess = next((name for name in GUESSES[ours] if name in available), None)
            if guess is not None:
                mapping[ours] = guess
    return mapping


def clip_columns(row: dict[str, Any], mapping: dict[str, str], section: dict[str, Any]) -> dict[str, str | None]:
    """Our columns of one row; what is left over becomes the JSON object `extra` (null where nothing is)."""
    values: dict[str, str | None] = {ours: _text(row.get(mapping[ours])) if ours in mapping else None for ours in OURS}
    values["language"] = values["language"] or section["language"]
    values["license"] = values["license"] or section["license"]
    used = set(mapping.values())
    rest = {key: _plain(value) for key, value in row.items() if key not in used and value not in (None, "")}
    values["extra"] = json.dumps(rest, ensure_ascii=False, sort_keys=True) if rest else None
    return values


def stated(extra: str | None) -> dict[str, str | None]:
    """Gender and age of the speaker as the corpus writes them into a clip's `extra`; None where it does not."""
    columns = {name.lower(): value for name, value in json.loads(extra or "{}").items()}
    found: dict[str, str | None] = {}
    for ours, names in STATED.items():
        value = next((columns[name] for name in names if name in columns), None)
        found[ours] = plain(value, STATED_LENGTH) or None if isinstance(value, (str, int, float)) else None
    return found


def clip_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table of `CLIP`; columns that they lack are null."""
    return pa.Table.from_pylist(rows, schema=CLIP)


def _text(value: Any) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value)


def _plain(value: Any) -> Any:
    """A value that JSON can hold; bytes are named by their length and never copied."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)
