"""The enhance job on real clips: one bad clip costs only itself, a machine's fault stops the job."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import speechmill.enhance.job as job
import speechmill.enhance.processor as processor
from speechmill import parts
from speechmill.audio.encode import decode_flac
from speechmill.config import validate_config
from speechmill.errors import SpeechmillError
from speechmill.manifest import build_manifest, describe_source, read_batches
from speechmill.metrics import all_metrics
from speechmill.preflight import preflight
from speechmill.shards import ENHANCED, models_of
from speechmill.sources import open_source
from speechmill.vad import vad_versions

ROOT = Path(__file__).parents[2]
PROMPTS = sorted((ROOT / "demo" / "speech").rglob("*.flac"))


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    random = np.random.default_rng(2)
    for number, prompt in enumerate(PROMPTS[:4]):
        samples, rate = soundfile.read(prompt)
        if number == 1:
            samples = samples + random.normal(0, np.sqrt(np.mean(samples**2)), len(samples))
        soundfile.write(folder / f"{number}.wav", np.clip(samples, -1, 1), rate, subtype="PCM_16")
    return folder


def run(tmp_path, corpus, found=None, metadata=None, **enhance):
    """The rows of the shard and of the ledger, by source file. `found` overrides what preflight finds."""
    source_section = {"kind": "folder", "path": str(corpus), "metadata": metadata and str(metadata)}
    config = validate_config(
        {"dataset": "x", "outdir": str(tmp_path / "results"), "source": source_section, "enhance": enhance},
        ROOT / "config",
    )
    source = open_source(config)
    build_manifest(source, describe_source(source, config), config, tmp_path / "manifest")
    (batch,) = read_batches(tmp_path / "manifest" / "batches.tsv")
    shard, ledger = tmp_path / "shard.parquet", tmp_path / "ledger.parquet"
    manifest = tmp_path / "manifest" / f"{batch['batch']}.json"
    found = preflight(config, ROOT / "config", tmp_path) | (found or {})
    job.enhance_batch(manifest, source, None, config, found, "cpu", 1, shard, ledger)
    return tuple({row["source_file"]: row for row in pq.read_table(path).to_pylist()} for path in (shard, ledger))


def test_a_clip_carries_its_audio_its_provenance_and_its_measurements(tmp_path, corpus):
    shard, ledger = run(tmp_path, corpus)
    assert {row["state"] for row in ledger.values()} == {"passed"}
    assert [row["variant"] for row in shard.values()] == ["original", "enhanced", "original", "original"]
    for row in shard.values():
        samples, rate = decode_flac(row["audio"]["bytes"])
        assert rate == row["sampling_rate"] == 16000
        assert len(samples) / rate == row["duration"]
        spans = row["trim_start_s"] + row["duration"] + row["trim_end_s"]
        assert spans == pytest.approx(row["input_duration"], abs=1e-3)
        assert (row["original"] is None) == (row["variant"] == "original")
        assert (row["denoise_removed_db"] == 0) == (row["variant"] == "original")
        assert set(row) - set(ENHANCED.names) <= set(all_metrics())
        assert row["enhancer"].startswith("rnnoise")
        assert len(row["enhancer_sha256"]) == len(row["config_sha256"]) == 64
    pq_file = pq.ParquetFile(tmp_path / "shard.parquet")
    assert models_of(pq_file.schema_arrow) == vad_versions()
    group = pq_file.metadata.row_group(0)
    compressions = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    assert compressions["audio.bytes"] == "UNCOMPRESSED"
    assert compressions["text"] == "ZSTD"


def test_the_ledger_says_who_speaks_also_in_clips_that_are_rejected(tmp_path, corpus):
    soundfile.write(corpus / "1.wav", np.zeros(32_000), 16_000, subtype="PCM_16")
    metadata = tmp_path / "clips.jsonl"
    metadata.write_text('{"path": "0.wav", "gender": " male ", "age": 30}\n{"path": "1.wav", "Sex": "F", "age": ""}\n')
    shard, ledger = run(tmp_path, corpus, metadata=metadata)
    assert (ledger["0.wav"]["gender"], ledger["0.wav"]["age"]) == ("male", "30")
    assert (ledger["1.wav"]["state"], ledger["1.wav"]["gender"], ledger["1.wav"]["age"]) == ("rejected", "F", None)
    assert (ledger["2.wav"]["gender"], ledger["2.wav"]["age"]) == (None, None)
    assert not {"gender", "age"} & set(shard["0.wav"])  # published shards are made of these columns
    assert '"gender": " male "' in shard["0.wav"]["extra"]


@pytest.mark.parametrize(("rate", "level"), [(48000, "aggressive"), (22050, "light"), (16000, "none")])
def test_other_rates_and_levels(tmp_path, corpus, rate, level):
    shard, _ = run(tmp_path, corpus, sampling_rate=rate, level=level)
    assert len(shard) == 4
    for row in shard.values():
        samples, found = decode_flac(row["audio"]["bytes"])
        assert found == rate
        assert len(samples) / rate == pytest.approx(
            row["input_duration"] - row["trim_start_s"] - row["trim_end_s"], abs=1e-3
        )
    assert (shard["1.wav"]["variant"] == "original") == (level == "none")


@pytest.mark.parametrize(
    ("step", "error_class"), [("resample", "decode_failed"), ("speech_segments", "enhance_failed")]
)
def test_one_bad_clip_costs_only_itself(tmp_path, corpus, monkeypatch, step, error_class):
    size = len(soundfile.read(corpus / "2.wav")[0])
    real = getattr(processor, step)

    def fragile(*arguments):
        if any(isinstance(a, int) and a == size for a in arguments) or len(arguments[0]) == size:
            raise ValueError("this clip is odd")
        return real(*arguments)

    monkeypatch.setattr(processor, step, fragile)
    shard, ledger = run(tmp_path, corpus)
    assert set(shard) == {"0.wav", "1.wav", "3.wav"}
    assert ledger["2.wav"]["state"] == "errored"
    assert ledger["2.wav"]["error_class"] == error_class
    assert "this clip is odd" in ledger["2.wav"]["message"]


def test_a_machines_fault_stops_the_job_and_leaves_nothing(tmp_path, corpus, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processor, "encode_flac", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, corpus)
    assert not [p.name for p in tmp_path.iterdir() if "shard" in p.name or "ledger" in p.name]


def test_an_interrupted_batch_goes_on_and_ends_with_the_same_bytes(tmp_path, corpus, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        shutil.copytree(corpus, folder / "corpus")
    shard, _ = run(whole, whole / "corpus")
    monkeypatch.setattr(parts, "PART_SECONDS", 0)
    real, encoded = processor.encode_flac, []

    def full(samples, rate):
        if len(encoded) == 3:  # the second clip is encoded twice: as it is published, and as it was
            raise OSError(28, "No space left on device")
        encoded.append(len(samples))
        return real(samples, rate)

    with monkeypatch.context() as patch:
        patch.setattr(processor, "encode_flac", full)
        with pytest.raises(OSError, match="No space left"):
            run(broken, broken / "corpus", batch_seconds=0.1)
    assert (broken / ".shard.parts").exists()
    assert not (broken / "shard.parquet").exists()
    decoded = []
    real_decode = processor.decode
    monkeypatch.setattr(processor, "decode", lambda *a: decoded.append(a) or real_decode(*a))
    run(broken, broken / "corpus")
    assert len(decoded) < len(shard)
    for name in ("shard.parquet", "ledger.parquet"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert not (broken / ".shard.parts").exists()


def test_a_clip_of_which_resampling_leaves_nothing_is_judged(tmp_path, corpus):
    soundfile.write(corpus / "one.wav", np.full(1, 0.5), 48_000)
    shard, ledger = run(tmp_path, corpus)
    assert ledger["one.wav"]["state"] == "rejected"
    assert ledger["one.wav"]["criterion"] == "speech_s"
    assert len(shard) == 4


def test_a_clip_that_is_clean_enough_is_not_denoised(tmp_path, corpus, monkeypatch):
    denoised = []
    real = processor.limit_attenuation

    def limit(original, *arguments):
        denoised.append(len(original))
        return real(original, *arguments)

    monkeypatch.setattr(processor, "limit_attenuation", limit)
    shard, _ = run(tmp_path, corpus)
    assert sum(denoised) == sum(not row["variant_reason"].startswith("clean enough") for row in shard.values()) == 1


def test_a_file_that_changed_since_it_was_listed_is_errored(tmp_path, corpus, monkeypatch):
    real = job.read_batch

    def changed(path):
        (corpus / "0.wav").write_bytes((corpus / "1.wav").read_bytes())
        return real(path)

    monkeypatch.setattr(job, "read_batch", changed)
    _, ledger = run(tmp_path, corpus)
    assert ledger["0.wav"]["error_class"] == "changed"
    assert ledger["1.wav"]["state"] == "passed"


def test_the_enhancer_is_the_one_that_preflight_found(tmp_path, corpus, monkeypatch):
    shard, _ = run(tmp_path, corpus, found={"enhancer": "spectral_gate"})
    assert {row["enhancer"] for row in shard.values()} == {"spectral_gate 1, moderate"}
    (tmp_path / "shard.parquet").unlink()
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "pyrnnoise" else real(name, *a))
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    with pytest.raises(SpeechmillError, match=r"node gpu-17 .*pip install pyrnnoise"):
        run(tmp_path, corpus, found={"enhancer": "rnnoise"})
    assert not (tmp_path / "shard.parquet").exists()


def test_what_was_not_decoded_has_no_duration_whatever_its_header_claims(tmp_path, corpus):
    whole = (corpus / "0.wav").read_bytes()
    (corpus / "cut.wav").write_bytes(whole[: len(whole) // 2])
    soundfile.write(corpus / "long.wav", np.zeros(20 * 16000, np.int16), 16000)
    _, ledger = run(tmp_path, corpus, max_seconds=15)
    assert (ledger["cut.wav"]["state"], ledger["long.wav"]["state"]) == ("errored", "rejected")
    durations = {name: row["input_duration"] for name, row in ledger.items()}
    assert durations.pop("cut.wav") is durations.pop("long.wav") is None
    assert all(seconds > 0 for seconds in durations.values())
