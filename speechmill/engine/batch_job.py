"""The common part of the enhance and score jobs.

Load in threads, compute on a device, write in the background, resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from tqdm import tqdm

from speechmill.engine.batches import Engine, Window
from speechmill.engine.checkpoint import Checkpoints
from speechmill.errors import ClipError
from speechmill.utils.threads import BackgroundWriter, bounded_map

Raw = TypeVar("Raw")
Item = TypeVar("Item")
Result = TypeVar("Result")
Row = dict[str, Any]

LOAD_AHEAD = 4  # items per thread


class BatchJob:
    """One attempt at a batch. A context manager that deletes the checkpoints if the block ends without an exception.

    Open the writers of the outputs inside the block. The outputs are then complete before the checkpoints are deleted.

    Args:
        final: the output beside which checkpoints are kept.
        schema: of a row.
        key: identifies everything that the rows depend on; checkpoints with another key are deleted.
        name: of the batch, for the progress bar.
        total: number of rows to write, None if unknown.
    """

    def __init__(self, final: Path, schema: pa.Schema, key: str, name: str, total: int | None, threads: int):
        self._checkpoints = Checkpoints(final, schema, key, total)
        self._name, self._total, self._threads = name, total, threads

    def __enter__(self) -> BatchJob:
        with ExitStack() as stack:
            stack.enter_context(self._checkpoints)
            self.pool = stack.enter_context(ThreadPoolExecutor(self._threads))
            self._progress = stack.enter_context(tqdm(total=self._total, desc=self._name, unit="clip", mininterval=5))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def run(
        self,
        items: Iterable[Raw],
        load: Callable[[Raw], Item],
        engine: Engine[Item, Result],
        row_of: Callable[[Item, Result | ClipError | None], Row],
        write: Callable[[Row], None],
        log: Callable[[Row], None],
    ) -> None:
        """Write a row per item, in order. Rows that an earlier attempt finished are read from its checkpoints.

        Args:
            items: one per row; finished ones are skipped.
            load: called by `threads` threads.
            row_of: returns the row of an item; its result is None if there was nothing to compute.
            write: writes a row to the outputs.
            log: called before `write` with each row that this attempt computed.
        """

        def put(rows: Iterable[Row]) -> None:
            for row in rows:
                write(row)
                self._progress.update()

        def finish(window: Window[Item, Result]) -> None:
            rows = [row_of(item, result) for item, result in window.pairs()]
            for row in rows:
                log(row)
            put(rows)
            self._checkpoints.add(rows)

        for rows in self._checkpoints.finished():
            put(rows)
        rest = islice(items, self._checkpoints.rows, None)
        loaded = bounded_map(self.pool, load, rest, ahead=LOAD_AHEAD * self._threads)
        with BackgroundWriter() as writer:
            for window in engine.run(loaded):
                writer.call(finish, window)
