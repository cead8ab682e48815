"""DNSMOS in torch: against onnxruntime on the files that its weights come from, and the independence of clips."""

import dataclasses
import importlib.util
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch

from speechmill.metrics import GroupUnavailable
from speechmill.metrics.distillmos import load_distillmos
from speechmill.metrics.dnsmos import (
    KNOWN_NETWORKS,
    WINDOW,
    DnsmosGroup,
    load_p808,
    load_p835,
    onnx_network,
    p808_features,
    p835_mos,
)
from speechmill.metrics.dnsmos_networks import P808Network, P835Network, onnx_weights

from .metric_clips import assert_alone_equals_in_a_batch, clip_batch, mixed_lengths, speech_clips, with_noise

MODELS = Path(importlib.util.find_spec("speechmos").origin).parent / "dnsmos_models"
WITHIN = 1e-4  # MOS


@pytest.fixture(scope="module")
def p808_in_torch():
    return P808Network(onnx_weights(MODELS / "model_v8.onnx")).eval()


@pytest.fixture(scope="module")
def p835_in_torch():
    return P835Network(onnx_weights(MODELS / "sig_bak_ovr.onnx")).eval()


def edge_windows() -> list[np.ndarray]:
    """Speech, also behind and before digital silence; noise, loud and hardly there; one sample; a constant; clipping."""
    speech = np.concatenate(speech_clips(6))[:WINDOW]
    half = np.arange(WINDOW) < WINDOW // 2
    noise = np.random.default_rng(0).standard_normal(WINDOW)
    return [
        speech,
        np.where(half, 0, speech),
        np.where(half, speech, 0),
        0.3 * noise,
        1e-5 * noise,
        np.eye(1, WINDOW, WINDOW - 1)[0],
        np.full(WINDOW, 0.25),
        np.clip(20 * speech, -1, 1),
    ]


def noisy_windows(count: int) -> list[np.ndarray]:
    speech = np.concatenate(speech_clips(20))
    starts = np.linspace(0, len(speech) - WINDOW, count).astype(int)
    snrs = np.linspace(-5, 40, count)
    return [
        with_noise(speech[start : start + WINDOW], snr, seed=i, pink=bool(i % 2))
        for i, (start, snr) in enumerate(zip(starts, snrs, strict=True))
    ]


def stacked(windows: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(windows).astype(np.float32))


@torch.inference_mode()
def test_p808_is_that_of_onnxruntime(p808_in_torch):
    reference = onnx_network(MODELS / "model_v8.onnx")
    for part in stacked(edge_windows() + noisy_windows(34)).split(6):
        features = p808_features(part)
        expected = reference(features)
        assert expected.shape == (len(part), 1)
        assert torch.allclose(p808_in_torch(features), expected, rtol=0, atol=WITHIN)


@torch.inference_mode()
def test_p835_is_that_of_onnxruntime(p835_in_torch):
    reference = onnx_network(MODELS / "sig_bak_ovr.onnx")
    edges = edge_windows()
    for window in stacked([edges[1], edges[5], *noisy_windows(2)]).split(1):
        expected = p835_mos(reference(window))
        assert expected.shape == (1, 3)
        assert torch.allclose(p835_mos(p835_in_torch(window)), expected, rtol=0, atol=WITHIN)


def test_a_clip_alone_equals_itself_in_a_batch_in_torch(p808_in_torch, p835_in_torch):
    clips = mixed_lengths()
    p808 = DnsmosGroup("dnsmos_p808", lambda windows: p808_in_torch(p808_features(windows)), {}, at_once=5)
    assert_alone_equals_in_a_batch(p808, clips, draws=1)
    p835 = DnsmosGroup("dnsmos_p835", lambda windows: p835_mos(p835_in_torch(windows)), {}, at_once=2, max_windows=1)
    assert_alone_equals_in_a_batch(p835, clips[2:4], draws=0)


def test_a_gpu_gets_the_networks_in_torch_and_calls_of_many_windows(monkeypatch):
    """As far as a CPU can tell: it stands in for the device."""
    clips = clip_batch(mixed_lengths()[1:3])
    expected = load_p808("cpu").measure(clips)["dnsmos_p808"]
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)
    monkeypatch.setattr("speechmill.metrics.windows.is_large", lambda device: True)
    monkeypatch.delattr("onnxruntime.InferenceSession")
    group = load_p808("cuda:0")
    assert group.at_once == load_p835("cuda:0").at_once == load_distillmos("cuda:0").at_once == 32
    assert np.abs(group.measure(clips)["dnsmos_p808"] - expected).max() < WITHIN
    assert group.versions == {"speechmos/model_v8.onnx": KNOWN_NETWORKS["model_v8.onnx"]}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("load", [load_p808, load_p835, load_distillmos])
def test_on_a_gpu_a_clip_alone_equals_itself_in_a_batch_and_on_a_cpu(load):
    clips = mixed_lengths()[:4]
    group = load("cuda")

    class OnDevice:
        def measure(self, batch):
            tensors = {field.name: getattr(batch, field.name).cuda() for field in dataclasses.fields(batch)}
            return group.measure(dataclasses.replace(batch, **tensors))

    assert_alone_equals_in_a_batch(OnDevice(), clips)
    batch = clip_batch(clips)
    for name, expected in load("cpu").measure(batch).items():
        assert np.abs(OnDevice().measure(batch)[name] - expected).max() < WITHIN


def test_an_unknown_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "dnsmos_models").mkdir()
    (tmp_path / "__init__.py").touch()
    find_spec = importlib.util.find_spec
    elsewhere = ModuleSpec("speechmos", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: elsewhere if name == "speechmos" else find_spec(name))
    with pytest.raises(GroupUnavailable, match=r"model_v8\.onnx.*no such file.*pip install speechmos=="):
        load_p808("cpu")
    shutil.copy(MODELS / "bak_ovr.onnx", tmp_path / "dnsmos_models" / "sig_bak_ovr.onnx")
    with pytest.raises(GroupUnavailable, match=r"sig_bak_ovr\.onnx.*sha256 [0-9a-f]{64}.*pip install speechmos=="):
        load_p835("cpu")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_the_packages_of_both_devices_are_needed_on_each(package, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(GroupUnavailable, match=rf"pip install {package}\)"):
        load_p808("cpu")
