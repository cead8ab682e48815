"""Where an export goes: a folder of its own, in which every file under its final name is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.files import atomic_path, read_json, write_json

MARK = ".speechmill-export.json"  # what is being exported; there until all of it is


def claim(dest: Path, what: dict[str, Any]) -> None:
    """Take an empty or new folder for an export, or one in which the same export was interrupted.

    Raises:
        SpeechmillError: the folder holds something else.
    """
    mark = dest / MARK
    if mark.is_file():
        earlier = read_json(mark)
        if earlier != what:
            changed = "its clips or shards have changed" if earlier["format"] == what["format"] else "another form"
            raise SpeechmillError(
                f"{dest} holds an incomplete export ({earlier['format']} of {earlier['of']}) that this one does not go "
                f"on with: {changed}. Remove {dest}, or name another folder"
            )
        return
    if dest.is_file() or (dest.is_dir() and any(dest.iterdir())):
        raise SpeechmillError(f"{dest} is not empty: name a folder that is, or one that is not there yet")
    dest.mkdir(parents=True, exist_ok=True)
    write_json(mark, what)


def finish(dest: Path) -> None:
    """Remove the mark, once all files are on disk."""
    os.sync()  # once, as for clips that are a file each it would take longer than the rest
    (dest / MARK).unlink()


def write_clip(final: Path, data: bytes) -> None:
    """Write one clip's file, unless the same bytes are there. It is surely on disk only after `finish`."""
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
    """A function that appends a row to the file of a key; the files get their names if the block ends well."""
    with ExitStack() as stack:
        handles: dict[str, Any] = {}

        def write(key: str, row: dict[str, Any]) -> None:
            if key not in handles:
                temporary = stack.enter_context(atomic_path(path_of(key)))
                handles[key] = stack.enter_context(open(temporary, "w", encoding="utf-8", newline="\n"))
            handles[key].write(json_line(row))

        yield write
