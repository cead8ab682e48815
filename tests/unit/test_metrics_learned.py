"""The learned metrics: against the packages that their weights come from, and the independence of clips."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechmill.errors import ConfigError
from speechmill.metrics import GroupUnavailable, load_groups
from speechmill.metrics import squim as squim_metrics
from speechmill.metrics.distillmos import load_distillmos
from speechmill.metrics.dnsmos import WINDOW, cut_window, load_p808, load_p835, p808_features, window_starts
from speechmill.metrics.squim import load_squim
from speechmill.metrics.windows import mean_over_windows

from .metric_clips import (
    RATE,
    assert_alone_equals_in_a_batch,
    clip_batch,
    mixed_lengths,
    same,
    speech_clips,
    with_noise,
)


@pytest.fixture(scope="module")
def p808():
    return load_p808("cpu")


@pytest.fixture(scope="module")
def p835():
    return load_p835("cpu")


@pytest.fixture(scope="module")
def distillmos():
    return load_distillmos("cpu")


@pytest.fixture(scope="module")
def squim_weights(tmp_path_factory):
    from torchaudio.models import squim_objective_base

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("squim") / "random.pth"
    torch.save(squim_objective_base().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def squim(squim_weights):
    return load_squim("cpu", squim_weights)


def ten_seconds() -> np.ndarray:
    return np.concatenate(speech_clips(4))[: 10 * RATE]


@given(st.integers(1, 40 * RATE))
def test_windows_are_those_of_speechmos(length):
    # The loop of speechmos.dnsmos.DNSMOS.__call__, on positions instead of samples.
    positions = np.arange(length)
    while len(positions) < WINDOW:
        positions = np.append(positions, positions)
    hops = int(np.floor(len(positions) / RATE) - 9.01) + 1
    starts = list(window_starts(length, None))
    assert starts == [hop * RATE for hop in range(hops)]
    clip = torch.arange(length)
    assert np.array_equal(cut_window(clip, starts[-1]), positions[starts[-1] : starts[-1] + WINDOW])
    capped = list(window_starts(length))
    assert capped == ([starts[0], starts[-1]] if hops > 1 else starts)


def test_dnsmos_in_a_batch_is_speechmos_alone(p808, p835):
    from speechmos import dnsmos

    clips = [ten_seconds(), with_noise(speech_clips(1)[0], 5, seed=2)[:9700]]
    batch = clip_batch(clips)
    found = p808.measure(batch) | dataclasses.replace(p835, at_once=2).measure(batch)
    names = {"dnsmos_p808": "p808_mos", "dnsmos_sig": "sig_mos", "dnsmos_bak": "bak_mos", "dnsmos_ovrl": "ovrl_mos"}
    for i, clip in enumerate(clips):
        expected = dnsmos.run(np.clip(clip, -1, 1), RATE)
        for ours, theirs in names.items():
            assert found[ours][i] == pytest.approx(expected[theirs], abs=2e-4), ours
    assert np.all(found["dnsmos_ovrl"][0] > found["dnsmos_ovrl"][1] + 0.5)


def test_p808_input_is_that_of_speechmos():
    from speechmos.dnsmos import DNSMOS

    rng = np.random.default_rng(0)
    clip = cut_window(torch.from_numpy(ten_seconds()), 0).numpy()
    windows = np.stack([clip, 1e-4 * clip, with_noise(clip, 0, seed=3), 0.1 * rng.standard_normal(WINDOW)]).astype(
        np.float32
    )
    expected = np.stack([DNSMOS.audio_melspec(None, window[:-160]) for window in windows])
    found = p808_features(torch.from_numpy(windows)).numpy()
    assert found.shape == expected.shape == (4, 900, 120)
    assert np.abs(found - expected).max() < 1e-3


def test_distillmos_in_a_batch_is_its_package_alone(distillmos):
    from distillmos import ConvTransformerSQAModel

    package = ConvTransformerSQAModel().eval()
    speech = speech_clips(1)[0]
    clips = [ten_seconds()[: 8 * RATE], speech[8000:12_800], speech[: 2 * RATE]]
    found = distillmos.measure(clip_batch(clips))["distillmos"]
    with torch.inference_mode():
        expected = [float(package(torch.from_numpy(clip)[None])) for clip in clips]
    assert same(found, np.array(expected), relative=1e-5)


def test_windows_of_two_clips_never_share_a_call():
    def meddling(windows):
        return windows.mean(1) + windows.sum() + len(windows)  # each window's result depends on all of its call

    class Group:
        def measure(self, clips):
            return {"x": mean_over_windows(clips, lambda n: range(0, n, 4000), cut_window, meddling, 1, 3)[:, 0]}

    assert_alone_equals_in_a_batch(Group(), mixed_lengths(), draws=20)


def test_a_clip_alone_equals_itself_in_a_batch_p808(p808):
    assert_alone_equals_in_a_batch(p808, mixed_lengths())
    assert_alone_equals_in_a_batch(dataclasses.replace(p808, at_once=3, max_windows=None), mixed_lengths()[:3], 1)


def test_a_clip_alone_equals_itself_in_a_batch_p835(p835):
    assert_alone_equals_in_a_batch(dataclasses.replace(p835, max_windows=1), mixed_lengths()[1:3], 0)


def test_a_clip_alone_equals_itself_in_a_batch_distillmos(distillmos):
    speech = ten_seconds()
    assert_alone_equals_in_a_batch(distillmos, [speech[: 8 * RATE], speech[8000:12_800], speech[: 2 * RATE]], 1)


def test_a_clip_alone_equals_itself_in_a_batch_squim(squim):
    speech = speech_clips(1)[0]
    clips = [speech[:RATE], speech[8000:12_800], np.zeros(2 * RATE, np.float32)]
    assert_alone_equals_in_a_batch(squim, clips, 2)


def test_p808_and_distillmos_rise_with_the_snr(p808, distillmos):
    clip = speech_clips(1)[0]
    batch = clip_batch([with_noise(clip, snr, seed=snr, pink=True) for snr in (0, 15, 30)])
    for values in (p808.measure(batch)["dnsmos_p808"], distillmos.measure(batch)["distillmos"]):
        assert np.all(np.diff(values) > 0.1)


def test_silence_is_not_scored_and_degenerate_clips_are_finite(p808, distillmos, squim):
    batch = clip_batch([np.zeros(RATE), np.zeros(0), np.ones(4800), np.eye(1, 4800)[0], speech_clips(1)[0][:4800]])
    for group in (p808, distillmos, squim):
        for values in group.measure(batch).values():
            assert np.isnan(values).tolist() == [True, True, False, False, False]
            assert not np.isinf(values).any()


def test_squim_is_torchaudios(squim, monkeypatch):
    monkeypatch.setattr(squim_metrics, "MAX_PART", RATE)
    clip, long = speech_clips(1)[0][:RATE], speech_clips(1)[0][: RATE + 8001]
    found = squim.measure(clip_batch([clip, long]))
    halves = [half.copy() for half in np.array_split(long, 2)]
    with torch.inference_mode():
        expected = [[float(score) for score in squim.model(torch.from_numpy(part)[None])] for part in (clip, *halves)]
    for i, name in enumerate(("squim_stoi", "squim_pesq", "squim_si_sdr")):
        assert found[name][0] == pytest.approx(expected[0][i], rel=1e-5)
        assert found[name][1] == pytest.approx((expected[1][i] + expected[2][i]) / 2, rel=1e-5)


def test_squim_without_weights_is_skipped_and_with_bad_ones_refused(tmp_path, squim_weights):
    loaded, skipped = load_groups(["squim"])
    assert not loaded
    assert "score.squim_weights" in skipped[0].reason
    with pytest.raises(ConfigError, match="does not exist"):
        load_groups(["squim"], squim_weights=tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("text.pth", "other.pth"):
        with pytest.raises(ConfigError, match=name):
            load_squim("cpu", tmp_path / name)
    assert [group.name for group in load_groups(["squim"], squim_weights=str(squim_weights))[0]] == ["squim"]


@pytest.mark.parametrize(
    ("load", "package"), [(load_p808, "speechmos"), (load_p835, "speechmos"), (load_distillmos, "distillmos")]
)
def test_a_missing_package_is_named(load, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GroupUnavailable, match=f"pip install {package}"):
        load("cpu")


def test_groups_declare_what_they_measure_and_the_hashes_of_their_weights(p808, p835, distillmos, squim):
    batch = clip_batch([np.zeros(RATE)])
    for group in (p808, p835, distillmos, squim):
        assert list(group.measure(batch)) == [metric.name for metric in group.metrics]
        assert all(len(sha256) == 64 for sha256 in group.versions.values())
