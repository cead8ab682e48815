"""Shards of a published data set: which clip goes where, and the bytes they are written with."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechmill.publish import shards, survey
from speechmill.publish.survey import Batch, origin_of
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import EXPLAINED, RANKING

from .published import METRICS, RATE, Run, hashes_of


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_row_groups_compression_and_page_index(tmp_path):
    run = Run(tmp_path, clips=300, batches=2, row_group=100)
    run.config["publish"]["shard_bytes"] = 10**9
    run.publish()
    metadata = pq.read_metadata(run.target / "data/train-00000-of-00001.parquet")
    sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    assert sizes[:-1] == [100] * (len(sizes) - 1)
    assert len(sizes) > 1
    columns = [metadata.row_group(0).column(c) for c in range(metadata.num_columns)]
    assert {c.path_in_schema for c in columns if c.compression == "UNCOMPRESSED"} == {"audio.bytes"}
    assert {c.compression for c in columns} == {"UNCOMPRESSED", "ZSTD"}
    assert all(c.has_offset_index for c in columns)


def test_the_audio_of_a_row_group_is_one_page(run):
    """Headers between pages would lie elsewhere as soon as a clip is missing, and the Hub take all as new."""
    run.publish()
    for path in (run.target / "data").iterdir():
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            audio = file.read_row_group(group, columns=["audio"])["audio"].to_pylist()
            names = [file.schema.column(c).path for c in range(file.metadata.num_columns)]
            stored = file.metadata.row_group(group).column(names.index("audio.bytes")).total_compressed_size
            assert stored - sum(4 + len(a["bytes"]) for a in audio) < 64


def test_another_threshold_moves_no_clip_to_another_shard_of_its_batch(tmp_path):
    shard_of = []
    for threshold in (0.2, 0.5):
        run = Run(tmp_path, threshold=threshold)
        found = survey.survey(Batch(name, ranking, (enhanced,)) for name, enhanced, ranking in run.batches)
        plan = shards.plan_data(found, 0, 70_000, RATE, by_batch=True)
        shard_of.append({(found.cells[c, 0], r): s.path for s in plan for c, r in zip(s.cell, s.row, strict=True)})
    assert len(set(shard_of[0].values())) > len(run.batches)
    assert shard_of[1].items() < shard_of[0].items()


def test_row_groups_of_long_clips_are_bounded_by_bytes(monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 100)
    assert list(shards._row_groups([2, 0, 1, 3], [60, 30, 40, 500])) == [[2, 0], [1], [3]]


def test_shards_are_cut_at_about_the_configured_size(run):
    run.publish()
    by_split: dict[str, list[int]] = {}
    for path in (run.target / "data").iterdir():
        audio = pq.read_table(path, columns=["audio"])["audio"].to_pylist()
        by_split.setdefault(path.name.split("-")[0], []).append(sum(len(a["bytes"]) for a in audio))
    assert len(by_split["train"]) > 3
    assert all(size < 1.3 * 50_000 for sizes in by_split.values() for size in sizes)
    assert sum(by_split["train"]) / len(by_split["train"]) > 0.6 * 50_000
    for split, sizes in by_split.items():
        names = sorted(p.name for p in (run.target / "data").glob(f"{split}-*"))
        assert names == [f"{split}-{k:05d}-of-{len(sizes):05d}.parquet" for k in range(len(sizes))]


def test_one_shard_lies_in_the_order_of_the_seeded_hash_and_the_seed_changes_it(run):
    run.config["publish"]["shard_bytes"] = 10**9
    orders = []
    for seed in (0, 1):
        run.config["publish"]["seed"] = seed
        run.publish()
        ids = pq.read_table(run.target / "data/train-00000-of-00001.parquet")["id"].to_pylist()
        assert ids == sorted(ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
        orders.append(ids)
    assert orders[0] != orders[1]
    assert set(orders[0]) == set(orders[1])


def test_a_shard_mixes_rows_of_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "RUN_ROWS", 3)
    run = Run(tmp_path, clips=120, batches=4, row_group=3)
    run.publish()
    batch_of = {i: n * 4 // 120 for i, n in ((k, t["n"]) for k, t in run.truth.items())}
    first = pq.read_table(next(iter(sorted((run.target / "data").glob("train-*")))), columns=["id"])["id"].to_pylist()
    assert len({batch_of[i] for i in first}) > 1


def test_source_splits_become_splits(run):
    run.publish()
    table = pa.concat_tables(
        pq.read_table(p, columns=["source_split"]).append_column("is", pa.array([p.name.split("-")[0]] * n))
        for p in (run.target / "data").iterdir()
        if (n := pq.read_metadata(p).num_rows)
    )
    seen = {(row["source_split"], row["is"]) for row in table.to_pylist()}
    assert seen == {("train", "train"), (None, "train"), ("dev", "validation"), ("test", "test")}


def test_scores_hold_every_clip_with_its_state_and_no_audio(run):
    run.publish()
    table = pq.read_table(run.target / "scores/train-00000-of-00001.parquet")
    assert Counter(table["state"].to_pylist()) == run.states
    withheld = {"gender", "age", *EXPLAINED}
    assert table.schema.names == [*(name for name in RANKING.names if name not in withheld), *METRICS]
    assert len(set(table["id"].to_pylist())) == 60


def test_scores_are_sharded_by_batch(run, monkeypatch):
    monkeypatch.setattr(shards, "SCORES_ROWS", 20)
    run.publish()
    tables = [pq.read_table(p) for p in sorted((run.target / "scores").iterdir())]
    assert [set(t["batch"].to_pylist()) for t in tables] == [{"b0"}, {"b1"}, {"b2"}]


def test_two_runs_and_any_order_of_batches_give_the_same_bytes(run, tmp_path):
    contents = []
    for name, order in (("one", run.batches), ("two", run.batches[::-1]), ("three", run.batches)):
        content = run.publish(batches=order, target=tmp_path / name)
        contents.append({k: v for k, v in content.items() if k != "target"})
    first, second, third = (hashes_of(tmp_path / n) for n in ("one", "two", "three"))
    assert first == second == third
    assert contents[0] == contents[1] == contents[2]
    run.summary["timing"] = {"seconds": -1}
    run.publish(target=tmp_path / "one")
    assert hashes_of(tmp_path / "one") == first


def planned(batches: list[Batch], config: dict) -> dict[str, str]:
    """Path -> made_from of every file of data."""
    plan = shards.plan_files(survey.survey(batches), {"criteria": []}, config)
    return {file.path: file.made_from for file in plan if file.is_data}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    split_of=st.lists(st.lists(st.sampled_from(["train", "dev", "test", None]), max_size=30), min_size=1, max_size=4),
    keep=st.integers(0, 2**30),
    shard_seconds=st.floats(1, 40),
)
def test_shards_of_a_batch_hold_its_clips_of_one_split_and_know_no_other_batch(tmp_path, split_of, keep, shard_seconds):
    config = {
        "publish": {"kind": "hub", "shuffle": None, "seed": 0, "shard_bytes": shard_seconds * RATE * shards.FLAC_BYTES},
        "enhance": {"sampling_rate": RATE},
    }
    batches, wanted = [], {}
    for number, splits in enumerate(split_of):
        rows = [
            {
                "id": f"{number}-{n}",
                "state": "accepted" if keep >> (n % 30) & 1 else "rejected",
                "source_split": split,
                "duration": 0.5 + n % 7,
            }
            for n, split in enumerate(splits)
        ]
        path = tmp_path / f"b{number}.parquet"
        write_table(pa.Table.from_pylist(rows, schema=RANKING), path)
        batches.append(Batch(f"b{number}", path, (), audio_origin="a", metrics_origin="m"))
        wanted |= {(f"b{number}", n): row for n, row in enumerate(rows) if row["state"] == "accepted"}
    found = survey.survey(batches)
    plan = shards.plan_data(found, 0, config["publish"]["shard_bytes"], RATE, by_batch=True)
    seen = []
    for shard in plan:
        split, batch = re.fullmatch(r"data/(\w+)-(b\d)-\d{5}-of-\d{5}\.parquet", shard.path).groups()
        assert {found.batches[index].id for index in found.cells[shard.cell, 0]} == {batch}
        clips = [wanted[batch, row] for row in shard.row.tolist()]
        names = {"dev": "validation", "test": "test"}
        assert {names.get(clip["source_split"], "train") for clip in clips} == {split}
        assert len(clips) == 1 or sum(clip["duration"] for clip in clips[:-1]) <= shard_seconds + 7
        seen += [(batch, row) for row in shard.row.tolist()]
    assert Counter(seen) == Counter(wanted.keys())
    alone = {path: made for batch in batches for path, made in planned([batch], config).items()}
    assert planned(batches, config) == alone


def test_what_a_shard_is_made_of_follows_its_clips_and_where_they_come_from(run):
    config = run.config | {"publish": run.config["publish"] | {"kind": "hub"}}
    tables = [Batch(name, ranking, (enhanced,), "a", "m") for name, enhanced, ranking in run.batches]
    first = planned(tables, config)
    assert planned(tables[::-1], config) == first
    for change in ({"audio_origin": "new"}, {"metrics_origin": "new"}):
        other = planned([replace(tables[0], **change), *tables[1:]], config)
        assert {path for path in first if other[path] != first[path]} == {path for path in first if "-b0-" in path}
    seeded = planned(tables, config | {"publish": config["publish"] | {"seed": 1}})
    assert all(seeded[path] != made for path, made in first.items())
    one = pq.read_table(tables[1].ranking).to_pylist()
    next(row for row in one if row["state"] == "accepted")["state"] = "rejected"
    write_table(pa.Table.from_pylist(one, schema=pq.read_schema(tables[1].ranking)), tables[1].ranking)
    fewer = planned(tables, config)
    assert any(fewer.get(path) != made for path, made in first.items() if "-b1-" in path)
    assert all(fewer[path] == made for path, made in first.items() if "-b1-" not in path)


def test_an_origin_changes_with_its_file(tmp_path):
    file = tmp_path / "ledger"
    file.write_text("a")
    before = origin_of(file)
    assert origin_of(file) == before
    file.write_text("ab")
    assert origin_of(file) != before
