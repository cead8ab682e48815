"""The destination folder of an export. A file under its final name is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.storage.files import atomic_path, read_json, write_json

MARK = ".speechmill-export.json"  # describes an incomplete export; removed when it is complete


def claim(dest: Path, request: dict[str, Any]) -> None:
    """Claim an empty or new folder for an export, or one in which the same export was interrupted.

    Raises:
        SpeechmillError: the folder contains something else.
    """
    mark = dest / MARK
    if mark.is_file():
        earlier = read_json(mark)
        if earlier != request:
            same_format = earlier["format"] == request["format"]
            reason = "its clips or shard sizes have changed" if same_format else "the format differs"
            raise SpeechmillError(
                f"{dest} contains an incomplete export ({earlier['format']} of {earlier['of']}) that this one cannot "
                f"complete: {reason}. Remove {dest}, or name another folder"
            )
        return
    if dest.is_file() or (dest.is_dir() and any(dest.iterdir())):
        raise SpeechmillError(f"{dest} is not empty: name an empty or a new folder")
    dest.mkdir(parents=True, exist_ok=True)
    write_json(mark, request)


def finish(dest: Path) -> None:
    """Flush all files to disk, then remove the mark."""
    os.sync()  # once: a flush per clip takes longer than the rest of the export
    (dest / MARK).unlink()


def write_clip(final: Path, data: bytes) -> None:
    """Write one clip's file, unless it already has the same bytes. It is guaranteed on disk only after `finish`."""
    if final.is_file() and final.stat().st_size == len(data) and final.read_bytes() == data:
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, final)


def json_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def json_lines(path_of: Callable[[str], Path]) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A function that appends a row to the file of a key. The files get their final names if the block succeeds."""
    with ExitStack() as stack:
        handles: dict[str, Any] = {}

        def write(key: str, row: dict[str, Any]) -> None:
            if key not in handles:
                temporary = stack.enter_context(atomic_path(path_of(key)))
                handles[key] = stack.enter_context(open(temporary, "w", encoding="utf-8", newline="\n"))
            handles[key].write(json_line(row))

        yield write
