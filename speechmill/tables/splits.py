"""Names of splits in corpora, mapped to train, validation and test."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

SPLITS = ("train", "validation", "test")  # published names
SPLIT_OF = {
    **dict.fromkeys(("dev", "devel", "development", "val", "valid", "validation"), 1),
    **dict.fromkeys(("test", "eval", "evaluation"), 2),
}


def is_evaluation_split(splits: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return for each split name (null: no split) whether it is a dev or test split."""
    names = pc.utf8_lower(pc.utf8_trim_whitespace(splits))
    return pc.is_in(names, value_set=pa.array(sorted(SPLIT_OF)))


def split_index(name: str | None) -> int:
    """Return the index into SPLITS for a corpus's split name; any unknown name is train."""
    return SPLIT_OF.get((name or "").strip().lower(), 0)
