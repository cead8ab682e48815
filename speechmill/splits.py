"""What corpora call their splits, and what those are."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

SPLITS = ("train", "validation", "test")  # as they are published
SPLIT_OF = {
    **dict.fromkeys(("dev", "devel", "development", "val", "valid", "validation"), 1),
    **dict.fromkeys(("test", "eval", "evaluation"), 2),
}


def is_tested(splits: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each name of a split (null: none) is that of a dev or test split."""
    names = pc.utf8_lower(pc.utf8_trim_whitespace(splits))
    return pc.is_in(names, value_set=pa.array(sorted(SPLIT_OF)))


def split_index(name: str | None) -> int:
    """Index into SPLITS of what a corpus calls a split; all that is neither validation nor test is train."""
    return SPLIT_OF.get((name or "").strip().lower(), 0)
