"""Other forms of the accepted clips of a finished run: `speechmill export`."""

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

FORMATS = {"webdataset": "webdataset", "lhotse": "lhotse_shar", "nemo-manifest": "nemo", "folder": "folder"}  # modules
SHARD_BYTES = 1_000_000_000
PROGRESS_SECONDS = 10.0


@dataclass
class Exported:
    """What an export wrote: `seconds` of audio, `files` in the folder."""

    clips: int = 0
    seconds: float = 0.0
    files: int = 0


def export(form: str, origin: Origin, dest: Path, shard_bytes: int = SHARD_BYTES) -> Exported:
    """Write all clips of `origin` into the folder `dest`, in a form of FORMATS; tar shards hold about `shard_bytes`.

    The same clips give the same bytes. An export that was interrupted is completed by the same call.

    Raises:
        SpeechmillError: `dest` holds something else or cannot be written; a library is missing; the clips cannot be
            read, or are not those that were planned (LedgerError).
    """
    from pyarrow import ArrowException

    if shard_bytes < 1:
        raise SpeechmillError(f"a shard of {shard_bytes} bytes: give a positive number")
    what = {"format": form, "of": origin.name, "clips": origin.fingerprint, "shard_bytes": shard_bytes}
    done = Exported()
    try:
        writer = importlib.import_module(f"speechmill.export.{FORMATS[form]}")
        claim(dest, what)
        writer.write(_counted(origin, done), origin, dest, shard_bytes)
        if done.clips != origin.clips:
            raise LedgerError(f"{origin.name}: {origin.clips} clips were planned, {done.clips} were read; export again")
        finish(dest)
        done.files = sum(len(names) for _, _, names in os.walk(dest))
    except (OSError, ArrowException) as error:
        raise SpeechmillError(
            f"the export to {dest} failed: {error}. What is there is not complete. "
            "Repair the cause (space, permissions), then say the same again"
        ) from error
    return done


def _counted(origin: Origin, done: Exported) -> Iterator[Clip]:
    """The clips, counted; a line about them now and then."""
    said = time.monotonic()
    for clip in origin.read():
        yield clip
        done.clips += 1
        done.seconds += clip.row["duration"]
        if time.monotonic() - said >= PROGRESS_SECONDS:
            said = time.monotonic()
            print(f"{done.clips:,} of {origin.clips:,} clips, {done.seconds / 3600:.2f} h", file=sys.stderr, flush=True)
