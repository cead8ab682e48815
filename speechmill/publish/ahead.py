"""The provisional ranking of one batch, by which its shards are sent while other batches are still processed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from speechmill.dedup.exact import find_duplicates
from speechmill.dedup.held_out import find_held_out
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.profile import FrozenProfile
from speechmill.ranking.removals import read_removals
from speechmill.tables.parquet_io import write_table


@contextmanager
def provisional_ranking(
    batch: str, ledger: Path, scores: Path, profile: dict[str, Any], config: dict[str, Any], run_dir: Path
) -> Iterator[Path]:
    """Rank a batch without the other batches; yields a ranking table that exists until the block ends.

    Held-out clips, removals and duplicates within the batch have their final state. A clip that repeats a clip of
    another batch may be accepted here, and becomes a duplicate later.

    Args:
        batch: id of the batch.
        ledger, scores: tables of the batch.
        profile: the content of ranking/profile.json.
        config: the configuration.
        run_dir: the run's folder, with the list of removals.
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
            pq.read_table(duplicates),
            FrozenProfile.from_json(profile),
            batch,
            pq.read_table(held_out),
            removed=read_removals(run_dir),
        )
        path = Path(folder) / f"{batch}.parquet"
        write_table(ranking, path)
        yield path
