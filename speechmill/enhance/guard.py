"""The do-no-harm guard: per clip, whether the original or the denoised audio is published.

Denoising changes speech too. Where there is little noise to remove, that is all it does: on speech mixed with noise
at known SNR, RNNoise gains 8 dB SI-SDR at -5 to 0 dB and loses as much at 25 dB, and the sign changes near 15 dB
(docs/enhancement.md has the table). So the original stays unless all of these hold, each measured on the clip alone:

* `input_snr_db`: the input is noisy enough that removing noise outweighs the damage;
* `speech_kept`: what was speech before is speech afterwards, to the same voice activity detector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

CHUNK = 512  # samples per speech probability at 16 kHz


@dataclass(frozen=True)
class GuardEvidence:
    """What was measured of one clip at 16 kHz.

    input_snr_db: SNR of the original in dB, NaN where it could not be measured. speech_kept: share 0..1 of the
    original's speech chunks that are still speech; 1 where there were none. removed_db: how much quieter its
    speech chunks became, in dB.
    """

    input_snr_db: float
    speech_kept: float
    removed_db: float


@dataclass(frozen=True)
class GuardThresholds:
    """Bounds of the rule. Chosen on English prompts in noise, checked on Spanish ones."""

    clean_enough_db: float = 13.0
    speech_kept: float = 0.8


@dataclass(frozen=True)
class Decision:
    """`variant` is original or enhanced; `reason` names the criterion that decided, with its value."""

    variant: str
    reason: str


def choose_variant(evidence: GuardEvidence, thresholds: GuardThresholds = GuardThresholds()) -> Decision:
    """Apply the rule. What cannot be measured keeps the original."""
    snr, kept = evidence.input_snr_db, evidence.speech_kept
    if not np.isfinite(snr):
        return Decision("original", "not measured: input_snr_db")
    if snr >= thresholds.clean_enough_db:
        return Decision("original", f"clean enough: input_snr_db {snr:.1f} >= {thresholds.clean_enough_db:g}")
    if kept < thresholds.speech_kept:
        return Decision("original", f"speech lost: speech_kept {kept:.2f} < {thresholds.speech_kept:g}")
    return Decision("enhanced", f"noisy: input_snr_db {snr:.1f} < {thresholds.clean_enough_db:g}")


def measure_evidence(
    original: torch.Tensor,
    enhanced: torch.Tensor,
    lengths: torch.Tensor,
    speech_original: torch.Tensor,
    speech_enhanced: torch.Tensor,
    input_snr_db: np.ndarray,
) -> list[GuardEvidence]:
    """Evidence for each clip of a batch at 16 kHz.

    original, enhanced: (B, S), aligned, zeros after a clip's end. lengths: (B,). speech_*: (B, ceil(S / 512))
    speech probabilities of each. input_snr_db: (B,).
    """
    steps = speech_original.shape[1]
    valid = torch.arange(steps, device=original.device)[None] < (-(-lengths // CHUNK))[:, None]
    speech = (speech_original > 0.5) & valid
    # A little below the usual threshold: a probability that only wavers around it is no lost speech.
    still = speech & (speech_enhanced > 0.35)
    count = speech.sum(1)
    kept = torch.where(count > 0, still.sum(1) / count.clamp_min(1), torch.ones_like(count, dtype=torch.float32))
    before, after = (_chunk_energy(x, steps) for x in (original, enhanced))
    ratio = ((before * speech).sum(1) + 1e-12) / ((after * speech).sum(1) + 1e-12)
    removed = 10 * torch.log10(ratio)
    columns = (np.asarray(input_snr_db, float).tolist(), kept.double().tolist(), removed.double().tolist())
    return [GuardEvidence(*values) for values in zip(*columns, strict=True)]


def _chunk_energy(samples: torch.Tensor, steps: int) -> torch.Tensor:
    """(B, S) -> mean square of each chunk, (B, steps)."""
    padded = torch.nn.functional.pad(samples, (0, steps * CHUNK - samples.shape[1]))
    return (padded.view(len(samples), steps, CHUNK).double() ** 2).mean(2)
