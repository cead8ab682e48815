"""The guard: its rule as a table, and what it decides with the real RNNoise on real speech in known noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechmill.audio.resample import resample
from speechmill.audio.vad import CHUNK, SileroVad
from speechmill.engine.tensors import pad
from speechmill.enhance import LEVELS_DB, limit_attenuation
from speechmill.enhance.guard import GuardEvidence, GuardThresholds, choose_variant, measure_evidence
from speechmill.enhance.rnnoise import RNNoise
from speechmill.metrics.signal import vad_snr_db
from tests.unit.metric_clips import speech_clips
from tests.unit.test_enhancers import si_sdr

NOISY = GuardEvidence(input_snr_db=5.0, speech_kept=1.0, removed_db=1.5, noise_removed_db=11.5)


@pytest.mark.parametrize(
    ("change", "variant", "reason"),
    [
        ({}, "enhanced", "noisy: input_snr_db 5.0 < 18"),
        ({"input_snr_db": 17.9}, "enhanced", "noisy: input_snr_db 17.9 < 18"),
        ({"input_snr_db": 18.0}, "original", "clean enough: input_snr_db 18.0 >= 18"),
        ({"input_snr_db": math.nan}, "original", "not measured: input_snr_db"),
        ({"speech_kept": 0.79}, "original", "speech lost: speech_kept 0.79 < 0.8"),
        ({"noise_removed_db": 7.8}, "original", "noise not recognised: noise_removed_db 7.8 < 7.9"),
        ({"noise_removed_db": math.nan}, "enhanced", "noisy: input_snr_db 5.0 < 10"),
        (
            {"noise_removed_db": math.nan, "input_snr_db": 10.0},
            "original",
            "no pauses to judge by: input_snr_db 10.0 >= 10",
        ),
        (
            {"noise_removed_db": math.nan, "input_snr_db": 30.0},
            "original",
            "clean enough: input_snr_db 30.0 >= 18",
        ),
    ],
)
def test_the_rule(change, variant, reason):
    decision = choose_variant(replace(NOISY, **change))
    assert (decision.variant, decision.reason) == (variant, reason)


def test_the_bound_on_removed_noise_follows_the_level():
    bounds = {level: GuardThresholds.for_level(level).noise_removed_db for level in LEVELS_DB}
    assert bounds == {"none": 0.0, "light": 4.4, "moderate": 7.9, "aggressive": 11.1}
    assert GuardThresholds.for_level("moderate") == GuardThresholds()


def test_evidence_of_known_changes():
    """Ten chunks: speech in the first five, of which one is lost and all lose 6 dB; pauses lose 12 dB."""
    size = 10 * CHUNK
    rng = np.random.default_rng(0)
    original = torch.from_numpy(rng.standard_normal((2, size + CHUNK)).astype(np.float32))
    original[:, size:] = 0
    gain = torch.full_like(original, 10 ** (-12 / 20))
    gain[:, : 5 * CHUNK] = 10 ** (-6 / 20)
    before = torch.zeros(2, 11)
    before[0, :5] = 0.9
    after = before.clone()
    after[0, 2] = 0.2
    spoken, silent = measure_evidence(
        original, original * gain, torch.tensor([size, size]), before, after, np.array([7.0, math.nan])
    )
    assert spoken.input_snr_db == 7.0
    assert spoken.speech_kept == 0.8
    assert spoken.removed_db == pytest.approx(6, abs=1e-3)
    assert spoken.noise_removed_db == pytest.approx(12, abs=1e-3)
    assert math.isnan(silent.input_snr_db)
    assert silent.speech_kept == 1
    assert silent.removed_db == 0
    assert choose_variant(silent).variant == "original"


def test_digital_silence_is_no_evidence_of_removed_noise():
    zeros, probabilities = torch.zeros(1, 10 * CHUNK), torch.zeros(1, 10)
    (evidence,) = measure_evidence(
        zeros, zeros, torch.tensor([10 * CHUNK]), probabilities, probabilities, np.array([math.nan])
    )
    assert math.isnan(evidence.noise_removed_db)
    assert evidence.removed_db == 0


@pytest.fixture(scope="module")
def vad() -> SileroVad:
    return SileroVad()


def judged(vad: SileroVad, clips: list[np.ndarray]) -> tuple[list[np.ndarray], list[GuardEvidence]]:
    """Clips at 16 kHz -> denoised by RNNoise at the moderate level, and the evidence."""
    at48, lengths48 = pad([resample(clip, 16_000, 48_000) for clip in clips], "cpu")
    limited = limit_attenuation(at48, RNNoise()(at48, lengths48), "moderate").numpy()
    enhanced = [
        resample(row[:size], 48_000, 16_000)[: len(clip)]
        for row, size, clip in zip(limited, lengths48.tolist(), clips, strict=True)
    ]
    batch, lengths = pad(clips, "cpu", multiple=CHUNK)
    after, _ = pad(enhanced, "cpu", multiple=CHUNK)
    before_p, after_p = vad.probabilities(batch, lengths), vad.probabilities(after, lengths)
    snr = vad_snr_db(batch, lengths, before_p).numpy()
    return enhanced, measure_evidence(batch, after, lengths, before_p, after_p, snr)


def variants(evidence: list[GuardEvidence]) -> list[str]:
    return [choose_variant(item).variant for item in evidence]


def mixed(clips: list[np.ndarray], noises: list[np.ndarray], snr_db: float) -> list[np.ndarray]:
    return [
        (c + n * np.sqrt(np.mean(c**2) / np.mean(n**2)) * 10 ** (-snr_db / 20)).astype(np.float32)
        for c, n in zip(clips, noises, strict=True)
    ]


def babble(sizes: list[int]) -> list[np.ndarray]:
    """Six other prompts at a time, equally loud."""
    talkers = speech_clips(60, 1.5)[-30:]
    rng = np.random.default_rng(0)
    out = []
    for size in sizes:
        picked = [talkers[i] for i in rng.choice(len(talkers), 6, replace=False)]
        out.append(sum(np.roll(np.resize(t / np.std(t), size), rng.integers(size)) for t in picked))
    return out


def test_clean_speech_stays_as_it_is(vad):
    _, evidence = judged(vad, list(speech_clips(8)))
    assert variants(evidence) == ["original"] * 8


def test_speech_in_noise_is_enhanced_and_gains(vad):
    clean = list(speech_clips(8))
    rng = np.random.default_rng(0)
    noisy = mixed(clean, [rng.standard_normal(len(clip)) for clip in clean], 5)
    enhanced, evidence = judged(vad, noisy)
    assert variants(evidence) == ["enhanced"] * 8
    gains = [si_sdr(c, e) - si_sdr(c, n) for c, n, e in zip(clean, noisy, enhanced, strict=True)]
    assert min(gains) > 2
    assert np.mean(gains) > 5


def test_speech_among_speech_stays_where_denoising_hurts(vad):
    clean = list(speech_clips(10)) * 2
    talkers = babble([len(clip) for clip in clean])
    noisy = mixed(clean[:10], talkers[:10], 10) + mixed(clean[10:], talkers[10:], 15)
    enhanced, evidence = judged(vad, noisy)
    gains = np.array([si_sdr(c, e) - si_sdr(c, n) for c, n, e in zip(clean, noisy, enhanced, strict=True)])
    original = np.array(variants(evidence)) == "original"
    assert original.mean() >= 0.5
    assert original[gains < -1].mean() >= 0.75
    assert np.where(original, 0, gains).mean() > gains.mean()


def test_evidence_does_not_depend_on_the_batch(vad):
    clean = list(speech_clips(3))
    clips = mixed(clean, babble([len(clip) for clip in clean]), 5)
    _, together = judged(vad, clips)
    for clip, expected in zip(clips, together, strict=True):
        _, (alone,) = judged(vad, [clip])
        assert choose_variant(alone).variant == choose_variant(expected).variant
        assert vars(alone) == pytest.approx(vars(expected), rel=1e-4, nan_ok=True)
