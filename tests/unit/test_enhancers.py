"""The denoisers: what they gain on real speech in noise, and that neither padding nor batch-mates touch a clip."""

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechmill.audio.resample import resample
from speechmill.enhance import LEVELS_DB, available_enhancer, limit_attenuation, load_enhancer
from speechmill.enhance.rnnoise import RNNoise
from speechmill.enhance.spectral_gate import SpectralGate
from speechmill.errors import SpeechmillError
from tests.unit.enhancing import enhance
from tests.unit.metric_clips import speech_clips

ENHANCERS = [RNNoise(), SpectralGate(), SpectralGate(16_000), SpectralGate(8_000)]
every_enhancer = pytest.mark.parametrize("enhancer", ENHANCERS, ids=lambda e: f"{e.name}-{e.native_rate}")


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019)."""
    scaled = reference * (estimate @ reference) / (reference @ reference)
    return float(10 * np.log10(scaled @ scaled / ((estimate - scaled) @ (estimate - scaled))))


def speech(rate: int, count: int = 4) -> list[np.ndarray]:
    return [resample(clip, 16_000, rate) for clip in speech_clips(count)]


def with_noise(clip: np.ndarray, snr_db: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(len(clip))
    level = np.sqrt(np.mean(clip**2)) * 10 ** (-snr_db / 20)
    return (clip + level * noise).astype(np.float32)


@pytest.mark.parametrize(("enhancer", "gain"), [(ENHANCERS[0], 6.0), (ENHANCERS[1], 3.0), (ENHANCERS[2], 3.0)])
def test_noise_is_removed_and_time_stays(enhancer, gain):
    clean = speech(enhancer.native_rate)
    noisy = [with_noise(clip, 5) for clip in clean]
    gains = [si_sdr(c, e) - si_sdr(c, n) for c, n, e in zip(clean, noisy, enhance(enhancer, noisy), strict=True)]
    assert np.mean(gains) > gain


def test_rnnoise_keeps_the_phase_of_clean_speech():
    """With the phase that the library's high-pass leaves, these are 16 dB."""
    clean = speech(48_000, 6)
    assert np.mean([si_sdr(c, e) for c, e in zip(clean, enhance(RNNoise(), clean), strict=True)]) > 20


def test_rnnoise_gives_the_same_bytes_in_any_batch():
    clips = [with_noise(clip, 10) for clip in speech(48_000)]
    clips.append(clips[0][:10_001])
    together = enhance(RNNoise(), clips)
    for clip, result in zip(clips, together, strict=True):
        assert enhance(RNNoise(), [clip])[0].tobytes() == result.tobytes()


@pytest.mark.parametrize("gate", ENHANCERS[1:], ids=lambda gate: str(gate.native_rate))
def test_the_gate_s_result_does_not_depend_on_the_batch(gate):
    clips = [with_noise(clip, 10) for clip in speech(gate.native_rate)]
    clips.append(clips[0][: gate.native_rate // 4 + 1])
    for clip, together in zip(clips, enhance(gate, clips), strict=True):
        np.testing.assert_array_equal(enhance(gate, [clip])[0], together)


@pytest.mark.parametrize("block", [1, 7, 100, 100_000])
def test_the_gate_in_blocks_is_the_gate_in_one(block):
    clips = [with_noise(clip, 10) for clip in speech(16_000)]
    whole = enhance(SpectralGate(16_000), clips)
    for expected, found in zip(whole, enhance(SpectralGate(16_000, block), clips), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_gate_without_noise_to_remove_changes_nothing(monkeypatch):
    monkeypatch.setattr(SpectralGate, "_gain", lambda self, smooth, *_: torch.ones(()))
    clips = [with_noise(clip, 10) for clip in speech(16_000)]
    for clip, found in zip(clips, enhance(SpectralGate(16_000, 50), clips), strict=True):
        np.testing.assert_allclose(found, clip, atol=1e-6)


@every_enhancer
@pytest.mark.parametrize("size", [1, 479, 480, 481, 960, 2000])
def test_short_clips_and_silence(enhancer, size):
    noise = np.random.default_rng(1).uniform(-1, 1, size).astype(np.float32)
    short, silent, empty = enhance(enhancer, [noise, np.zeros(size, np.float32), np.zeros(0, np.float32)])
    assert np.isfinite(short).all()
    assert np.abs(short).max() <= 2
    assert (silent == 0).all()
    assert empty.shape == (0,)


@every_enhancer
def test_an_enhancer_names_itself(enhancer):
    assert enhancer.name
    assert enhancer.version
    assert enhancer.weights_sha256 is None or len(enhancer.weights_sha256) == 64


@given(st.sampled_from(sorted(LEVELS_DB)), st.floats(-1, 1, width=32))
def test_a_level_limits_the_attenuation(level, value):
    original = torch.full((1, 4), value)
    limited = limit_attenuation(original, torch.zeros(1, 4), level)
    torch.testing.assert_close(limited, original * 10 ** (-LEVELS_DB[level] / 20))
    torch.testing.assert_close(limit_attenuation(original, original, level), original)


def test_enhancers_by_name():
    assert load_enhancer("none") is None
    assert [load_enhancer(name).name for name in ("rnnoise", "spectral_gate")] == ["rnnoise", "spectral_gate"]
    with pytest.raises(SpeechmillError, match="'denoiser' is not known"):
        load_enhancer("denoiser")


def test_the_gate_takes_rnnoise_s_place_visibly_and_never_in_a_job(monkeypatch):
    section = {"enhancer": "rnnoise", "level": "light"}
    assert available_enhancer(section) == ("rnnoise", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    name, warning = available_enhancer(section)
    assert name == "spectral_gate"
    assert "pip install pyrnnoise" in warning
    with pytest.raises(SpeechmillError, match="pip install pyrnnoise"):
        load_enhancer("rnnoise")
    assert available_enhancer(section | {"level": "none"}) == ("none", None)
    assert available_enhancer(section | {"enhancer": "spectral_gate"}) == ("spectral_gate", None)
