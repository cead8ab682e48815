"""batches.tsv: one row per batch of a run."""

from __future__ import annotations

import csv
from pathlib import Path

CLIP_ID_DIGITS = 24  # 96 bits: a collision among 10^9 clips has a chance of about 10^-11


def read_batches(batches_tsv: Path) -> list[dict[str, str]]:
    """The rows of batches.tsv."""
    with open(batches_tsv, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))
