"""The rows with the smallest keys of tables of any length, in memory that does not grow with them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


class Smallest:
    """Of all rows that were offered the `count` with the smallest `key`; ties by `id`. The order of offers does not show."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.rows: pa.Table | None = None  # smallest first; None before any row came

    def offer(self, table: pa.Table, **same: str) -> None:
        """Take in rows with `key` and `id`; `same` are further columns that have one value in all of them."""
        if self.rows is not None and len(self.rows) == self._count:  # most rows come after those that are held
            table = table.filter(pc.less_equal(table["key"], self.rows["key"][-1] if self._count else None))
        if not len(table):
            return
        for name, value in same.items():
            table = table.append_column(name, pa.array([value] * len(table), pa.string()))
        known = [] if self.rows is None else [self.rows]
        ordered = pa.concat_tables([*known, table]).sort_by([("key", "ascending"), ("id", "ascending")])
        self.rows = ordered.slice(0, self._count)
