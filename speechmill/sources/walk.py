"""The files below a folder, through symbolic links to folders as well."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from speechmill.errors import SourceError

Key = tuple[int, int]  # device and inode of a folder


def walk_files(
    root: Path, wanted: Callable[[str], bool], passed_over: Counter[str] | None = None
) -> Iterator[tuple[str, int, int]]:
    """Yield path below `root`, size (bytes) and modification time (ns) of each file whose path is `wanted`.

    Hidden files and folders are skipped. Folders below `root` come first, then those that links lead to, so that
    a link changes no path. A folder is read once, under one path. A link to a folder that is read already, or that
    contains `root`, is passed over.

    Args:
        root: the folder.
        wanted: called with the path of each file that is not hidden.
        passed_over: receives the number of hidden files and folders, and of links that were passed over with an example.

    Raises:
        SourceError: a folder or a wanted file cannot be read, or a link to it is broken.
    """
    top = Path(root)
    seen: set[Key] = set()
    links = [os.fspath(top)]
    loops: list[str] = []
    hidden = 0
    while links:
        following: list[str] = []
        for link in links:
            if link != os.fspath(top) and (_key(link) in seen or top.resolve().is_relative_to(os.path.realpath(link))):
                loops.append(os.path.relpath(link, top))
                continue
            for folder, folders, names in os.walk(link, onerror=_fail):
                if (key := _key(folder)) in seen:
                    folders.clear()
                    continue
                seen.add(key)
                hidden += sum(name.startswith(".") for name in (*folders, *names))
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                following.extend(path for name in folders if os.path.islink(path := os.path.join(folder, name)))
                for name in names:
                    full = os.path.join(folder, name)
                    path = os.path.relpath(full, top).replace(os.sep, "/")
                    if not name.startswith(".") and wanted(path):
                        try:
                            stat = os.stat(full)
                        except OSError as error:
                            raise SourceError(f"{full}: {error.strerror}; remove it or fix the link") from error
                        yield path, stat.st_size, stat.st_mtime_ns
        links = sorted(following)
    if hidden and passed_over is not None:
        passed_over["hidden files and folders"] += hidden
    if loops and passed_over is not None:
        passed_over[f"links to folders that are read already, such as {min(loops)}"] += len(loops)


def _key(folder: str) -> Key:
    try:
        stat = os.stat(folder)
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}; check that it is mounted and readable") from error
    return stat.st_dev, stat.st_ino


def _fail(error: OSError) -> None:
    raise SourceError(f"{error.filename}: {error.strerror}; check that it is mounted and readable") from error
