"""Rank all batches of a run in one process: a table per batch, and `ranking/ranked.tsv`, their index.

Only the index is a declared output of the job: Snakemake deletes declared outputs before it repeats a job, and published
shards keep their names only as long as the ranking tables do not change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.errors import LedgerError
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.index import INDEX, Ranked, is_table, write_index
from speechmill.ranking.profile import FrozenProfile
from speechmill.ranking.removals import Removals
from speechmill.ranking.states import check_batch, check_count, tally
from speechmill.storage.files import atomic_path, sha256_bytes
from speechmill.storage.run_folder import run_folder
from speechmill.tables.parquet_io import table_bytes
from speechmill.tables.rows_by_id import RowsById
from speechmill.utils.threads import bounded_map

NAMED = 5  # batches whose problems a message quotes in full


@dataclass(frozen=True)
class Lists:
    """What other clips decide about a clip: the lists of the job `dedup`, each read once."""

    duplicates: RowsById
    held_out: RowsById
    near_duplicates: RowsById

    @classmethod
    def read(cls, duplicates: str, held_out: str, near_duplicates: str) -> Lists:
        """Read the three files."""
        near = pq.read_table(near_duplicates, columns=["id", "near_duplicate_of"])
        return cls(RowsById(pq.read_table(duplicates)), RowsById(pq.read_table(held_out)), RowsById(near))


class RunRanking:
    """Ranks the batches of one run.

    Args:
        run_dir: the run's folder, with `ledger/{batch}.enhance.parquet` and `scores/{batch}.parquet`.
        profile: the frozen profile.
        lists: duplicates and held-out clips.
        removed: the clips to remove on request.
        clips_of: gives for a batch what the manifest says: the number of its clips, None if unknown, and their ids
            (N,), None if they are not listed one by one. It is called in several threads.
    """

    def __init__(
        self,
        run_dir: Path,
        profile: FrozenProfile,
        lists: Lists,
        removed: Removals,
        clips_of: Callable[[str], tuple[int | None, pa.ChunkedArray | None]],
    ):
        self.run_dir, self.profile, self.lists, self.removed, self.clips_of = run_dir, profile, lists, removed, clips_of
        self.folder = run_dir / "ranking"

    def rank_all(self, batches: Sequence[str], threads: int) -> dict[str, dict[str, float]]:
        """Write `ranking/{batch}.parquet` of every batch where its bytes change, and last the index.

        Tables of other batches are removed.

        Returns:
            `clips` and `audio_seconds` by state; of accepted clips the published audio counts, of others the input.

        Raises:
            LedgerError: some batches do not balance. The tables of all others were written, but no index.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        rows, problems = [], {}
        totals: dict[str, Counter[str]] = {"clips": Counter(), "audio_seconds": Counter()}
        with run_folder().keeping(self.folder, is_table), ThreadPoolExecutor(threads) as pool:
            for batch, found in zip(batches, bounded_map(pool, self._try, batches, 2 * threads), strict=True):
                if isinstance(found, LedgerError):
                    problems[batch] = str(found)
                    continue
                row, counts = found
                rows.append(row)
                for name, by_state in counts.items():
                    totals[name].update(by_state)
            known = set(batches)
            for path in self.folder.glob("*.parquet"):
                if is_table(path.name) and path.stem not in known:
                    path.unlink()
        if problems:
            raise LedgerError(_unbalanced(problems, len(batches)))
        write_index(rows, self.folder / INDEX)
        return {
            name: {state: round(value, 3) for state, value in sorted(sums.items())} for name, sums in totals.items()
        }

    def _try(self, batch: str) -> tuple[Ranked, dict[str, dict[str, float]]] | LedgerError:
        try:
            return self._rank(batch)
        except LedgerError as error:
            return error

    def _rank(self, batch: str) -> tuple[Ranked, dict[str, dict[str, float]]]:
        count, clips = self.clips_of(batch)
        ledger, scores = (
            pq.ParquetFile(self.run_dir / path).read(use_threads=False)
            for path in (f"ledger/{batch}.enhance.parquet", f"scores/{batch}.parquet")
        )
        ids = ledger["id"]
        ranking = rank_batch(
            ledger,
            ledger,
            scores,
            self.lists.duplicates.among(ids),
            self.profile,
            batch,
            self.lists.held_out.among(ids),
            self.lists.near_duplicates.among(ids),
            self.removed,
        )
        check_count(count, ids, batch)
        check_batch(ids if clips is None else clips, ledger, ranking, batch)
        accepted = pc.equal(ranking["state"], "accepted")
        counts = tally(ranking["state"], pc.if_else(accepted, ranking["duration"], ranking["input_duration"]))
        data = table_bytes(ranking)
        write_changed(data, self.folder / f"{batch}.parquet")
        return Ranked(batch, len(ids), int(pc.sum(accepted).as_py() or 0), sha256_bytes(data), len(data)), counts


def _unbalanced(problems: Mapping[str, str], batches: int) -> str:
    """Return one message about batches that do not balance, given as batch -> what is wrong."""
    quoted = [*problems.values()][:NAMED]
    if len(problems) > 1:
        quoted.insert(0, f"{len(problems)} of {batches} batches do not balance: {', '.join(problems)}")
    if len(problems) > NAMED:
        quoted.append(f"and {len(problems) - NAMED} more")
    return "\n".join(quoted)


def write_changed(data: bytes, path: Path) -> bool:
    """Write a file unless it has these bytes; returns whether it was written."""
    try:
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return False
    except FileNotFoundError:
        pass
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return True
