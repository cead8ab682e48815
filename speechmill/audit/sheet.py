"""The sheet of a listening audit: the answers of one listener, as the report page saves them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from speechmill.errors import SpeechmillError
from speechmill.report.audit_sample import FORMAT, MAX_CLIPS, VERSION
from speechmill.tables.batches import CLIP_ID_DIGITS
from speechmill.utils.text import plain

MAX_BYTES = 1_000_000
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["format", "version", "dataset", "profile_sha256", "threshold", "clips"],
    "properties": {
        "format": {"const": FORMAT},
        "version": {"const": VERSION},
        "dataset": {"type": "string", "maxLength": 200},
        "profile_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "threshold": {"type": "number", "minimum": 0, "maximum": 1},
        "listener": {"type": ["string", "null"], "maxLength": 100},
        "clips": {
            "type": "array",
            "maxItems": MAX_CLIPS,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["id", "fit", "better"],
                "properties": {
                    "id": {"type": "string", "pattern": f"^[0-9a-f]{{{CLIP_ID_DIGITS}}}$"},
                    "fit": {"enum": ["yes", "no", "unsure", None]},
                    "better": {"enum": ["published", "other", "same", None]},
                    "note": {"type": ["string", "null"], "maxLength": 2000},
                },
            },
        },
    },
}


@dataclass(frozen=True)
class Sheet:
    """Answers of one listener by clip id. `listener` is the file's path if the sheet has no name."""

    path: Path
    listener: str
    dataset: str
    profile_sha256: str
    answers: Mapping[str, Mapping[str, Any]]


def read_sheet(path: Path) -> Sheet:
    """Read and check a sheet.

    Raises:
        SpeechmillError: it cannot be read, or is not a valid sheet.
    """
    from jsonschema import Draft202012Validator

    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpeechmillError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        _refuse(path, f"it has more than {MAX_BYTES:,} bytes")
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        _refuse(path, "it is not valid JSON")
    problem = next(Draft202012Validator(SCHEMA).iter_errors(content), None)
    if problem:
        where = "".join(f" {plain(part, 40)}" for part in problem.absolute_path)
        _refuse(path, f"{where and f'in{where}: '}{plain(problem.message, 200)}")
    repeated = [name for name, times in Counter(clip["id"] for clip in content["clips"]).items() if times > 1]
    if repeated:
        _refuse(path, f"clip {repeated[0]} occurs twice")
    listener = plain(content.get("listener") or "", 100) or str(path)
    answers = {clip["id"]: clip for clip in content["clips"]}
    return Sheet(path, listener, content["dataset"], content["profile_sha256"], answers)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _refuse(path: Path, why: str) -> NoReturn:
    raise SpeechmillError(f"{path} is not a sheet of a listening audit: {why}. Save it from the report page again")
