"""The score job: what damage of an enhanced shard says to a person, and how much audio is held at a time."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import speechmill.metrics.score_batch as job
from speechmill.audio.encode import encode_flac
from speechmill.audio.vad import vad_versions
from speechmill.engine import checkpoint
from speechmill.errors import SpeechmillError
from speechmill.metrics.signal import SignalGroup
from speechmill.storage.files import sha256_file
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import ENHANCED, models_of

from .metric_clips import RATE, speech_clips

CONFIG = {"score": {"squim_weights": None}}
FOUND = {"metric_groups": ["signal"], "models": vad_versions()}


@pytest.fixture
def shard(tmp_path):
    """Twelve clips of a second and a half."""
    path = tmp_path / "enhanced" / "b0.parquet"
    clips = [speech_clips(12)[n][: 3 * RATE // 2] for n in range(12)]
    rows = [
        {"id": f"clip{n}", "duration": 1.5, "audio": {"bytes": encode_flac(c, RATE), "path": f"{n}.flac"}}
        for n, c in enumerate(clips)
    ]
    write_table(
        pa.Table.from_pylist(rows, schema=pa.schema([*ENHANCED, ("input_snr_db", pa.float64())])),
        path,
        row_group_size=5,
        uncompressed=["audio.bytes"],
    )
    return path


def score(shard, batch_seconds=60):
    scores = shard.parent.parent / "scores.parquet"
    job.score_batch(shard, {"score": CONFIG["score"] | {"batch_seconds": batch_seconds}}, FOUND, "cpu", 1, scores)
    return pq.read_table(scores).to_pylist()


def spoil_audio(path, number):
    """Write noise over the middle of a clip's bytes; the Parquet file stays valid."""
    flac = pq.read_table(path)["audio"][number]["bytes"].as_py()
    data = path.read_bytes()
    assert data.count(flac) == 1
    at = data.index(flac)
    noise = np.random.default_rng(0).bytes(len(flac) - 40)
    path.write_bytes(data[: at + 20] + noise + data[at + len(flac) - 20 :])


def test_every_clip_of_a_shard_is_scored_in_its_order(shard):
    rows = score(shard)
    assert [row["id"] for row in rows] == [f"clip{n}" for n in range(12)]
    assert models_of(pq.read_schema(shard.parent.parent / "scores.parquet")) == vad_versions() | SignalGroup().versions
    assert all(np.isfinite(row["snr_db"]) and row["error_class"] is None for row in rows)


def test_a_damaged_clip_names_shard_clip_and_remedy(shard):
    spoil_audio(shard, 7)
    with pytest.raises(
        SpeechmillError, match=rf"{re.escape(str(shard))} is damaged: clip clip7.*Delete that file"
    ) as e:
        score(shard)
    assert "\n" not in str(e.value)
    assert not (shard.parent.parent / "scores.parquet").exists()


def test_a_clip_without_audio_is_damage_too(shard):
    table = pq.read_table(shard)
    audio = table["audio"].to_pylist()
    audio[3] = None
    at = table.schema.get_field_index("audio")
    write_table(table.set_column(at, table.schema.field(at), pa.array(audio, table.schema.field(at).type)), shard)
    with pytest.raises(SpeechmillError, match="clip clip3"):
        score(shard)


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "pages"])
def test_a_damaged_file_names_shard_and_remedy(shard, damage):
    data = shard.read_bytes()
    if damage == "pages":
        # The page of the ids, whose zstd frame begins 20 to 60 bytes into its column.
        start = pq.read_metadata(shard).row_group(1).column(0).data_page_offset
        data = data[:start] + bytes(40) + data[start + 40 :]
    else:
        data = {"text": b"no table", "empty": b"", "cut": data[: len(data) // 2]}[damage]
    shard.write_bytes(data)
    with pytest.raises(SpeechmillError, match=rf"{re.escape(str(shard))} is damaged: .*Delete that file and run again"):
        score(shard)


def test_a_missing_shard_is_the_machines_fault(shard):
    shard.unlink()
    with pytest.raises(FileNotFoundError):
        score(shard)


def test_two_runs_write_the_same_bytes(shard):
    score(shard)
    before = sha256_file(shard.parent.parent / "scores.parquet")
    score(shard)
    assert sha256_file(shard.parent.parent / "scores.parquet") == before


def test_another_vad_than_preflights_is_refused_by_the_nodes_name(shard, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    monkeypatch.setitem(FOUND, "models", {"silero-vad/silero_vad.jit": "0" * 64})
    with pytest.raises(SpeechmillError, match=r"node gpu-17 .*silero-vad/silero_vad\.jit"):
        score(shard)


def test_small_windows_and_an_interruption_change_nothing(shard, monkeypatch):
    alike = score(shard)
    scores = shard.parent.parent / "scores.parquet"
    before = scores.read_bytes()
    scores.unlink()
    monkeypatch.setattr(checkpoint, "PART_SECONDS", 0)
    real, loaded = job._load, []

    def load(path, row):
        if row["id"] == "clip9":
            raise OSError(5, "Input/output error")
        return real(path, row)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_load", load)
        with pytest.raises(OSError, match="Input/output"):
            score(shard, batch_seconds=0.5)
    assert not scores.exists()
    monkeypatch.setattr(job, "_load", lambda path, row: loaded.append(row["id"]) or real(path, row))
    assert score(shard) == alike
    assert scores.read_bytes() == before
    assert 0 < len(loaded) < 12
    assert loaded[-1] == "clip11"
