"""The enhance job on real clips: one bad clip costs only itself, a machine's fault stops the job."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import speechmill.enhance.enhance_batch as job
import speechmill.enhance.processor as processor
from speechmill.audio.encode import decode_flac
from speechmill.audio.loudness import loudest_block_lufs
from speechmill.audio.vad import vad_versions
from speechmill.config import validate_config
from speechmill.engine import checkpoint
from speechmill.errors import SpeechmillError
from speechmill.metrics import all_metrics
from speechmill.preflight import preflight
from speechmill.sources import open_source
from speechmill.sources.manifest import build_manifest, describe_source
from speechmill.tables.batches import read_batches
from speechmill.tables.schemas import ENHANCED, models_of

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
    found = preflight(config, tmp_path) | (found or {})
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


def test_controls_of_a_corpus_reach_no_row(tmp_path, corpus):
    metadata = tmp_path / "clips.jsonl"
    text = "\u202eabc\u0007 น\u0e33\u0e49 \u2067می\u200cخواهم\u2069"
    row = {"path": "0.wav", "text": text, "speaker_id": "\u2066s\u2069", "note\u202e": ["\u0001x\u202d"]}
    metadata.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    shard, ledger = run(tmp_path, corpus, metadata=metadata)
    assert shard["0.wav"]["text"] == ledger["0.wav"]["text"] == "abc น\u0e33\u0e49 می\u200cخواهم"
    assert shard["0.wav"]["text_norm"] == "abc น\u0e49\u0e33 می\u200cخواهم"
    assert json.loads(shard["0.wav"]["extra"]) == {"note": ["x"]}
    assert shard["0.wav"]["speaker_id"] == "s"


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
    monkeypatch.setattr(checkpoint, "PART_SECONDS", 0)
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


def levels(row):
    samples, _ = decode_flac(row["audio"]["bytes"])
    return np.mean(samples), samples


def test_an_offset_is_removed_before_anything_is_measured_and_recorded(tmp_path, corpus):
    samples, rate = soundfile.read(corpus / "0.wav", dtype="float32")
    for offset in (0.3, -0.3):
        soundfile.write(corpus / f"{offset}.wav", 0.6 * samples + np.float32(offset), rate, subtype="FLOAT")
    soundfile.write(corpus / "quieter.wav", 0.6 * samples, rate, subtype="FLOAT")
    shard, _ = run(tmp_path, corpus)
    plain = shard["quieter.wav"]
    for offset in (0.3, -0.3):
        row = shard[f"{offset}.wav"]
        assert row["offset_removed"] == pytest.approx(offset, abs=1e-3)
        assert row["input_dc_offset"] == pytest.approx(abs(offset), abs=1e-3)
        mean, published = levels(row)
        assert abs(mean) < 1e-3
        np.testing.assert_allclose(published, levels(plain)[1], atol=2e-4)
        for name in ("input_snr_db", "input_loudness_lufs", "input_speech_ratio", "duration", "gain_db", "variant"):
            assert row[name] == pytest.approx(plain[name], abs=1e-2) if name != "variant" else row[name] == plain[name]


@pytest.mark.parametrize("lufs", [-71, -78, -100])
def test_what_is_too_quiet_to_normalise_has_one_reason(tmp_path, corpus, lufs):
    for path in sorted(corpus.iterdir()):
        samples, rate = soundfile.read(path, dtype="float32")
        quiet = samples * np.float32(10 ** ((lufs - loudest_block_lufs(samples, rate)) / 20))
        soundfile.write(path, quiet, rate, subtype="FLOAT")
    soundfile.write(corpus / "zeros.wav", np.zeros(16_000), 16_000)
    shard, ledger = run(tmp_path, corpus)
    assert ledger.pop("zeros.wav")["criterion"] == "speech_s"
    assert not shard
    for row in ledger.values():
        assert (row["state"], row["criterion"], row["threshold"]) == ("rejected", "level_lufs", -70)
        assert row["value"] == pytest.approx(lufs, abs=0.1)
        assert "too quiet" in row["message"]


def test_speech_that_is_too_quiet_beside_a_click_is_not_published_as_it_is(tmp_path, corpus):
    samples, rate = soundfile.read(corpus / "0.wav", dtype="float32")
    quiet = samples * np.float32(10 ** ((-71 - loudest_block_lufs(samples, rate)) / 20))
    loud = np.concatenate([quiet, np.zeros(rate, np.float32), 0.5 * np.ones(20, np.float32), np.zeros(400, np.float32)])
    soundfile.write(corpus / "0.wav", loud, rate, subtype="FLOAT")
    shard, ledger = run(tmp_path, corpus, trim=True, vad_threshold=0.05)
    assert "0.wav" not in shard
    assert ledger["0.wav"]["criterion"] in ("level_lufs", "speech_s")


def test_channels_are_mixed_as_configured_and_opposite_phases_are_recorded(tmp_path, corpus):
    samples, rate = soundfile.read(corpus / "0.wav", dtype="float32")
    soundfile.write(corpus / "opposite.wav", np.stack([samples, -samples], 1), rate, subtype="FLOAT")
    soundfile.write(corpus / "equal.wav", np.stack([samples, samples], 1), rate, subtype="FLOAT")
    shard, _ = run(tmp_path, corpus)
    assert [shard[name]["input_channel"] for name in ("0.wav", "equal.wav", "opposite.wav")] == ["1", "mean", "1"]
    found = [shard[name]["input_channel_correlation"] for name in ("0.wav", "equal.wav", "opposite.wav")]
    assert found == [None, pytest.approx(1), pytest.approx(-1)]
    assert len({shard[name]["audio"]["bytes"] for name in ("0.wav", "equal.wav", "opposite.wav")}) == 1
    shard, _ = run(tmp_path, corpus, channels="first")
    assert shard["equal.wav"]["input_channel"] == "1"


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
