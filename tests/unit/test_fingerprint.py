"""Fingerprints of the demo's prompts and of their copies, bit by bit."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from speechmill.dedup import fingerprint as module
from speechmill.dedup.fingerprint import BYTES, RATE, WORDS, fingerprint, words_of

ROOT = Path(__file__).parents[2]


def load_by_path(path: Path):
    """A program outside of the package as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PROMPTS = [p.samples.astype(np.float32) for p in load_by_path(ROOT / "demo" / "build.py").load_prompts()]
copies = load_by_path(ROOT / "benchmarks" / "near_duplicates.py").COPIES_OF


def errors(one: np.ndarray, other: np.ndarray) -> float:
    """Share of bits that differ."""
    a, b = words_of([fingerprint(one), fingerprint(other)])
    return np.unpackbits((a ^ b).view(np.uint8)).mean()


def test_it_has_a_fixed_size_and_is_the_same_every_time():
    for samples in PROMPTS[:3]:
        first = fingerprint(samples)
        assert isinstance(first, bytes)
        assert len(first) == BYTES <= 400
        assert fingerprint(samples.copy()) == first
        assert fingerprint(samples.astype(np.float64)) == first
    assert len(fingerprint(np.concatenate(PROMPTS)[: 60 * RATE])) == BYTES


def test_words_are_what_the_bytes_say():
    print_ = fingerprint(PROMPTS[0])
    words = words_of([print_, print_])
    assert words.shape == (2, WORDS)
    assert words[1, 3] == int.from_bytes(print_[12:16], "little")
    assert words_of([]).shape == (0, WORDS)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("MP3 44.1 kHz, 32 kbit/s", 0.1),
        ("Ogg Vorbis 48 kHz, 45 kbit/s", 0.1),
        ("Opus 46 kbit/s", 0.1),
        ("8 kHz", 0.01),
        ("22.05 kHz", 0.01),
        ("-12 dB", 0.01),
        ("100 ms added at the start", 0.01),
        ("37 and 90 ms added", 0.03),
        ("50 ms cut off the start", 0.05),
    ],
)
def test_a_copy_has_nearly_the_same_bits(kind, limit):
    for samples in PROMPTS[::20]:
        assert errors(samples, copies[kind](samples)) <= limit


def test_of_different_sentences_half_of_the_bits_differ():
    words = words_of([fingerprint(samples) for samples in PROMPTS])
    shares = [np.bitwise_count(words[i] ^ words[i + 1 :]).mean(axis=1) / 32 for i in range(len(words) - 1)]
    assert 0.48 < np.concatenate(shares).mean() < 0.52
    assert np.concatenate(shares).min() > 0.2


def test_speech_has_the_same_bits_wherever_it_stands():
    speech = PROMPTS[5]
    random = np.random.default_rng(0)
    for start, end in ((RATE, 3 * RATE), (777, 0), (0, 12_345)):
        assert errors(speech, np.pad(speech, (start, end))) < 0.04
        faint = random.normal(scale=1e-5, size=start + len(speech) + end).astype(np.float32)
        assert errors(speech, np.pad(speech, (start, end)) + faint) < 0.1


def test_bits_are_signs_of_what_the_paper_says():
    """Every bit of a prompt, by plain sums over the bins of every frame."""
    samples = PROMPTS[7] - PROMPTS[7].mean()
    low, high, bands = module.BANDS
    edges = low * (high / low) ** (np.arange(bands + 1) / bands)
    margin = module.HOP * (module.SMOOTH + module.LAG) // 2 + module.FRAME // 2
    padded = np.pad(samples.astype(np.float64), margin)
    starts = range(0, len(padded) - module.FRAME + 1, module.HOP)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(module.FRAME) / module.FRAME)
    spectra = np.abs(np.array([np.fft.fft(padded[s : s + module.FRAME] * window) for s in starts])) ** 2
    width = RATE / module.FRAME
    power = np.zeros((len(spectra), bands))
    for band in range(bands):
        for number in range(module.FRAME // 2 + 1):
            left, right = number * width - width / 2, number * width + width / 2
            part = max(0.0, min(right, edges[band + 1]) - max(left, edges[band])) / width
            power[:, band] += part * spectra[:, number]
    moments = len(power) - module.SMOOTH + 1 - module.LAG
    middle = (module.SMOOTH + module.LAG) // 2
    loudness = np.sqrt(power.sum(axis=1))[middle : middle + moments]
    passed = np.cumsum(loudness) / loudness.sum()
    expected = []
    for word in range(WORDS):
        share = (word + 0.5) / WORDS
        after = int(np.argmax(passed >= share))
        before = passed[after - 1] if after else 0.0
        at = min(max(after + (share - before) / (passed[after] - before) - 0.5, 0), moments - 1)

        def change(moment, band):
            def energy(first, band):
                return power[first : first + module.SMOOTH, band].sum() ** module.COMPRESSION

            def slope(first):
                return energy(first, band + 1) - energy(first, band)

            return slope(moment + module.LAG) - slope(moment)

        frame = min(int(at), moments - 2)
        rest = at - frame
        expected.append([change(frame, b) * (1 - rest) + change(frame + 1, b) * rest > 0 for b in range(bands - 1)])
    bits = np.unpackbits(np.frombuffer(fingerprint(samples), np.uint8), bitorder="little").reshape(WORDS, bands - 1)
    assert (bits != np.array(expected)).mean() < 0.001  # float32 against float64


@pytest.mark.parametrize("size", [0, 1, 500, RATE // 2 - 1])
def test_too_short_a_clip_has_none(size):
    assert fingerprint(PROMPTS[0][8000 : 8000 + size]) is None


def test_half_a_second_has_one():
    assert len(fingerprint(PROMPTS[0][8000 : 8000 + RATE // 2])) == BYTES


def test_silence_has_none():
    random = np.random.default_rng(0)
    assert fingerprint(np.zeros(3 * RATE, np.float32)) is None
    assert fingerprint(np.full(3 * RATE, 0.25, np.float32)) is None  # an offset is no sound
    assert fingerprint(random.integers(-1, 2, 3 * RATE).astype(np.float32) / 32768) is None
    assert fingerprint(PROMPTS[0] * np.float32(1e-4)) is None
    assert fingerprint(PROMPTS[0] * np.float32(0.01)) is not None


def test_what_is_not_finite_has_none():
    broken = PROMPTS[0].copy()
    broken[5000] = np.nan
    assert fingerprint(broken) is None
