"""Append-only files of JSON lines. A crash or a full disk may truncate the last line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append(path: Path, line: str, fsync: bool = False) -> None:
    """Append a line in one write. If the previous line is truncated, end it first, so that only one line is lost."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (b"\n" if torn else b"") + line.encode() + b"\n")
        if fsync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file, oldest first. Damaged lines are skipped."""
    return (line for text in path.read_bytes().split(b"\n") if (line := parse(text)) is not None)


def parse(text: bytes) -> dict[str, Any] | None:
    """Return the object of a line; None if the line is damaged or is not an object."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None
