"""Preflight: every problem at once, in words that say what to do."""

import importlib.util
from pathlib import Path

import pytest

from speechmill.config import validate_config
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.metrics.found import as_preflight_found, load_found_groups, read_preflight
from speechmill.preflight import preflight
from speechmill.storage.files import write_json

CONFIG = Path(__file__).parents[2] / "config"


def make(tmp_path, **changes):
    (tmp_path / "corpus").mkdir(exist_ok=True)
    base = {
        "dataset": "x",
        "source": {"kind": "folder", "path": str(tmp_path / "corpus")},
        "score": {"metrics": ["signal"]},
    }
    return validate_config(base | changes, CONFIG)


def test_a_sound_configuration_names_what_will_be_measured(tmp_path):
    report = preflight(make(tmp_path), tmp_path / "run")
    assert report == preflight(make(tmp_path), tmp_path / "run")
    assert {"snr_db", "input_snr_db", "denoise_removed_db", "longest_pause_s"} <= set(report["metrics"])
    assert "dnsmos_p808" not in report["metrics"]
    assert any("licence" in warning for warning in report["warnings"])


def test_all_problems_come_at_once(tmp_path):
    config = make(
        tmp_path,
        source={"kind": "folder", "path": str(tmp_path / "corpus"), "metadata": str(tmp_path / "meta.tsv")},
        score={"metrics": ["sginal"]},
    )
    with pytest.raises(ConfigError) as caught:
        preflight(config, tmp_path / "run")
    message = str(caught.value)
    for part in ("meta.tsv does not exist", '"signal"'):
        assert part in message


def test_missing_weights_of_a_metric_are_a_reason_not_a_failure(tmp_path):
    report = preflight(make(tmp_path, score={"metrics": ["signal", "squim"]}), tmp_path / "run")
    (skipped,) = report["skipped_metrics"]
    assert skipped["name"] == "squim"
    assert "score.squim_weights" in skipped["reason"]


def test_a_full_disk_is_found_before_the_work(tmp_path, monkeypatch):
    config = make(tmp_path)
    (tmp_path / "corpus" / "a.wav").write_bytes(bytes(1000))
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="are needed; choose another outdir"):
        preflight(config, tmp_path / "run")


def test_a_missing_rnnoise_is_a_warning_that_names_the_package(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "pyrnnoise" else real(name, *a))
    report = preflight(make(tmp_path), tmp_path / "run")
    assert any("pip install pyrnnoise" in warning for warning in report["warnings"])
    assert report["enhancer"] == "spectral_gate"


def test_what_binds_the_jobs_is_named(tmp_path):
    report = preflight(make(tmp_path, score={"metrics": "light"}), tmp_path / "run")
    assert report["enhancer"] == "rnnoise"
    assert report["metric_groups"] == ["signal", "dnsmos_p808"]
    weights = {name: sha for name, sha in report["models"].items() if "/" in name}
    assert weights.keys() == {"silero-vad/silero_vad.jit", "speechmos/model_v8.onnx"}
    assert all(len(sha) == 64 for sha in weights.values())
    none = preflight(make(tmp_path, enhance={"level": "none"}), tmp_path / "run")
    assert none["enhancer"] == "none"


def test_a_node_without_a_group_fails_by_name(tmp_path, monkeypatch):
    found = preflight(make(tmp_path, score={"metrics": "light"}), tmp_path / "run")
    assert [group.name for group in load_found_groups(found, "cpu", None)] == ["signal", "dnsmos_p808"]
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "speechmos" else real(name, *a))
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    with (
        pytest.raises(SpeechmillError, match=r"node gpu-17 .* dnsmos_p808: .*pip install speechmos"),
        as_preflight_found(),
    ):
        load_found_groups(found, "cpu", None)


def test_a_node_with_other_weights_fails_by_name(tmp_path, monkeypatch):
    found = preflight(make(tmp_path, score={"metrics": "light"}), tmp_path / "run")
    found["models"]["speechmos/model_v8.onnx"] = "0" * 64
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    with pytest.raises(SpeechmillError, match=r"node gpu-17 .*speechmos/model_v8\.onnx"), as_preflight_found():
        load_found_groups(found, "cpu", None)


def test_a_group_that_is_installed_only_on_a_node_is_not_measured_there(tmp_path):
    found = preflight(make(tmp_path), tmp_path / "run")
    assert [group.name for group in load_found_groups(found, "cpu", None)] == ["signal"]


def test_the_file_of_an_earlier_version_is_refused(tmp_path):
    write_json(tmp_path / "preflight.json", {"metric_groups": ["signal"], "models": {}})
    with pytest.raises(SpeechmillError, match=r"an earlier version.*preflight\.json; delete it"):
        read_preflight(tmp_path / "preflight.json")
