"""Publishing to a folder: the layout, the bytes, what survives an interruption, and what a hostile corpus can write."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechmill.errors import LedgerError, SpeechmillError
from speechmill.files import read_json, sha256_file, sha256_json
from speechmill.publish import folder, shards
from speechmill.publish.folder import publish_folder
from speechmill.publish.shards import Batch
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate, _hash
from speechmill.shards import ENHANCED, RANKING, with_models, write_table

RATE = 16000
METRICS = ["snr_db", "dnsmos_p808", "input_snr_db"]
EVIL = (
    'เสียง\t| <script>alert(1)</script> [x](javascript:alert(1)) `rm` ![i](http://e.vil/i)\n---\n# Owned "q" \u202e *b*'
)
needs_torchcodec = pytest.mark.skipif(
    importlib.util.find_spec("torchcodec") is None, reason="decoding inside datasets needs torchcodec (and ffmpeg)"
)


def flac(seed: int, seconds: float) -> bytes:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def make_profile(threshold: float) -> FrozenProfile:
    body = {
        "name": "asr",
        "version": 1,
        "description": EVIL,
        "threshold": threshold,
        "min_coverage": 0.8,
        "gates": (Gate("snr_db", 0.0, None, EVIL),),
        "criteria": (
            Criterion("snr_db", "noise", 0.0, 40.0, "benefit", 0.7),
            Criterion("dnsmos_p808", "quality", 1.0, 5.0, "target", 0.3, (3.0, 5.0)),
        ),
        "dropped_criteria": (),
        "dropped_gates": (),
    }
    return FrozenProfile(**body, sha256=_hash(FrozenProfile(**body, sha256="")))


class Run:
    """Results of a run: batches of clips of which every fourth is not accepted."""

    def __init__(self, directory: Path, clips: int = 60, batches: int = 3, row_group: int = 7, threshold: float = 0.2):
        self.directory = directory
        self.target = directory / "published"
        self.sentinel = directory / "UPLOADED.json"
        self.states: Counter[str] = Counter()
        self.batches: list[tuple[str, Path, Path]] = []
        self.truth: dict[str, dict] = {}
        self.source = {
            "kind": "folder",
            "revision": "sha256:abc",
            "license": "CC-BY-SA-3.0",
            "attribution": EVIL,
            "files": [],
        }
        self.config = {
            "dataset": "demo",
            "source": {"license": "CC-BY-SA-3.0", "terms": None},
            "enhance": {
                "sampling_rate": RATE,
                "enhancer": "rnnoise",
                "level": "moderate",
                "guard": True,
                "trim": True,
                "loudness_lufs": -23,
                "true_peak_dbtp": -1,
            },
            "publish": {
                "kind": "folder",
                "shuffle": None,
                "shard_bytes": 35_000,  # of speech; of the noise here half as much again
                "seed": 0,
                "pretty_name": EVIL,
                "task_categories": ["automatic-speech-recognition"],
            },
        }
        self.profile = make_profile(threshold).to_json()
        for b in range(batches):
            self._batch(f"b{b}", range(b * clips // batches, (b + 1) * clips // batches), threshold, row_group)
        self.summary = {
            "clips": {"input": clips, **{s: self.states[s] for s in ("accepted", "rejected", "errored", "duplicate")}},
            "hours": {"input": 1.5, "accepted": 0.9},
            "rejected_by": {"closeness": self.states["rejected"]},
            "errored_by": {EVIL: self.states["errored"]},
            "batches": len(self.batches),
            "failed_batches": {},
            "metrics": {m: {"p5": 1.0, "p50": 2.5, "p95": None} for m in METRICS},
            "profile_sha256": "f" * 64,
            "versions": {"speechmill": "0.1.0", "numpy": "2"},
            "timing": {"seconds": os.getpid()},
        }

    def _batch(self, name: str, numbers: range, threshold: float, row_group: int) -> None:
        enhanced, ranking = [], []
        for n in numbers:
            clip_id = hashlib.sha256(str(n).encode()).hexdigest()[:24]
            closeness = ((n * 37) % 100) / 100
            state = {3: "errored", 7: "duplicate"}.get(n % 8, "accepted" if closeness >= threshold else "rejected")
            self.states[state] += 1
            seconds = 0.1 + (n % 5) / 10
            row = {
                "id": clip_id,
                "source": "demo",
                "source_id": f"clip {n}",
                "source_split": ["train", "dev", "test", None][n % 4] if name == "b0" else None,
                "source_file": f"ก/{n}.wav",
                "text": "สวัสดีครับ ทดสอบน้ำ",
                "language": ["th-TH", "en", "und", EVIL][n // 2 % 4],
                "speaker_id": None,
                "license": ["CC-BY-SA-3.0", "CC0-1.0"][n % 2],
                "duration": seconds,
                "variant": "enhanced",
                "variant_reason": f"noisy {n}",
                "input_duration": seconds + 0.5,
            }
            scored = {"state": state, "closeness": closeness, "batch": name, "failed_gates": [], **row}
            if state == "rejected":
                scored |= {"criterion": "closeness", "value": closeness, "threshold": threshold}
            elif state == "errored":
                scored |= {"error_class": EVIL, "closeness": None}
            ranking.append({**scored, "snr_db": float(n), "dnsmos_p808": 3.5, "input_snr_db": None})
            if state == "errored":
                continue
            audio = {"bytes": flac(n, seconds), "path": "../../evil.flac"}
            extra = {"gain_db": -1.5, "source_revision": "abc", "code_version": "0.1.0", "sampling_rate": RATE}
            enhanced.append({**row, **extra, "audio": audio, "input_sha256": "0" * 64})
            if state == "accepted":
                self.truth[clip_id] = {
                    "bytes": audio["bytes"],
                    "n": n,
                    "batch": name,
                    "closeness": closeness,
                    "seconds": seconds,
                }
        schema = with_models(pa.schema([*RANKING, *((m, pa.float64()) for m in METRICS)]), {"speechmos/x.onnx": name})
        paths = self.directory / f"enhanced-{name}.parquet", self.directory / f"ranking-{name}.parquet"
        uncompressed = ["audio.bytes", "original.bytes"]
        write_table(
            pa.Table.from_pylist(enhanced, schema=with_models(ENHANCED, {"silero-vad/y.jit": "0" * 64})),
            paths[0],
            row_group_size=row_group,
            uncompressed=uncompressed,
        )
        write_table(pa.Table.from_pylist(ranking, schema=schema), paths[1])
        self.batches.append((name, *paths))

    def publish(self, **overrides) -> dict:
        arguments = {
            "batches": self.batches,
            "profile": self.profile,
            "summary": self.summary,
            "source": self.source,
            "config": self.config,
            "target": self.target,
            "sentinel": self.sentinel,
        }
        arguments |= overrides
        arguments["batches"] = [Batch(name, ranking, (enhanced,)) for name, enhanced, ranking in arguments["batches"]]
        return publish_folder(**arguments)

    def published(self) -> pa.Table:
        return pa.concat_tables(pq.read_table(p) for p in sorted((self.target / "data").glob("*-of-*.parquet")))

    def hashes(self) -> dict[str, str]:
        return _hashes(self.target)


def _hashes(target: Path) -> dict[str, str]:
    files = sorted(p for p in target.rglob("*") if p.is_file())
    return {p.relative_to(target).as_posix(): sha256_file(p) for p in files}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_every_accepted_clip_is_published_once_with_its_bytes_and_values(run):
    content = run.publish()
    rows = run.published().to_pylist()
    assert Counter(row["id"] for row in rows) == Counter(run.truth.keys())
    for row in rows:
        truth = run.truth[row["id"]]
        assert row["audio"] == {"bytes": truth["bytes"], "path": f"{row['id']}.flac"}
        assert (row["snr_db"], row["closeness"], row["duration"]) == (truth["n"], truth["closeness"], truth["seconds"])
        assert (row["source_file"], row["criteria_sha256"]) == (
            f"ก/{truth['n']}.wav",
            sha256_json(run.profile["criteria"]),
        )
        assert row["variant_reason"] == f"noisy {truth['n']}"
        assert json.loads(row["models"]) == {"silero-vad/y.jit": "0" * 64, "speechmos/x.onnx": truth["batch"]}
        assert (row["gain_db"], row["input_snr_db"], row["dnsmos_p808"]) == (-1.5, None, 3.5)
    assert content["rows"] == content["accepted"] == len(run.truth)
    assert content["hours"] == pytest.approx(sum(t["seconds"] for t in run.truth.values()) / 3600, abs=1e-6)


def test_columns_of_a_published_row(run):
    run.publish()
    expected = (
        "id audio text text_norm language duration sampling_rate speaker_id source source_id source_split license "
        "snr_db dnsmos_p808 input_snr_db closeness variant variant_reason source_revision source_file source_row "
        "source_member input_sha256 "
        "trim_start_s trim_end_s gain_db enhancer enhancer_sha256 models criteria_sha256 config_sha256 code_version extra"
    )
    for path in (run.target / "data").iterdir():
        schema = pq.read_schema(path)
        assert schema.names == expected.split()
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert features["audio"] == {"sampling_rate": RATE, "_type": "Audio"}
        assert list(features) == schema.names


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
        found = shards.survey(Batch(name, ranking, (enhanced,)) for name, enhanced, ranking in run.batches)
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
    monkeypatch.setattr(shards, "RUN_ROWS", 3)
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
    assert table.schema.names == [*RANKING.names, *METRICS]
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
    first, second, third = (_hashes(tmp_path / n) for n in ("one", "two", "three"))
    assert first == second == third
    assert contents[0] == contents[1] == contents[2]
    run.summary["timing"] = {"seconds": -1}
    run.publish(target=tmp_path / "one")
    assert _hashes(tmp_path / "one") == first


def test_sentinel_lists_what_is_there(run):
    content = run.publish()
    assert read_json(run.sentinel) == content
    hashes = run.hashes()
    del hashes[folder.MARK]
    assert {f["path"]: f["sha256"] for f in content["files"]} == hashes
    assert all(f["size"] == (run.target / f["path"]).stat().st_size for f in content["files"])
    assert content["bytes"] == sum(f["size"] for f in content["files"])
    assert content["manifest_sha256"] == sha256_json(content["files"])
    assert (content["kind"], content["target"], content["profile_sha256"]) == ("folder", str(run.target), "f" * 64)


def test_unchanged_shards_are_not_rewritten(run):
    run.publish()
    before = {p: p.stat().st_mtime_ns for p in run.target.rglob("*") if p.is_file()}
    run.publish()
    assert {p: p.stat().st_mtime_ns for p in run.target.rglob("*") if p.is_file()} == before


def test_a_changed_ranking_replaces_and_removes_shards_and_leaves_foreign_files(tmp_path):
    run = Run(tmp_path)
    run.publish()
    foreign = [run.target / p for p in ("notes.txt", "data/extra.parquet", "data/train-old.parquet", "data/.keep")]
    for path in foreign:
        path.write_text("mine")
    before = set(run.hashes())
    strict = Run(tmp_path, threshold=0.7)
    strict.publish()
    after = set(strict.hashes())
    gone = before - after
    assert gone
    assert all(re.fullmatch(r"data/\w+-\d{5}-of-\d{5}\.parquet", path) for path in gone)
    assert all(path.read_text() == "mine" for path in foreign)
    assert set(strict.published()["id"].to_pylist()) == set(strict.truth)
    listed = {f["path"] for f in read_json(strict.sentinel)["files"]}
    assert after - listed == {folder.MARK, *(p.relative_to(run.target).as_posix() for p in foreign)}


@pytest.mark.parametrize("foreign", ["README.md", "assets/metrics.png", "data/train-00000-of-00001.parquet"])
def test_a_data_set_of_somebody_else_is_not_replaced(run, foreign):
    path = run.target / foreign
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(SpeechmillError, match=r"not written by speechmill.*publish\.path"):
        run.publish()
    assert path.read_text() == "mine"
    (run.target / folder.MARK).touch()
    run.publish()


def test_an_interrupted_publication_has_no_sentinel_and_no_card_and_is_completed_by_the_next(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.publish(target=tmp_path / "undisturbed")
    Run(tmp_path, threshold=0.7).publish()  # an earlier version stands there
    run = Run(tmp_path)
    real, calls = shards.write_data, iter(range(100))

    def failing(sink, **arguments):
        if next(calls) == 2:
            sink.write(b"half a shard")
            raise OSError(28, "No space left on device")
        return real(sink, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_data", failing)
        with pytest.raises(SpeechmillError, match="No space left"):
            run.publish()
    assert not run.sentinel.exists()
    assert not (run.target / "README.md").exists()
    for path in (run.target / "data").iterdir():
        pq.read_metadata(path)  # whatever is there is complete
    run.publish()
    assert run.hashes() == _hashes(tmp_path / "undisturbed")


def test_a_killed_process_is_completed_by_the_next(run, tmp_path):
    run.publish(target=tmp_path / "undisturbed")
    expected = _hashes(tmp_path / "undisturbed")
    arguments = [run.batches, run.profile, run.summary, run.source, run.config, run.target, run.sentinel]
    (tmp_path / "arguments.json").write_text(json.dumps(arguments, default=str))
    program = """
import json, os, signal, sys
from pathlib import Path
from speechmill.publish import folder, shards
real, calls = shards.write_data, iter(range(100))
def dying(sink, **arguments):
    result = real(sink, **arguments)
    if next(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
shards.write_data = dying
batches, profile, summary, source, config, target, sentinel = json.load(open(sys.argv[1]))
batches = [shards.Batch(name, Path(ranking), (Path(enhanced),)) for name, enhanced, ranking in batches]
folder.publish_folder(batches, profile, summary, source, config, Path(target), Path(sentinel))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "arguments.json")], check=False)
    assert done.returncode == -9
    assert list((run.target / "data").glob(".*.tmp"))
    assert not run.sentinel.exists()
    run.publish()
    assert run.hashes() == expected


def test_what_is_read_back_is_compared(run, monkeypatch):
    real = folder._remove_stale

    def corrupting(target, keep):
        real(target, keep)
        path = target / "scores/train-00000-of-00001.parquet"
        path.write_bytes(path.read_bytes()[:-1] + b"X")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_remove_stale", corrupting)
        with pytest.raises(SpeechmillError, match="read back, 1 files"):
            run.publish()
    assert not run.sentinel.exists()
    run.publish()


def test_tables_that_disagree_stop_the_publication(run):
    run.summary["clips"]["accepted"] += 1
    with pytest.raises(LedgerError, match=r"delete report/summary\.json"):
        run.publish()
    run.summary["clips"]["accepted"] -= 1
    _, enhanced, _ = run.batches[0]
    write_table(pq.read_table(enhanced).slice(5), enhanced)
    with pytest.raises(LedgerError, match=r"batch b0: .* accepted clips have no audio"):
        run.publish()
    enhanced.write_bytes(b"PAR1 not")
    with pytest.raises(SpeechmillError, match=r"enhanced-b0\.parquet is damaged: .*run again"):
        run.publish()
    assert not run.sentinel.exists()


def test_metrics_that_one_batch_lacks_are_null(run):
    _, _, ranking = run.batches[1]
    write_table(pq.read_table(ranking).drop(["snr_db"]), ranking)
    run.publish()
    values = {row["id"]: row["snr_db"] for row in run.published().select(["id", "snr_db"]).to_pylist()}
    assert {i for i, value in values.items() if value is None} == {i for i, t in run.truth.items() if 20 <= t["n"] < 40}


def test_nothing_accepted(tmp_path, datasets):
    Run(tmp_path).publish()
    run = Run(tmp_path, threshold=1.1)
    content = run.publish()
    assert (content["rows"], content["hours"]) == (0, 0)
    assert not list((run.target / "data").iterdir())
    assert "No clip was accepted" in (run.target / "README.md").read_text()
    assert datasets.load_dataset(str(run.target), "scores", split="train").num_rows == 60


def test_load_dataset_gives_the_flac_bytes(run, datasets):
    run.publish()
    loaded = datasets.load_dataset(str(run.target))
    assert set(loaded) == {"train", "validation", "test"}
    clips = datasets.concatenate_datasets(list(loaded.values())).cast_column("audio", datasets.Audio(decode=False))
    assert clips.num_rows == len(run.truth)
    for row in clips.select(range(0, clips.num_rows, 5)):
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        assert rate == RATE
        assert len(samples) == round(row["duration"] * RATE)
        assert row["text"] == "สวัสดีครับ ทดสอบน้ำ"


@needs_torchcodec
def test_load_dataset_decodes(run, datasets):
    run.publish()
    clips = datasets.load_dataset(str(run.target), split="train")
    try:
        audio = clips[0]["audio"]
    except (RuntimeError, ImportError) as error:
        pytest.skip(f"torchcodec cannot load ffmpeg here: {str(error)[:100]}")
    samples = audio["array"]
    expected, rate = soundfile.read(io.BytesIO(run.truth[clips[0]["id"]]["bytes"]), dtype="float32")
    assert audio["sampling_rate"] == rate == RATE
    np.testing.assert_allclose(samples, expected, atol=1e-4)


def planned(batches: list[Batch], config: dict) -> dict[str, str]:
    """Path -> made_from of every file of data."""
    plan = shards.plan_files(shards.survey(batches), {"criteria": []}, config)
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
    found = shards.survey(batches)
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
