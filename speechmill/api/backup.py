"""Backup of the API's data base, and its restore when the data base is damaged."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from speechmill.errors import SpeechmillError


def backup_of(data_base: Path) -> Path:
    return data_base.with_name(data_base.name + ".backup")


def back_up(data_base: Path) -> None:
    """Replace the backup by a consistent copy. A damaged copy never replaces a good backup.

    Raises:
        OSError, sqlite3.Error, SpeechmillError: the earlier backup is still there.
    """
    target = backup_of(data_base)
    temporary = target.with_name(target.name + ".new")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(data_base, timeout=30)) as source, closing(sqlite3.connect(temporary)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # a single file, without -wal
        if why := damage(temporary):
            raise SpeechmillError(f"{data_base} is damaged ({why}): stop the server and start it again")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def damage(data_base: Path) -> str | None:
    """What is wrong with a data base; None if it is sound.

    Raises:
        SpeechmillError: it cannot be read, which says nothing about its content.
    """
    try:
        with closing(sqlite3.connect(data_base, timeout=30)) as db:
            found = [str(row[0]) for row in db.execute("PRAGMA quick_check(1)")]
            if found != ["ok"]:
                return " ".join(found).replace("\n", " ")
            has_runs = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone()
            return None if has_runs else "it has no table of runs"
    except sqlite3.OperationalError as error:
        raise SpeechmillError(f"{data_base} cannot be read ({error}): check its disk and permissions") from error
    except sqlite3.DatabaseError as error:
        return str(error)


def recover(data_base: Path) -> str | None:
    """Restore the backup in place of a damaged or missing data base; the line that reports it.

    Raises:
        SpeechmillError: the data base is damaged and has no good backup. Nothing is changed.
    """
    backup = backup_of(data_base)
    is_missing = not data_base.exists()
    why = "it is missing" if is_missing else damage(data_base)
    if why is None:
        return None
    if not backup.exists() or damage(backup):
        if is_missing or data_base.stat().st_size == 0:  # a first start
            return None
        raise SpeechmillError(
            f"{data_base} is damaged ({why}) and has no good backup ({backup}): move it away, then start "
            "the server again with an empty data base; results of earlier runs stay in their folders"
        )
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = data_base.with_name(f"{data_base.name}.damaged-{stamp}")
    for suffix in ("", "-wal", "-shm"):
        part = data_base.with_name(data_base.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    restored = data_base.with_name(data_base.name + ".restored")
    shutil.copy(backup, restored)
    restored.replace(data_base)
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(backup.stat().st_mtime))
    kept = "" if is_missing else f", is now {aside}"
    return f"speechmill: {data_base} was not usable ({why}){kept}; restored the backup of {made}"
