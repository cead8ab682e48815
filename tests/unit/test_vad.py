"""Voice activity against the silero-vad package itself, on real speech in noise."""

import builtins
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechmill.audio import vad as vad_module
from speechmill.audio.vad import CHUNK, RATE, SileroVad, VadOptions, longest_pause_s, speech_seconds, speech_segments
from speechmill.engine.batches import length_batches
from speechmill.engine.tensors import pad
from speechmill.errors import SpeechmillError
from tests.unit.metric_clips import compositions, speech_clips


@pytest.fixture(scope="module")
def package():
    """silero_vad, whose import would leave torch on one thread for all other tests."""
    threads = torch.get_num_threads()
    import silero_vad

    yield silero_vad  # on one thread, as it wants: more only wait for each other over so small steps
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def vad() -> SileroVad:
    return SileroVad()


@pytest.fixture(scope="module")
def noisy_clips() -> list[np.ndarray]:
    """24 prompts in white noise at -5 to 30 dB."""
    rng = np.random.default_rng(0)
    clips = []
    for clip in speech_clips(24, 1.5, 6.0):
        level = np.sqrt(np.mean(clip**2)) * 10 ** (-rng.uniform(-5, 30) / 20)
        clips.append((clip + level * rng.standard_normal(len(clip))).astype(np.float32))
    return clips


@pytest.fixture(scope="module")
def probabilities(vad, noisy_clips) -> list[np.ndarray]:
    """Of each clip in one batch of mixed lengths."""
    batch, lengths = pad(noisy_clips, "cpu")
    rows = vad.probabilities(batch, lengths).numpy()
    return [row[: -(-len(clip) // CHUNK)] for row, clip in zip(rows, noisy_clips, strict=True)]


def test_probabilities_and_segments_are_the_package_s(package, noisy_clips, probabilities):
    model = package.load_silero_vad()
    found = 0
    for clip, mine in zip(noisy_clips, probabilities, strict=True):
        model.reset_states()
        chunks = torch.from_numpy(np.pad(clip, (0, -len(clip) % CHUNK))).split(CHUNK)
        theirs = np.array([model(chunk, 16_000).item() for chunk in chunks])
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
        stamps = package.get_speech_timestamps(torch.from_numpy(clip), model)
        segments = speech_segments(mine, len(clip))
        assert segments == [(stamp["start"], stamp["end"]) for stamp in stamps]
        found += len(segments)
    assert found >= 24


def test_segments_of_500_clips_are_the_package_s(package, vad):
    """Half a second to 1.25 s each, of running speech, every second one in noise; in batches."""
    model = package.load_silero_vad()
    random = np.random.default_rng(5)
    speech = np.concatenate(speech_clips(100, 1.5, 6.0))
    clips = []
    for number in range(500):
        size = int(random.integers(8_000, 20_000))
        start = int(random.integers(0, len(speech) - size))
        noise = random.standard_normal(size) * 10 ** random.uniform(-3, -1) * (number % 2)
        clips.append((speech[start : start + size] + noise).astype(np.float32))
    found: list[list[tuple[int, int]]] = [[]] * len(clips)
    for group in length_batches([len(clip) for clip in clips], 60 * RATE):
        rows = vad.probabilities(*pad([clips[i] for i in group], "cpu")).numpy()
        for i, row in zip(group, rows, strict=True):
            found[i] = speech_segments(row[: -(-len(clips[i]) // CHUNK)], len(clips[i]))
    for clip, segments in zip(clips, found, strict=True):
        stamps = package.get_speech_timestamps(torch.from_numpy(clip), model)
        assert segments == [(stamp["start"], stamp["end"]) for stamp in stamps]
    assert sum(map(len, found)) > 400


@pytest.mark.parametrize(("threads", "block"), [(1, None), (2, None), (1, (4, 16))])
def test_batch_mates_change_no_bit(vad, noisy_clips, probabilities, monkeypatch, threads, block):
    """Nor do they with the LSTM in blocks, as on GPUs, which changes nothing but rounding."""
    monkeypatch.setitem(vad_module.LSTM_BLOCK, "cpu", block)
    row = vad.probabilities(*pad(noisy_clips[:1], "cpu"))[0].numpy()
    np.testing.assert_allclose(row, probabilities[0], atol=1e-5)
    random = np.random.default_rng(3)
    clips = [clip[: random.integers(300, 20_000)] for clip in noisy_clips[:12]] + [noisy_clips[0][:400]]
    alone: dict[int, np.ndarray] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for members in compositions(len(clips), 20):
        rows = vad.probabilities(*pad([clips[i] for i in members], "cpu")).numpy()
        for i, row in zip(members, rows, strict=True):
            own = row[: -(-len(clips[i]) // CHUNK)]
            assert np.array_equal(alone.setdefault(i, own), own), members
    torch.set_num_threads(before)


def test_nothing_is_spoken_after_a_clip_s_end(vad, noisy_clips):
    batch, lengths = pad(noisy_clips[:3], "cpu")
    rows = vad.probabilities(batch, lengths)
    assert rows.shape == (3, -(-batch.shape[1] // CHUNK))
    for row, length in zip(rows, lengths.tolist(), strict=True):
        assert (row[-(-length // CHUNK) :] == 0).all()
        assert (row[: -(-length // CHUNK)] > 0).all()


def test_an_empty_clip_among_others(vad, noisy_clips):
    batch, lengths = pad([noisy_clips[0], np.zeros(0, np.float32)], "cpu")
    assert (vad.probabilities(batch, lengths)[1] == 0).all()


@settings(max_examples=200)
@given(
    values=st.lists(st.sampled_from([0.0, 0.2, 0.34, 0.36, 0.49, 0.5, 0.7, 1.0]), max_size=80),
    cut=st.integers(0, CHUNK - 1),
    threshold=st.sampled_from([0.1, 0.3, 0.5, 0.8]),
    min_speech=st.sampled_from([0, 32, 100, 250]),
    min_silence=st.sampled_from([0, 30, 100, 300]),
    pad_ms=st.sampled_from([0, 30, 31, 150, 400]),
)
def test_segments_of_any_probabilities(package, values, cut, threshold, min_speech, min_silence, pad_ms):
    samples = max(0, len(values) * CHUNK - cut)
    stamps = package.utils_vad.get_speech_timestamps_from_probs(
        values,
        threshold=threshold,
        min_speech_duration_ms=min_speech,
        min_silence_duration_ms=min_silence,
        speech_pad_ms=pad_ms,
        audio_length_samples=samples,
    )
    mine = speech_segments(np.array(values), samples, VadOptions(threshold, min_speech, min_silence, pad_ms))
    assert mine == [(stamp["start"], stamp["end"]) for stamp in stamps]


def test_lengths_of_speech_and_pauses():
    segments = [(0, 16_000), (24_000, 32_000), (36_000, 40_000)]
    assert speech_seconds(segments) == 1.75
    assert longest_pause_s(segments) == 0.5
    assert longest_pause_s(segments[:1]) == longest_pause_s([]) == speech_seconds([]) == 0


def test_the_package_is_not_imported(monkeypatch):
    load = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert not name.startswith("silero_vad")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    SileroVad()


def test_an_unknown_network_is_refused(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "silero_vad.jit").write_bytes(b"another network")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(SpeechmillError, match=r"silero-vad \d.*not a known.*pip install silero-vad==6\.2\.3"):
        SileroVad()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpeechmillError, match="not installed"):
        SileroVad()
