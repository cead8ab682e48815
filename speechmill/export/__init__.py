"""Exports the accepted clips of a finished run to other formats: `speechmill export`. Knows no command line."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechmill.errors import LedgerError, SpeechmillError
from speechmill.export.place import claim, finish

if TYPE_CHECKING:
    from speechmill.export.rows import Clip, Origin

FORMATS = {
    "webdataset": "write_webdataset",
    "lhotse": "write_lhotse_shar",
    "nemo-manifest": "write_nemo",
    "folder": "write_folder",
}  # modules
SHARD_BYTES = 1_000_000_000
PROGRESS_SECONDS = 10.0


@dataclass
class Exported:
    """Result of an export: `seconds` of audio, `files` in the folder."""

    clips: int = 0
    seconds: float = 0.0
    files: int = 0


def export(form: str, origin: Origin, dest: Path, shard_bytes: int = SHARD_BYTES) -> Exported:
    """Write all clips of `origin` to the folder `dest`, in a format of FORMATS, with tar shards of about `shard_bytes`.

    The same clips give the same bytes. Repeat the call to complete an interrupted export.

    Raises:
        SpeechmillError: `dest` contains something else or is not writable; a library is missing; the clips cannot be
            read, or their number is not the planned one (LedgerError).
    """
    from pyarrow import ArrowException

    if shard_bytes < 1:
        raise SpeechmillError(f"a shard of {shard_bytes} bytes: give a positive number")
    request = {"format": form, "of": origin.name, "clips": origin.fingerprint, "shard_bytes": shard_bytes}
    done = Exported()
    try:
        writer = importlib.import_module(f"speechmill.export.{FORMATS[form]}")
        claim(dest, request)
        writer.write(_counted(origin, done), origin, dest, shard_bytes)
        if done.clips != origin.clips:
            raise LedgerError(f"{origin.name}: {origin.clips} clips were planned, {done.clips} were read; export again")
        finish(dest)
        done.files = sum(len(names) for _, _, names in os.walk(dest))
    except (OSError, ArrowException) as error:
        raise SpeechmillError(
            f"the export to {dest} failed: {error}. The folder is incomplete. "
            "Fix the cause (free space, permissions), then run the same command again"
        ) from error
    return done


def _counted(origin: Origin, done: Exported) -> Iterator[Clip]:
    """Count the clips in `done`, and print progress every PROGRESS_SECONDS."""
    reported = time.monotonic()
    for clip in origin.read():
        yield clip
        done.clips += 1
        done.seconds += clip.row["duration"]
        if time.monotonic() - reported >= PROGRESS_SECONDS:
            reported = time.monotonic()
            print(f"{done.clips:,} of {origin.clips:,} clips, {done.seconds / 3600:.2f} h", file=sys.stderr, flush=True)
