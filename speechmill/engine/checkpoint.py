"""Resume inside a batch: a heavy job keeps its finished rows beside its output until the output is complete.

`{folder}/.{name}.parts/{first row}.parquet` is one checkpoint: the rows of some whole windows of work. `progress.json`
says how far the job is. After a job is killed, the next attempt, on any node, reads its checkpoints and continues.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.runlog.joblog import log_message
from speechmill.storage.files import atomic_path, read_json, write_json

PART_SECONDS = 20.0  # minimum work per checkpoint; a killed job loses the unfinished checkpoint and its windows
PART_BYTES = 256_000_000  # approximate maximum of audio in a checkpoint, which limits the memory to read it
PROGRESS_SECONDS = 10.0
NAME_DIGITS = 9


def checkpoint_folder(final: Path) -> Path:
    """Where the job that writes `final` keeps its checkpoints."""
    return final.parent / f".{final.stem}.parts"


class Checkpoints:
    """The finished rows of a job. A context manager: they are deleted if its block ends without an exception.

    If a checkpoint cannot be written (a full disk, a missing folder), the job does not fail: a warning is logged and
    checkpointing stops; a later resume restarts further back.

    Args:
        final: the job's output.
        schema: of the rows.
        key: identifies everything that the rows depend on; checkpoints with another key are deleted.
        total: number of rows of the job, None if unknown.
    """

    def __init__(self, final: Path, schema: pa.Schema, key: str, total: int | None = None):
        self.folder = checkpoint_folder(final)
        self.rows = 0  # number of finished rows
        self._schema = schema.with_metadata({"key": key})
        self._total = total
        self._waiting: list[dict[str, Any]] = []
        self._bytes = 0
        self._given_up = False
        self._since = self._progress_time = self._begin = time.monotonic()
        self._resumed = 0

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of each checkpoint of earlier attempts, in order. Checkpoints after a gap are deleted.

        Iterate over it once and completely, before `add`.
        """
        good = []
        while (path := self.folder / f"{self.rows:0{NAME_DIGITS}d}.parquet").exists() and (rows := self._read(path)):
            good.append(path.name)
            self.rows += len(rows)
            yield rows
        self._resumed = self.rows
        if self.rows:
            log_message(
                f"{self.rows} clips were finished by an earlier attempt; resuming after them", resumed=self.rows
            )
        for path in self.folder.glob("*") if self.folder.exists() else ():
            if path.name not in good:
                path.unlink(missing_ok=True)
        self._since = self._progress_time = self._begin = time.monotonic()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add the next rows. A checkpoint is written after PART_SECONDS of work or PART_BYTES of audio."""
        for row in rows:
            self.rows += 1
            if self._given_up:
                continue
            self._waiting.append(row)
            self._bytes += _audio_bytes(row)
            if self._bytes >= PART_BYTES:
                self._keep()
        now = time.monotonic()
        if now - self._since >= PART_SECONDS and self._waiting:
            self._keep()
        if now - self._progress_time >= PROGRESS_SECONDS:
            self._write_progress(now)

    def _keep(self) -> None:
        first = self.rows - len(self._waiting)
        try:
            with atomic_path(self.folder / f"{first:0{NAME_DIGITS}d}.parquet") as temporary:
                pq.write_table(
                    pa.Table.from_pylist(self._waiting, schema=self._schema),
                    temporary,
                    compression="none",  # FLAC is already compressed, and the other columns are small
                    use_dictionary=False,
                    write_statistics=False,
                    write_page_checksum=True,
                )
        except (OSError, pa.ArrowException) as error:
            # Checkpoints after the gap could not be used.
            self._given_up = True
            print(f"checkpointing stopped: {error}", file=sys.stderr, flush=True)
        self._waiting, self._bytes = [], 0
        self._since = time.monotonic()

    def _read(self, path: Path) -> list[dict[str, Any]]:
        """Return the rows of a checkpoint; empty if it is damaged or has another key."""
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            print(f"{path} is damaged; its clips are computed again: {error}", file=sys.stderr, flush=True)
            return []
        return table.to_pylist() if table.schema.equals(self._schema, check_metadata=True) else []

    def _write_progress(self, now: float) -> None:
        self._progress_time = now
        done = self.rows - self._resumed
        rate = done / (now - self._begin)
        left = (self._total - self.rows) / rate if self._total is not None and rate else None
        try:
            write_json(
                self.folder / "progress.json",
                {
                    "rows": self.rows,
                    "total": self._total,
                    "resumed": self._resumed,
                    "rows_per_second": round(rate, 3),
                    "seconds_left": None if left is None else round(left),
                    "time": time.time(),
                },
            )
        except OSError as error:
            print(f"cannot write the progress of the job: {error}", file=sys.stderr, flush=True)


def _audio_bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_audio_bytes, value.values()))
    return len(value) if isinstance(value, bytes) else 0


def read_progress(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the last progress of the running jobs by batch; `names` are the names in the folder of outputs."""
    found = {}
    for name in sorted(names):
        if name.startswith(".") and name.endswith(".parts"):
            try:
                found[name[1 : -len(".parts")]] = read_json(folder / name / "progress.json")
            except (OSError, ValueError):  # not yet written, or just deleted
                continue
    return found
