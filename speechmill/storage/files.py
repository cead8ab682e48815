"""Atomic writing of files, and checksums. A file with its final name is complete."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(final: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on success flush it to disk and rename it, on failure remove it.

    The temporary name has machine and process id, so two processes can write the same file at the same time (a job
    whose controller was killed, and its repetition). The first to finish removes all other temporary files of this
    name, also those of killed processes. The second then finds the final file and finishes without an error.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.uname().nodename}-{os.getpid()}.tmp")
    try:
        yield temporary
        try:
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, final)
        except FileNotFoundError:
            if not final.exists():
                raise
        _sync_directory(final.parent)
        for left in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
            left.unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(final: str | os.PathLike[str]) -> Iterator[Path]:
    """As `atomic_path`, for a directory that contains only files.

    Yields an empty directory; replaces an existing one.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.uname().nodename}-{os.getpid()}"
    temporary, old = (final.with_name(f".{final.name}.{mark}.{kind}.tmp") for kind in ("new", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        _sync_directory(temporary)
        if final.exists():  # a directory that is not empty cannot be replaced in one step
            os.rename(final, old)
        os.rename(temporary, final)
        _sync_directory(final.parent)
        for left in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
    except FileNotFoundError:
        if temporary.exists() or not final.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_directory(directory: Path) -> None:
    # A rename is durable only after its directory is flushed. Some network file systems do not support this call.
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_text(final: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(final) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(final: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically: sorted keys, two spaces, one final newline; NaN raises ValueError."""
    write_text(final, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits, in constant memory."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces), as 64 hex digits."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
