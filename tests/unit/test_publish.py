"""Publishing to a folder: the layout, the bytes, what survives an interruption, and what a hostile corpus can write."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from speechmill.errors import LedgerError, SpeechmillError
from speechmill.publish import shards, to_folder
from speechmill.storage.files import read_json, sha256_json
from speechmill.tables.parquet_io import write_table

from .published import RATE, Run, hashes_of

needs_torchcodec = pytest.mark.skipif(
    importlib.util.find_spec("torchcodec") is None, reason="decoding inside datasets needs torchcodec (and ffmpeg)"
)


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
        "source_member input_sha256 input_channel offset_removed "
        "trim_start_s trim_end_s gain_db enhancer enhancer_sha256 models criteria_sha256 config_sha256 code_version extra"
    )
    for path in (run.target / "data").iterdir():
        schema = pq.read_schema(path)
        assert schema.names == expected.split()
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert features["audio"] == {"sampling_rate": RATE, "_type": "Audio"}
        assert list(features) == schema.names


def test_sentinel_lists_what_is_there(run):
    content = run.publish()
    assert read_json(run.sentinel) == content
    hashes = run.hashes()
    del hashes[to_folder.MARK]
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
    assert after - listed == {to_folder.MARK, *(p.relative_to(run.target).as_posix() for p in foreign)}


@pytest.mark.parametrize("foreign", ["README.md", "assets/metrics.png", "data/train-00000-of-00001.parquet"])
def test_a_data_set_of_somebody_else_is_not_replaced(run, foreign):
    path = run.target / foreign
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(SpeechmillError, match=r"not written by speechmill.*publish\.path"):
        run.publish()
    assert path.read_text() == "mine"
    (run.target / to_folder.MARK).touch()
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
    assert run.hashes() == hashes_of(tmp_path / "undisturbed")


def test_a_killed_process_is_completed_by_the_next(run, tmp_path):
    run.publish(target=tmp_path / "undisturbed")
    expected = hashes_of(tmp_path / "undisturbed")
    arguments = [run.batches, run.profile, run.summary, run.source, run.config, run.target, run.sentinel]
    (tmp_path / "arguments.json").write_text(json.dumps(arguments, default=str))
    program = """
import json, os, signal, sys
from pathlib import Path
from speechmill.publish import shards, to_folder
from speechmill.publish.survey import Batch
real, calls = shards.write_data, iter(range(100))
def dying(sink, **arguments):
    result = real(sink, **arguments)
    if next(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
shards.write_data = dying
batches, profile, summary, source, config, target, sentinel = json.load(open(sys.argv[1]))
batches = [Batch(name, Path(ranking), (Path(enhanced),)) for name, enhanced, ranking in batches]
to_folder.publish_folder(batches, profile, summary, source, config, Path(target), Path(sentinel))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "arguments.json")], check=False)
    assert done.returncode == -9
    assert list((run.target / "data").glob(".*.tmp"))
    assert not run.sentinel.exists()
    run.publish()
    assert run.hashes() == expected


def test_what_is_read_back_is_compared(run, monkeypatch):
    real = to_folder._remove_stale

    def corrupting(target, keep):
        real(target, keep)
        path = target / "scores/train-00000-of-00001.parquet"
        path.write_bytes(path.read_bytes()[:-1] + b"X")

    with monkeypatch.context() as patch:
        patch.setattr(to_folder, "_remove_stale", corrupting)
        with pytest.raises(SpeechmillError, match="1 files differ from what was written"):
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
