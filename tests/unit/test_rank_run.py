"""The ranking of all batches of a run by one job: what it writes, what it leaves alone, and what stops it."""

import hashlib
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechmill.errors import LedgerError
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.index import damaged_tables, ranking_files, read_index
from speechmill.ranking.rank_run import Lists, RunRanking
from speechmill.ranking.states import count_states
from speechmill.tables.parquet_io import write_table
from speechmill.tables.rows_by_id import RowsById

from ..ranked_run import RankedRun

NOTHING = {"clips": [], "speakers": []}


class ByOneJob:
    """A run of 3,000 clips in two batches, ranked again as the job does."""

    def __init__(self, folder, threads: int = 2):
        self.run = RankedRun(folder, clips=3000)
        self.folder = self.run.folder / "ranking"
        self.threads = threads
        self.expected = {batch: (len(table), table["id"]) for batch, table in self.run.ledgers.items()}

    def rank(self, **changes):
        ids = pa.table({"id": pa.array([], pa.string())})
        held, near = (ids.append_column(name, ids["id"]) for name in ("message", "near_duplicate_of"))
        lists = Lists(RowsById(self.run.duplicates), RowsById(held), RowsById(near))
        profile = changes.get("profile", self.run.profile)
        ranking = RunRanking(
            self.run.folder, profile, lists, changes.get("removed", NOTHING), self.expected.__getitem__
        )
        return ranking.rank_all(changes.get("batches", [*self.expected]), self.threads)

    @property
    def index(self):
        return read_index((self.folder / "ranked.tsv").read_text())

    def states(self):
        found = {path.name: path.stat() for path in self.folder.iterdir()}
        return {name: (state.st_ino, state.st_mtime_ns) for name, state in found.items()}


@pytest.fixture
def job(tmp_path):
    return ByOneJob(tmp_path)


def test_the_tables_have_the_bytes_of_each_batch_ranked_by_itself(job, tmp_path):
    alone = {}
    for batch, ledger in job.run.ledgers.items():
        table = rank_batch(ledger, ledger, job.run.scores[batch], job.run.duplicates, job.run.profile, batch)
        write_table(table, tmp_path / "alone.parquet")
        alone[batch] = (tmp_path / "alone.parquet").read_bytes(), count_states(table)
        (job.folder / f"{batch}.parquet").unlink()
    told = job.rank()
    assert [*ranking_files(job.folder / "ranked.tsv")] == ["b0", "b1"]
    for row in job.index:
        data, counts = alone[row.batch]
        assert (job.folder / f"{row.batch}.parquet").read_bytes() == data
        assert (row.clips, row.accepted, row.bytes) == (counts["input"], counts["accepted"], len(data))
        assert row.sha256 == hashlib.sha256(data).hexdigest()
    states = ("accepted", "rejected", "errored", "duplicate")
    sums = {state: sum(counts[state] for _, counts in alone.values()) for state in states}
    assert told["clips"] == {state: count for state, count in sums.items() if count}
    tables = pa.concat_tables([pq.read_table(job.folder / f"{batch}.parquet") for batch in alone])
    accepted = tables.filter(pa.compute.equal(tables["state"], "accepted"))
    assert told["audio_seconds"]["accepted"] == pytest.approx(pa.compute.sum(accepted["duration"]).as_py(), abs=0.01)


def test_only_tables_that_change_are_written(job):
    job.rank()
    before = job.states()
    job.rank()
    same = {"b0.parquet", "b1.parquet", "profile.json"}
    assert {name: state for name, state in job.states().items() if name in same} == {n: before[n] for n in same}
    gone = job.run.ledgers["b1"]["id"][0].as_py()
    job.rank(removed={"clips": [gone], "speakers": []})
    assert job.states()["b0.parquet"] == before["b0.parquet"]
    assert job.states()["b1.parquet"] != before["b1.parquet"]


def test_tables_of_batches_that_no_longer_exist_are_removed(job):
    job.rank()
    job.rank(batches=["b0"])
    assert {path.name for path in job.folder.iterdir()} == {"b0.parquet", "ranked.tsv", "profile.json"}
    assert [row.batch for row in job.index] == ["b0"]


def test_every_batch_that_does_not_balance_is_named_once_all_others_are_written(job):
    job.rank()
    index = (job.folder / "ranked.tsv").read_bytes()
    (job.folder / "ranked.tsv").unlink()  # as Snakemake does before a job
    (job.folder / "b1.parquet").unlink()
    job.expected["b0"] = (len(job.run.ledgers["b0"]) + 1, None)
    with pytest.raises(LedgerError, match=r"^batch b0 does not balance: the manifest has 61 clips, the ledger 60$"):
        job.rank()
    assert (job.folder / "b1.parquet").exists()
    assert not (job.folder / "ranked.tsv").exists()
    job.expected["b1"] = (None, pa.chunked_array([["another"]]))
    with pytest.raises(LedgerError) as error:
        job.rank()
    first, *rest = str(error.value).splitlines()
    assert first == "2 of 2 batches do not balance: b0, b1"
    assert "batch b1 does not balance:" in rest
    job.expected = {batch: (len(table), table["id"]) for batch, table in job.run.ledgers.items()}
    job.rank()
    assert (job.folder / "ranked.tsv").read_bytes() == index


def test_lost_and_damaged_tables_are_noticed(job):
    assert damaged_tables(job.folder) == []  # no index: all are ranked in any case
    job.rank()
    assert damaged_tables(job.folder) == []
    table = job.folder / "b1.parquet"
    data, state = table.read_bytes(), table.stat()
    for damage in (lambda: table.unlink(), lambda: table.write_bytes(data[:-1])):
        damage()
        assert damaged_tables(job.folder) == ["b1"]
        job.rank()
        assert damaged_tables(job.folder) == []
        assert table.read_bytes() == data
    table.write_bytes(data[:-1] + b"x")  # as long as before, and newer than the index
    os.utime(table, ns=(state.st_atime_ns, (job.folder / "ranked.tsv").stat().st_mtime_ns + 1))
    assert damaged_tables(job.folder) == ["b1"]
    job.rank()
    assert damaged_tables(job.folder) == []
    assert table.read_bytes() == data
    (job.folder / "ranked.tsv").write_text("no index\n1\n")
    assert damaged_tables(job.folder) == ["ranked.tsv"]


@pytest.mark.parametrize("threads", [1, 5])
def test_the_number_of_threads_changes_nothing(job, tmp_path, threads):
    job.rank()
    other = ByOneJob(tmp_path / "other", threads)
    other.rank()
    assert (other.folder / "ranked.tsv").read_bytes() == (job.folder / "ranked.tsv").read_bytes()
