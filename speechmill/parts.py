"""Resume inside a batch: the rows that a heavy job has finished, kept beside its output until that is complete.

`{folder}/.{name}.parts/{first row}.parquet` holds the rows of one part, whole windows of work; `progress.json` says how
far the job is. A job that was killed finds the parts of its predecessor, on any node, and begins after them.
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

from speechmill.files import atomic_path, read_json, write_json
from speechmill.joblog import note

PART_SECONDS = 20.0  # of work, at least; a killed job loses the part that it was in, and the windows in work
PART_BYTES = 256_000_000  # of audio, or little more: what a part holds in memory when it is read
PROGRESS_SECONDS = 10.0
NAME_DIGITS = 9


def parts_folder(final: Path) -> Path:
    """Where the parts of the job that writes `final` are."""
    return final.parent / f".{final.stem}.parts"


class Parts:
    """The finished rows of a job. A context manager: the parts go when its block ends without an exception.

    final: the job's output. schema: of the rows. key: names all that the rows depend on; parts of another key are of no
    use and are removed. total: rows that the job has to do, None where it cannot know.

    That a part cannot be kept (a full disk, a folder that is gone) never fails the job: it is said, no more are kept,
    and only the resume suffers.
    """

    def __init__(self, final: Path, schema: pa.Schema, key: str, total: int | None = None):
        self.folder = parts_folder(final)
        self.rows = 0  # finished, kept or not
        self._schema = schema.with_metadata({"key": key})
        self._total = total
        self._waiting: list[dict[str, Any]] = []
        self._bytes = 0
        self._given_up = False
        self._since = self._told = self._begin = time.monotonic()
        self._resumed = 0

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self) -> Iterator[list[dict[str, Any]]]:
        """The rows of each part that an earlier attempt finished, in order. What does not follow on is removed.

        Call it once, and to its end, before `add`.
        """
        good = []
        while (path := self.folder / f"{self.rows:0{NAME_DIGITS}d}.parquet").exists() and (rows := self._read(path)):
            good.append(path.name)
            self.rows += len(rows)
            yield rows
        self._resumed = self.rows
        if self.rows:
            note(f"{self.rows} clips were finished by an earlier attempt: it goes on after them", resumed=self.rows)
        for path in self.folder.glob("*") if self.folder.exists() else ():
            if path.name not in good:
                path.unlink(missing_ok=True)
        self._since = self._told = self._begin = time.monotonic()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Rows that follow those before. They are kept once they are the work of PART_SECONDS, or PART_BYTES."""
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
        if now - self._told >= PROGRESS_SECONDS:
            self._tell(now)

    def _keep(self) -> None:
        first = self.rows - len(self._waiting)
        try:
            with atomic_path(self.folder / f"{first:0{NAME_DIGITS}d}.parquet") as temporary:
                pq.write_table(
                    pa.Table.from_pylist(self._waiting, schema=self._schema),
                    temporary,
                    compression="none",  # FLAC is, and the rest is small
                    use_dictionary=False,
                    write_statistics=False,
                    write_page_checksum=True,
                )
        except (OSError, pa.ArrowException) as error:
            # What would follow the gap could not be taken over.
            self._given_up = True
            print(f"no more parts of the batch are kept: {error}", file=sys.stderr, flush=True)
        self._waiting, self._bytes = [], 0
        self._since = time.monotonic()

    def _read(self, path: Path) -> list[dict[str, Any]]:
        """The rows of a part; none where it is torn, damaged or of another key."""
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            print(f"{path} is damaged and is done again: {error}", file=sys.stderr, flush=True)
            return []
        return table.to_pylist() if table.schema.equals(self._schema, check_metadata=True) else []

    def _tell(self, now: float) -> None:
        self._told = now
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
            print(f"progress could not be told: {error}", file=sys.stderr, flush=True)


def _audio_bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_audio_bytes, value.values()))
    return len(value) if isinstance(value, bytes) else 0


def read_progress(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What the jobs at work in a folder of outputs told last, by batch; `names` are those of the files in it."""
    found = {}
    for name in sorted(names):
        if name.startswith(".") and name.endswith(".parts"):
            try:
                found[name[1 : -len(".parts")]] = read_json(folder / name / "progress.json")
            except (OSError, ValueError):  # not yet there, or gone in between
                continue
    return found
