"""Map the columns of a corpus to those of the manifest: text, language, speaker_id, source_id, source_split, license.

All other columns of the corpus become one JSON object, `extra`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

import pyarrow as pa

from speechmill.errors import ClipError
from speechmill.sources.text_files import UTF8, decode_text
from speechmill.tables.schemas import MANIFEST
from speechmill.utils.text import plain

# The columns that a source fills. The manifest or the enhance job adds `id` and `source`.
CLIP = pa.schema([field for field in MANIFEST if field.name not in ("id", "source")])
MAPPED_COLUMNS = ("text", "language", "speaker_id", "source_id", "source_split", "license")

# Column names that corpora use, most specific first.
GUESSES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text"),
    "language": ("language", "locale", "lang"),
    "speaker_id": ("speaker_id", "client_id", "speaker"),
    "source_id": ("source_id", "segment_id", "utterance_id", "utt_id", "id"),
    "source_split": ("source_split", "split"),
    "license": ("license", "licence"),
}

# Column names that corpora use for attributes of the speaker. These columns stay in `extra`.
SPEAKER_ATTRIBUTES: dict[str, tuple[str, ...]] = {"gender": ("gender", "sex"), "age": ("age", "age_group")}
SPEAKER_ATTRIBUTE_LENGTH = 40  # characters
NESTED = 32  # levels of a value in `extra`
BOM = "\ufeff"  # at the start of a text: left there by what joined files


def map_columns(available: Iterable[str], configured: dict[str, str]) -> dict[str, str]:
    """Manifest column -> column of the corpus: as configured (`source.columns`), else by the usual names."""
    available = list(available)
    mapping = {}
    for column in MAPPED_COLUMNS:
        if column in configured:
            mapping[column] = configured[column]
        else:
            guess = next((name for name in GUESSES[column] if name in available), None)
            if guess is not None:
                mapping[column] = guess
    return mapping


def clip_columns(row: dict[str, Any], mapping: dict[str, str], section: dict[str, Any]) -> dict[str, str | None]:
    """The manifest columns of one row of the corpus.

    Columns that are not mapped become the JSON object `extra` (None if there are none). Missing languages and licences
    are those of the section `source`.

    Raises:
        ClipError: `bad_row`: bytes are not text in any of `source.encodings`, or a value is nested too deeply.
    """
    encodings = section.get("encodings", UTF8)
    values: dict[str, str | None] = {
        ours: _text(row.get(mapping[ours]), encodings) if ours in mapping else None for ours in MAPPED_COLUMNS
    }
    values["language"] = values["language"] or section["language"]
    values["license"] = values["license"] or section["license"]
    used = set(mapping.values())
    rest = {key: _plain(value) for key, value in row.items() if key not in used and value not in (None, "")}
    values["extra"] = json.dumps(rest, ensure_ascii=False, sort_keys=True) if rest else None
    return values


def speaker_attributes(extra: str | None) -> dict[str, str | None]:
    """Gender and age of the speaker as the corpus gives them, from a clip's `extra`; None if it gives none."""
    columns = {name.lower(): value for name, value in json.loads(extra or "{}").items()}
    found: dict[str, str | None] = {}
    for ours, names in SPEAKER_ATTRIBUTES.items():
        value = next((columns[name] for name in names if name in columns), None)
        found[ours] = plain(value, SPEAKER_ATTRIBUTE_LENGTH) or None if isinstance(value, (str, int, float)) else None
    return found


def clip_table(rows: list[dict[str, Any]]) -> pa.Table:
    """A table of the schema `CLIP`; missing columns are null."""
    return pa.Table.from_pylist(rows, schema=CLIP)


def _text(value: Any, encodings: Sequence[str]) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return (decode_text(value, encodings) if isinstance(value, bytes) else str(value)).lstrip(BOM) or None


def _plain(value: Any, levels: int = NESTED) -> Any:
    """A value that JSON can represent. Bytes are replaced by their length."""
    if levels == 0:
        raise ClipError("bad_row", f"a value is nested more than {NESTED} levels")
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item, levels - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, levels - 1) for item in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)
