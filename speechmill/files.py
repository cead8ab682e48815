"""Atomic writing and checksums: what stands under its final name is complete."""

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

    The temporary name holds machine and process id, so that two processes that write the same file (a job whose
    controller died, and its repetition) do not mix their bytes. Who finishes first clears away the others'
    temporaries and those of killed processes; the other one finds the same file in place and is done, too.
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
    """As `atomic_path`, of a directory that holds files alone. The temporary one is made; an older one is replaced."""
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
        if final.exists():  # one that is not empty cannot be replaced at one stroke
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
    # A rename is durable only once its directory is; some network file systems refuse this call.
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
    """Write JSON atomically: sorted keys, two spaces, one final newline; NaN is refused (ValueError)."""
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
