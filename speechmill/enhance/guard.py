"""The do-no-harm guard: per clip, whether the original or the denoised audio is published.

Denoising also damages speech. With little noise, the damage is its only effect, and if the background is speech, it
removes the talker as well. On prompts mixed with noise at known SNR, RNNoise at 12 dB gains 7 dB SI-SDR at 0 dB, 4 dB
at 15 dB and nothing near 22 dB; in babble it gains at most 1 dB and mostly loses. So the guard keeps the original
unless all of these criteria hold. Each is measured on the clip alone:

* `input_snr_db`: the input is so noisy that removing noise outweighs the damage;
* `speech_kept`: the voice activity detector still finds the speech that it found in the original;
* `noise_removed_db`: in the pauses the denoiser removes nearly all that its level allows. If it only dims the
  background, it partly mistakes the background for speech (babble), and then it dims speech as well. A clip without
  pauses gives no evidence of this, so it has to be noisier.

DNSMOS P.808 of both variants, tested as a fourth criterion, improved no decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from speechmill.audio.vad import CHUNK
from speechmill.enhance import LEVELS_DB

MIN_PAUSE_CHUNKS = 3  # that are needed as evidence of the background
DIGITAL_SILENCE = 1e-11  # mean square; contains no noise to remove
FULLY_REMOVED = 0.2  # largest relative amplitude that the unlimited denoiser leaves of a background that it removes


@dataclass(frozen=True)
class GuardEvidence:
    """Measurements of one clip at 16 kHz.

    input_snr_db: SNR of the original in dB, NaN if it could not be measured. speech_kept: share 0..1 of the
    original's speech chunks that are still speech; 1 if there were none. removed_db: attenuation of its speech chunks
    in dB. noise_removed_db: median attenuation of its pauses in dB; NaN with fewer than MIN_PAUSE_CHUNKS.
    """

    input_snr_db: float
    speech_kept: float
    removed_db: float
    noise_removed_db: float


@dataclass(frozen=True)
class GuardThresholds:
    """Bounds of the criteria, chosen on English prompts in noise and validated on Spanish ones."""

    clean_enough_db: float = 18.0
    clean_enough_without_pauses_db: float = 10.0
    speech_kept: float = 0.8
    noise_removed_db: float = 7.9

    @classmethod
    def for_level(cls, level: str) -> GuardThresholds:
        """The bounds for a level, whose attenuation limit also limits how much is removed from a pause."""
        share = 10 ** (-LEVELS_DB[level] / 20)
        return cls(noise_removed_db=round(abs(20 * math.log10(share + (1 - share) * FULLY_REMOVED)), 1))


@dataclass(frozen=True)
class Decision:
    """`reason` names the deciding criterion, with its value and its bound."""

    variant: Literal["original", "enhanced"]
    reason: str


def decide_by_input(input_snr_db: float, thresholds: GuardThresholds) -> Decision | None:
    """The decision if the input alone determines it, so that the clip need not be denoised; otherwise None."""
    if not math.isfinite(input_snr_db):
        return Decision("original", "not measured: input_snr_db")
    if input_snr_db >= (limit := thresholds.clean_enough_db):
        return Decision("original", f"clean enough: input_snr_db {input_snr_db:.1f} >= {limit:g}")
    return None


def choose_variant(evidence: GuardEvidence, thresholds: GuardThresholds = GuardThresholds()) -> Decision:
    """Apply all criteria. If one could not be measured, the original is kept."""
    snr, kept, removed = evidence.input_snr_db, evidence.speech_kept, evidence.noise_removed_db
    if (decision := decide_by_input(snr, thresholds)) is not None:
        return decision
    limit = thresholds.clean_enough_without_pauses_db if math.isnan(removed) else thresholds.clean_enough_db
    if snr >= limit:
        return Decision("original", f"no pauses to judge by: input_snr_db {snr:.1f} >= {limit:g}")
    if kept < thresholds.speech_kept:
        return Decision("original", f"speech lost: speech_kept {kept:.2f} < {thresholds.speech_kept:g}")
    if removed < thresholds.noise_removed_db:
        bound = thresholds.noise_removed_db
        return Decision("original", f"noise not recognised: noise_removed_db {removed:.1f} < {bound:g}")
    return Decision("enhanced", f"noisy: input_snr_db {snr:.1f} < {limit:g}")


def measure_evidence(
    original: torch.Tensor,
    enhanced: torch.Tensor,
    lengths: torch.Tensor,
    speech_original: torch.Tensor,
    speech_enhanced: torch.Tensor,
    input_snr_db: np.ndarray,
) -> list[GuardEvidence]:
    """Evidence for each clip of a batch at 16 kHz.

    original, enhanced: (B, S), aligned, zeros after a clip's end. lengths: (B,). speech_*: (B, ceil(S / CHUNK))
    speech probabilities of each. input_snr_db: (B,).
    """
    steps = speech_original.shape[1]
    before, after = (_chunk_power(samples, steps) for samples in (original, enhanced))
    p_before, p_after = (p.double().cpu().numpy() for p in (speech_original, speech_enhanced))
    chunks = (-(-lengths // CHUNK)).tolist()
    return [
        _evidence(before[i, :n], after[i, :n], p_before[i, :n], p_after[i, :n], float(input_snr_db[i]))
        for i, n in enumerate(chunks)
    ]


def _evidence(
    before: np.ndarray, after: np.ndarray, p_before: np.ndarray, p_after: np.ndarray, snr_db: float
) -> GuardEvidence:
    """One clip: power and speech probability of its chunks, (T,) each, in the original and in the enhanced."""
    speech = p_before > 0.5
    # Below the usual threshold, so that a probability which only fluctuates around it does not count as lost speech.
    kept = float((p_after[speech] > 0.35).mean()) if speech.any() else 1.0
    removed = 10 * math.log10((before[speech].sum() + 1e-12) / (after[speech].sum() + 1e-12))
    # Pauses of both variants: noise can hide speech from the detector, and so can partly removed babble.
    pauses = (np.maximum(p_before, p_after) < 0.5) & (before > DIGITAL_SILENCE)
    drop = 10 * np.log10(before[pauses] / (after[pauses] + 1e-12))
    noise_removed = float(np.median(drop)) if len(drop) >= MIN_PAUSE_CHUNKS else math.nan
    return GuardEvidence(snr_db, kept, removed, noise_removed)


def _chunk_power(samples: torch.Tensor, steps: int) -> np.ndarray:
    """(B, S) -> mean square of each chunk, (B, steps)."""
    padded = torch.nn.functional.pad(samples, (0, steps * CHUNK - samples.shape[1]))
    return padded.view(len(samples), steps, CHUNK).double().square().mean(2).cpu().numpy()
