"""Look up the rows of a table by clip id, batch by batch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

PREFIX = 16  # characters


class RowsById:
    """The rows of a table with a string column `id`, sorted once for many look-ups. Look-ups are thread-safe."""

    def __init__(self, table: pa.Table):
        prefixes = prefix_of(table["id"])
        self._order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[self._order]
        self._table = table

    def among(self, ids: pa.ChunkedArray) -> pa.Table:
        """Return the rows whose id is among `ids` (N,), in the order of the table.

        The time depends on N, and hardly on the size of the table.
        """
        wanted = prefix_of(ids)
        first, last = (np.searchsorted(self._prefixes, wanted, side) for side in ("left", "right"))
        found = np.flatnonzero(last > first)
        places = [self._order[first[row] : last[row]] for row in found.tolist()]
        rows = np.unique(np.concatenate(places)) if places else np.empty(0, np.intp)
        candidates = self._table.take(pa.array(rows))
        return candidates.filter(pc.is_in(candidates["id"], value_set=ids.combine_chunks()))


def prefix_of(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits of each id or hash (N,): its first 16 characters, folded. A collision costs one comparison."""
    characters = pc.binary_slice(pc.cast(pc.ascii_rpad(ids, PREFIX), pa.large_binary()), 0, PREFIX)
    fixed = pc.cast(characters, pa.binary(PREFIX)).combine_chunks()
    if len(fixed) == 0:
        return np.empty(0, np.uint64)
    words = np.frombuffer(fixed.buffers()[1], np.uint64).reshape(-1, 2)[fixed.offset : fixed.offset + len(fixed)]
    # A hex digit uses few of its 8 bits. The multiplication keeps the two halves from folding onto each other.
    return words[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words[:, 1]
