"""The ranking of a batch as far as it is known while others are being enhanced: its shards are sent ahead by it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from speechmill.duplicates import find_duplicates, rows_among
from speechmill.held_out import find_held_out
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.profile import FrozenProfile
from speechmill.removal import read_removals
from speechmill.shards import write_table


@contextmanager
def ranked_alone(
    batch: str, ledger: Path, scores: Path, profile: dict[str, Any], config: dict[str, Any], run_dir: Path
) -> Iterator[Path]:
    """A ranking table, for as long as the block lasts, that knows of no other batch of the run.

    Duplicates within the batch, held-out clips and removals are rejected as they will be. What turns out to repeat
    another batch's clip later is accepted here.
    """
    with tempfile.TemporaryDirectory(prefix=".ranking-", dir=ledger.parent) as folder:
        duplicates, held_out = Path(folder) / "duplicates.parquet", Path(folder) / "held_out.parquet"
        find_duplicates([ledger], duplicates)
        find_held_out([ledger], config["held_out"], held_out)
        table = pq.ParquetFile(ledger).read()
        ranking = rank_batch(
            table,
            table,
            pq.ParquetFile(scores).read(),
            rows_among(table["id"], duplicates),
            FrozenProfile.from_json(profile),
            batch,
            rows_among(table["id"], held_out),
            removed=read_removals(run_dir),
        )
        path = Path(folder) / f"{batch}.parquet"
        write_table(ranking, path)
        yield path
