"""The learned metrics: against the packages that their weights come from, and the independence of clips."""

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechmill.errors import ConfigError
from speechmill.metrics import ClipBatch, GroupUnavailable, load_groups
from speechmill.metrics import distillmos as distillmos_metrics
from speechmill.metrics import squim as squim_metrics
from speechmill.metrics.distillmos import load_distillmos
from speechmill.metrics.dnsmos import WINDOW, cut_windows, load_p808, load_p835, p808_features, window_starts
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
    rows = torch.stack(
        [torch.full((length + 7,), -1), torch.arange(length + 7).where(torch.arange(length + 7) < length, -1)]
    )
    batch = ClipBatch(rows, torch.tensor([0, length]), torch.zeros(2, 1))
    cut = cut_windows(batch, torch.tensor([1, 1]), torch.tensor([starts[0], starts[-1]]))
    for window, start in zip(cut.numpy(), (starts[0], starts[-1]), strict=True):
        assert np.array_equal(window, positions[start : start + WINDOW])
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
    clip = ten_seconds()[:WINDOW]
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


def test_distillmos_windows_end_in_zeros():
    clips = [np.arange(1, 200_001), np.arange(1, 1001)]
    batch = ClipBatch(
        torch.from_numpy(np.stack([clips[0], np.pad(clips[1], (0, 199_000), constant_values=-1)])).float(),
        torch.tensor([200_000, 1000]),
        torch.zeros(2, 1),
    )
    size = distillmos_metrics.WINDOW
    first, second = distillmos_metrics.cut_windows(
        batch, torch.tensor([1, 0]), torch.tensor([0, 200_000 - size])
    ).numpy()
    assert np.array_equal(first, np.pad(clips[1], (0, size - 1000)))
    assert np.array_equal(second, clips[0][-size:])


def test_every_call_has_the_same_number_of_windows_and_a_clip_the_mean_of_its_own():
    sizes = []

    def loudest(windows):
        sizes.append(len(windows))
        return torch.stack([windows.amax(1), len(windows) * windows.abs().amax(1)], 1)

    def starts(length):
        return range(0, length, 4000)

    class Group:
        def measure(self, clips):
            values = mean_over_windows(clips, starts, cut_windows, loudest, 2, 3)
            return {"x": values[:, 0], "y": values[:, 1]}

    clips = mixed_lengths()
    assert_alone_equals_in_a_batch(Group(), clips, draws=20)
    assert set(sizes) == {3}
    found = Group().measure(clip_batch(clips))["x"]
    for clip, value in zip(clips, found, strict=True):
        tiled = np.tile(clip, 2 + WINDOW // len(clip))
        expected = np.mean([tiled[start : start + WINDOW].max() for start in starts(len(clip))])
        assert value == pytest.approx(expected, rel=1e-6) if clip.any() else np.isnan(value)


def test_a_clip_alone_equals_itself_in_a_batch_p808(p808):
    assert_alone_equals_in_a_batch(p808, mixed_lengths())
    assert_alone_equals_in_a_batch(dataclasses.replace(p808, at_once=3, max_windows=None), mixed_lengths()[:3], 1)


def test_a_clip_alone_equals_itself_in_a_batch_p835(p835):
    assert_alone_equals_in_a_batch(dataclasses.replace(p835, max_windows=1), mixed_lengths()[1:3], 0)


def test_a_clip_alone_equals_itself_in_a_batch_distillmos(distillmos):
    speech = ten_seconds()
    clips = [speech[: 8 * RATE], speech[8000:12_800], speech[: 2 * RATE]]
    assert_alone_equals_in_a_batch(distillmos, clips, 0)
    assert_alone_equals_in_a_batch(dataclasses.replace(distillmos, at_once=2), clips[1:], 0)


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
    "problem", [ImportError("No module named 'torchaudio'"), OSError("libcudart.so.13: no such file")]
)
def test_what_needs_torchaudio_is_skipped_where_it_does_not_fit(problem, squim_weights, monkeypatch):
    """Its wheel does not import beside a torch that is built for another device."""

    class Refuses:
        def find_spec(self, name, *_):
            if name.startswith("torchaudio"):
                raise problem

    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchaudio", "distillmos")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    loaded, skipped = load_groups(["signal", "distillmos", "squim"], squim_weights=squim_weights)
    assert [group.name for group in loaded] == ["signal"]
    assert [skip.name for skip in skipped] == ["distillmos", "squim"]
    for skip in skipped:
        assert str(problem) in skip.reason
        assert "pip install 'speechmill[full]'" in skip.reason


@pytest.mark.parametrize(
    ("load", "package"),
    [(load_p808, "speechmos"), (load_p835, "speechmos"), (load_distillmos, "'speechmill\\[full\\]'")],
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
