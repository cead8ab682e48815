"""The signal metrics: against formulas written out, known defects made here, and the independence of clips."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechmill.metrics import INPUT_METRICS, ClipBatch, clip_ratio, dc_offset, measure_input_signal, peak_dbfs
from speechmill.metrics import signal as signal_metrics
from speechmill.metrics.signal import (
    SignalGroup,
    bandwidth_hz,
    masked_quantile,
    reverb_decay_db_s,
    speech_ratio,
    vad_snr_db,
)

from .metric_clips import (
    RATE,
    assert_alone_equals_in_a_batch,
    clip_batch,
    mixed_lengths,
    same,
    speech_clips,
    with_noise,
    with_rubbish_behind,
)


def snr_of(clips):
    batch = clip_batch(clips)
    return vad_snr_db(batch.samples, batch.lengths, batch.speech_probabilities).numpy()


def decay_of(clips):
    batch = clip_batch(clips)
    return reverb_decay_db_s(batch.samples, batch.lengths).numpy()


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=1, max_size=30), st.floats(0, 1))
def test_masked_quantile_is_numpys_over_the_valid(items, quantile):
    values, valid = (np.array(column) for column in zip(*items, strict=True))
    found = masked_quantile(torch.from_numpy(values), torch.from_numpy(valid), quantile).item()
    expected = np.quantile(values[valid], quantile) if valid.any() else np.nan
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_a_clip_alone_equals_itself_in_a_batch():
    random = np.random.default_rng(1)
    clips = [clip[: random.integers(300, 30_000)] for clip in speech_clips(8)]
    assert_alone_equals_in_a_batch(SignalGroup(), [*mixed_lengths(), *clips, clips[0][:1536]], draws=12)


def test_what_stands_behind_a_clips_end_is_not_measured():
    batch = clip_batch(mixed_lengths())
    clean, rubbish = (SignalGroup().measure(clips) for clips in (batch, with_rubbish_behind(batch)))
    for name, values in clean.items():
        assert same(values, rubbish[name]), name


def test_sums_are_the_same_however_many_zeros_follow():
    """torch's own sum is not: in one of a few hundred clips that showed in the last bit of the SNR."""
    values = torch.from_numpy(np.random.default_rng(0).random((200, 250)))
    padded = [torch.nn.functional.pad(values, (0, extra)) for extra in (1, 7, 30, 263)]
    assert all(torch.equal(signal_metrics.sum_in_order(values), signal_metrics.sum_in_order(more)) for more in padded)
    assert not all(torch.equal(values.sum(1), more.sum(1)) for more in padded)
    torch.testing.assert_close(signal_metrics.sum_in_order(values), values.sum(1))


def test_neither_convolutions_nor_products_run_in_tf32(monkeypatch):
    flags = []

    def watch(owner, name):
        real = getattr(owner, name)

        def watched(*arguments, **options):
            flags.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic))
            assert torch.get_float32_matmul_precision() == "highest"
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(torch.nn.functional, "conv1d")
    watch(torch.nn.LSTM, "forward")
    watch(torch, "addmm")
    SignalGroup().measure(clip_batch(mixed_lengths()[:1]))  # the batch brings Silero's network with it
    assert len(flags) > 3
    assert set(flags) == {(False, True)}


def test_the_size_of_spectrum_blocks_changes_nothing(monkeypatch):
    batch = clip_batch(mixed_lengths())
    whole = SignalGroup().measure(batch)
    monkeypatch.setattr(signal_metrics, "SPECTRUM_BLOCK", 10_000)
    for name, values in SignalGroup().measure(batch).items():
        assert same(whole[name], values), name


@pytest.mark.parametrize("pink", [False, True])
def test_snr_follows_the_true_snr(pink):
    clips = speech_clips(6)
    true = np.array([0, 5, 10, 15, 20])
    found = np.array([snr_of([with_noise(clip, snr, seed=snr, pink=pink) for clip in clips]) for snr in true])
    assert np.all(np.diff(found, axis=0) > 2)
    assert np.abs(found - true[:, None]).mean() < 3


def test_snr_of_a_clip_without_speech_cannot_be_measured():
    noise = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    probabilities = torch.zeros(2, 32)
    probabilities[1] = 1
    snr = vad_snr_db(noise, torch.tensor([RATE, RATE]), probabilities)
    assert torch.isnan(snr[0])
    assert snr[1] < 0  # stationary noise that the VAD took for speech


@given(st.lists(st.sampled_from([0.0, 0.3, 0.9985, 0.9995, 1.0, -1.0]), min_size=1, max_size=40))
def test_clip_ratio_counts_samples_in_runs_at_the_peak(samples):
    peak = max(map(abs, samples))
    runs = [(key, len(list(run))) for key, run in itertools.groupby(samples, lambda s: abs(s) >= 0.999 * peak > 0)]
    clipped = sum(length for near, length in runs if near and length >= 3)
    assert clip_ratio(np.array(samples, np.float32)) == pytest.approx(clipped / len(samples))


def test_clip_ratio_rises_with_the_gain_and_survives_attenuation():
    for clip in speech_clips(4):
        loud = clip / np.abs(clip).max()
        ratios = [clip_ratio(np.clip(loud * gain, -1, 1)) for gain in (1, 1.5, 2, 4, 8)]
        assert ratios[0] == 0
        assert all(a < b or a == b == 0 for a, b in itertools.pairwise(ratios))
        assert ratios[-1] > 0.1
        assert clip_ratio(0.25 * np.clip(loud * 8, -1, 1)) == pytest.approx(ratios[-1], rel=1e-3)


@pytest.mark.parametrize("cutoff", [2000, 3400, 5000, 7000])
def test_bandwidth_of_low_passed_noise(cutoff):
    noise = np.random.default_rng(cutoff).standard_normal(3 * RATE)
    limited = 0.05 * scipy.signal.lfilter(scipy.signal.firwin(801, cutoff, fs=RATE, window="blackman"), 1, noise)
    batch = clip_batch([limited, limited * 0.01, limited + 0.3])  # neither level nor offset matters
    found = bandwidth_hz(batch.samples, batch.lengths)
    assert torch.all(torch.abs(found - cutoff) < 150)


def test_decay_is_slower_in_more_reverberant_rooms():
    rng = np.random.default_rng(3)
    medians = [np.median(decay_of(speech_clips(6)))]
    for rt60 in (0.2, 0.4, 0.8, 1.6):
        time = np.arange(int(rt60 * RATE)) / RATE
        room = rng.standard_normal(len(time)) * 0.1 * 10 ** (-3 * time / rt60)
        room[0] = 1
        medians.append(np.median(decay_of([scipy.signal.fftconvolve(c, room)[: len(c)] for c in speech_clips(6)])))
    assert all(a > 1.1 * b for a, b in itertools.pairwise(medians))
    assert 60 / 1.6 < medians[-1] < 3 * 60 / 1.6


def test_decay_does_not_depend_on_the_level():
    clips = speech_clips(3)
    assert same(decay_of(clips), decay_of([0.05 * clip for clip in clips]))


def test_speech_ratio_is_the_share_of_chunks():
    probabilities = torch.tensor([[0.9, 0.4, 0.6, 0.0], [0.9, 0.0, 0.0, 0.0]])
    assert speech_ratio(torch.tensor([4 * 512, 300]), probabilities).tolist() == [0.5, 1.0]


def test_level_of_one_clip():
    assert peak_dbfs(np.array([0.1, -0.5], np.float32)) == pytest.approx(-6.0206, abs=1e-3)
    assert dc_offset(np.array([-0.1, -0.3], np.float32)) == pytest.approx(0.2)
    assert clip_ratio(np.zeros(100, np.float32)) == 0
    assert np.isnan(peak_dbfs(np.zeros(100, np.float32)))
    nothing = np.zeros(0, np.float32)
    assert np.isnan([peak_dbfs(nothing), dc_offset(nothing), clip_ratio(nothing)]).all()


def test_clip_ratio_of_one_clip_is_that_of_the_batch():
    clips = [np.clip(3 * clip, -0.5, 0.5) for clip in speech_clips(3)]
    assert same(SignalGroup().measure(clip_batch(clips))["clip_ratio"], np.array([clip_ratio(clip) for clip in clips]))


def test_input_metrics_are_those_of_the_group_and_declared():
    batch = clip_batch(speech_clips(2))
    measured = measure_input_signal(batch)
    assert measured.keys() == INPUT_METRICS.keys() - {
        "input_clip_ratio",
        "input_peak_dbfs",
        "input_dc_offset",
        "input_channel_correlation",
    }
    for name, values in SignalGroup().measure(batch).items():
        if name != "clip_ratio":
            assert np.array_equal(measured[f"input_{name}"], values)


def test_speech_lies_within_the_declared_ranges():
    batch = clip_batch([with_noise(clip, snr, seed=1) for clip in speech_clips(3) for snr in (-5, 40)])
    values = SignalGroup().measure(batch)
    for metric in SignalGroup().metrics:
        assert np.all((values[metric.name] >= metric.low) & (values[metric.name] <= metric.high)), metric.name


def test_degenerate_clips_give_a_number_or_nan_and_no_warning():
    rng = np.random.default_rng(0)
    clips = [
        np.zeros(RATE),
        np.zeros(100),
        np.zeros(0),
        np.ones(RATE),
        np.eye(1, RATE)[0],
        1e-7 * rng.standard_normal(RATE),
    ]
    clips += [rng.standard_normal(length) for length in (1, 511, 512, 700, 4800)]
    for clip in clips:
        for members in ([clip], [clip, *speech_clips(1)]):
            batch = clip_batch(members)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                values = SignalGroup().measure(batch)
            assert not any(np.isinf(column).any() for column in values.values())
    silent = SignalGroup().measure(ClipBatch(torch.zeros(1, 5120), torch.tensor([5000]), torch.zeros(1, 10)))
    assert [name for name, value in silent.items() if not np.isnan(value[0])] == ["speech_ratio", "clip_ratio"]
