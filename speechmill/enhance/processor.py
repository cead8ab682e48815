"""The steps of the enhance job: decode in threads, compute a device batch, encode in threads.

decode, mono, resample -> voice activity, input metrics -> denoise -> guard -> trim -> loudness -> FLAC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechmill import __version__
from speechmill.audio.decode import Decoded, DecodeLimits, decode
from speechmill.audio.encode import encode_flac
from speechmill.audio.loudness import (
    ABSOLUTE_GATE,
    integrated_loudness,
    loudest_block_lufs,
    normalization_gain_db,
    true_peak_dbtp,
)
from speechmill.audio.resample import resample
from speechmill.audio.vad import (
    CHUNK,
    SileroVad,
    VadOptions,
    longest_pause_s,
    speech_seconds,
    speech_segments,
    vad_versions,
)
from speechmill.audio.vad import RATE as MODEL_RATE
from speechmill.config import result_settings
from speechmill.dedup.fingerprint import fingerprint
from speechmill.engine.device_errors import is_machine_error
from speechmill.engine.tensors import pad
from speechmill.enhance import Enhancer, limit_attenuation, load_enhancer
from speechmill.enhance.guard import (
    Decision,
    GuardEvidence,
    GuardThresholds,
    choose_variant,
    decide_by_input,
    measure_evidence,
)
from speechmill.errors import ClipError, ClipRejection
from speechmill.metrics import ClipBatch, clip_ratio, dc_offset, measure_input_signal, peak_dbfs
from speechmill.metrics.found import as_preflight_found, check_models
from speechmill.sources.transcript import count_characters
from speechmill.storage.files import sha256_json


@dataclass
class Clip:
    """A decoded clip: its manifest row, the result of decoding, and its samples at the rates that are needed."""

    row: dict[str, Any]
    decoded: Decoded
    model: np.ndarray  # float32 at MODEL_RATE
    original: np.ndarray  # float32 at the published rate
    measured: dict[str, float] = field(default_factory=dict)
    offset: float = 0.0  # mean that was subtracted from the decoded samples


Loaded = tuple[dict[str, Any], Clip | ClipError | ClipRejection]  # manifest row, decoded clip


@dataclass(frozen=True)
class Enhanced:
    """The result for one clip: the columns of ENHANCED and its metrics."""

    values: dict[str, Any]


Outcome = Enhanced | ClipError | ClipRejection


@dataclass(frozen=True)
class Choice:
    """The variant to publish, and why. samples: float32 at the published rate, not yet trimmed.

    removed_db: attenuation of its speech by denoising; 0 for the original.
    """

    decision: Decision
    samples: np.ndarray
    removed_db: float = 0.0


class Processor:
    """Models and settings of a job. `process` computes the outcomes of one device batch of decoded clips."""

    def __init__(self, config: dict[str, Any], found: Mapping[str, Any], device: str, pool: ThreadPoolExecutor):
        self.settings = config["enhance"]
        self.device = device
        self.pool = pool
        with as_preflight_found():
            self.vad = SileroVad(device)
            check_models(vad_versions(), found)
            self.enhancer: Enhancer | None = load_enhancer(found["enhancer"], device)
        self.thresholds = GuardThresholds.for_level(self.settings["level"])
        self.vad_options = VadOptions(threshold=self.settings["vad_threshold"], pad_ms=0)
        self.rate = int(self.settings["sampling_rate"])
        self.native_rate = self.enhancer.native_rate if self.enhancer else self.rate
        self.limits = DecodeLimits(
            max_seconds=self.settings["max_seconds"],
            max_bytes=self.settings["max_bytes"],
            max_channels=self.settings["max_channels"],
        )
        self.config_sha256 = sha256_json(result_settings(self.settings))

    def load(self, item: tuple[dict[str, Any], bytes | Path | ClipError]) -> Loaded:
        """Decode one clip, and measure what resampling hides. Called from many threads."""
        row, data = item
        if isinstance(data, ClipError):
            return row, data
        try:
            return row, self._load(row, data)
        except (ClipError, ClipRejection) as error:
            return row, error
        except Exception as error:
            if is_machine_error(error):
                raise
            return row, ClipError("decode_failed", f"{type(error).__name__}: {error}")

    def _load(self, row: dict[str, Any], data: bytes | Path) -> Clip:
        decoded = decode(data, self.limits, self.settings["channels"])
        if isinstance(data, Path) and row.get("sha256") not in (None, decoded.input_sha256):
            raise ClipError("changed", "the file was changed after it was listed; run again to list it anew")
        samples = decoded.samples
        measured = {
            "input_clip_ratio": clip_ratio(samples),
            "input_peak_dbfs": peak_dbfs(samples),
            "input_dc_offset": dc_offset(samples),
            "input_channel_correlation": decoded.correlation,
        }
        samples, offset = remove_offset(samples)
        decoded = replace(decoded, samples=samples)
        at = {rate: resample(samples, decoded.sampling_rate, rate) for rate in {MODEL_RATE, self.rate}}
        row["fingerprint"] = fingerprint(at[MODEL_RATE])
        return Clip(row, decoded, at[MODEL_RATE], at[self.rate], measured, offset)

    def process(self, clips: Sequence[Clip]) -> list[Outcome]:
        """Compute one device batch, clips of similar length. Returns an outcome per clip, in their order."""
        batch, lengths = pad([clip.model for clip in clips], self.device, multiple=CHUNK)
        probabilities = self.vad.probabilities(batch, lengths)
        inputs = measure_input_signal(ClipBatch(batch, lengths, probabilities))
        outcomes: list[Outcome | None] = [None] * len(clips)
        spans: dict[int, tuple[int, int]] = {}
        segments: dict[int, list[tuple[int, int]]] = {}
        heard = probabilities.cpu().numpy()
        for index, clip in enumerate(clips):
            clip.measured.update({name: float(values[index]) for name, values in inputs.items()})
            steps = -(-len(clip.model) // CHUNK)
            segments[index] = speech_segments(heard[index, :steps], len(clip.model), self.vad_options)
            try:
                if not math.isfinite(clip.measured["input_loudness_lufs"]):
                    _check_level(clip.model, MODEL_RATE)
                spans[index] = self._span(segments[index], len(clip.model))
            except ClipRejection as rejection:
                outcomes[index] = rejection
        decided = {i: self._decided(clips[i]) for i in spans}
        chosen = {i: Choice(decision, clips[i].original) for i, decision in decided.items() if decision}
        if tried := [i for i, decision in decided.items() if not decision]:
            choices = self._choose([clips[i] for i in tried], batch[tried], lengths[tried], probabilities[tried])
            chosen.update(zip(tried, choices, strict=True))
        delivered = self.pool.map(lambda i: self._deliver(clips[i], spans[i], segments[i], chosen[i]), spans)
        for index, outcome in zip(spans, delivered, strict=True):
            outcomes[index] = outcome
        found = [outcome for outcome in outcomes if outcome is not None]
        assert len(found) == len(clips), "a clip has no outcome"
        return found

    def _span(self, segments: list[tuple[int, int]], size: int) -> tuple[int, int]:
        """First and last sample at MODEL_RATE to keep: all speech, padded. Rejects a clip with too little speech."""
        seconds = speech_seconds(segments)
        minimum = self.settings["min_speech_seconds"]
        if not segments or seconds < minimum:
            raise ClipRejection(
                "speech_s", seconds, minimum, f"{seconds:.2f} s of speech found, {minimum} s are needed"
            )
        start, stop = 0, size
        if self.settings["trim"]:
            extra = self.settings["vad_pad_ms"] * MODEL_RATE // 1000
            start, stop = max(0, segments[0][0] - extra), min(size, segments[-1][1] + extra)
        minimum = self.settings["min_seconds"]
        if stop - start < minimum * MODEL_RATE:
            seconds = (stop - start) / MODEL_RATE
            raise ClipRejection(
                "duration_s", seconds, minimum, f"{seconds:.2f} s long after trimming, {minimum} s are needed"
            )
        return start, stop

    def _decided(self, clip: Clip) -> Decision | None:
        """The decision that needs no denoising of the clip; None if it has to be denoised."""
        if self.enhancer is None:
            return Decision("original", "no enhancer")
        return decide_by_input(clip.measured["input_snr_db"], self.thresholds) if self.settings["guard"] else None

    def _choose(
        self, clips: list[Clip], batch: torch.Tensor, lengths: torch.Tensor, probabilities: torch.Tensor
    ) -> list[Choice]:
        """Denoise clips, and choose the variant of each to publish."""
        denoised = self._denoised(clips)
        choices = []
        for i, evidence in enumerate(self._evidence(clips, denoised[MODEL_RATE], batch, lengths, probabilities)):
            decision = Decision("enhanced", "guard off")
            if self.settings["guard"]:
                decision = choose_variant(evidence, self.thresholds)
            if decision.variant == "enhanced":
                choices.append(Choice(decision, denoised[self.rate][i], evidence.removed_db))
            else:
                choices.append(Choice(decision, clips[i].original))
        return choices

    def _denoised(self, clips: list[Clip]) -> dict[int, list[np.ndarray]]:
        """The denoised clips at the published rate and at MODEL_RATE, with the lengths of their originals."""
        assert self.enhancer is not None
        rate = self.native_rate
        natives = list(self.pool.map(lambda c: resample(c.decoded.samples, c.decoded.sampling_rate, rate), clips))
        native, lengths = pad(natives, self.device, multiple=CHUNK)
        limited = limit_attenuation(native, self.enhancer(native, lengths), self.settings["level"])
        host = limited.float().cpu().numpy()
        rows = [row[: len(samples)] for row, samples in zip(host, natives, strict=True)]

        def at(rate: int) -> list[np.ndarray]:
            sizes = [len(clip.model if rate == MODEL_RATE else clip.original) for clip in clips]
            resampled = self.pool.map(lambda row: resample(row, self.native_rate, rate), rows)
            return [_fit(samples, size) for samples, size in zip(resampled, sizes, strict=True)]

        return {rate: at(rate) for rate in {MODEL_RATE, self.rate}}

    def _evidence(
        self,
        clips: list[Clip],
        denoised: list[np.ndarray],
        batch: torch.Tensor,
        lengths: torch.Tensor,
        probabilities: torch.Tensor,
    ) -> list[GuardEvidence]:
        """The guard's evidence, measured at MODEL_RATE on whole clips."""
        enhanced, _ = pad(denoised, self.device, multiple=CHUNK)
        size = enhanced.shape[1]  # `batch` may be padded to a longer clip that is not among these
        return measure_evidence(
            batch[:, :size],
            enhanced,
            lengths,
            probabilities[:, : size // CHUNK],
            self.vad.probabilities(enhanced, lengths),
            np.array([clip.measured["input_snr_db"] for clip in clips]),
        )

    def _deliver(self, clip: Clip, span: tuple[int, int], segments: list[tuple[int, int]], choice: Choice) -> Outcome:
        """Trim, normalise loudness, encode. Called from many threads."""
        original = None
        try:
            published, gain = self._normalized(choice.samples, span)
            if choice.decision.variant == "enhanced" and self.settings["keep_original"]:
                flac = encode_flac(self._normalized(clip.original, span)[0], self.rate)
                original = {"bytes": flac, "path": f"{clip.row['id']}.original.flac"}
        except ClipRejection as rejection:
            return rejection
        characters, seconds = count_characters(clip.row["text_norm"]), speech_seconds(segments)
        start, stop = span
        return Enhanced(
            {
                "audio": {"bytes": encode_flac(published, self.rate), "path": f"{clip.row['id']}.flac"},
                "original": original,
                "duration": len(published) / self.rate,
                "sampling_rate": self.rate,
                "variant": choice.decision.variant,
                "variant_reason": choice.decision.reason,
                "input_channel": clip.decoded.channel,
                "offset_removed": clip.offset,
                "trim_start_s": start / MODEL_RATE,
                "trim_end_s": (len(clip.model) - stop) / MODEL_RATE,
                "gain_db": gain,
                "input_sampling_rate": clip.decoded.sampling_rate,
                "input_channels": clip.decoded.channels,
                "input_codec": clip.decoded.codec,
                "enhancer": f"{self.enhancer.name} {self.enhancer.version}, {self.settings['level']}"
                if self.enhancer
                else "none",
                "enhancer_sha256": self.enhancer.weights_sha256 if self.enhancer else None,
                "config_sha256": self.config_sha256,
                "code_version": __version__,
                "longest_pause_s": longest_pause_s(segments),
                "chars_per_second": characters / seconds if characters else None,
                **clip.measured,
                "denoise_removed_db": choice.removed_db,
            }
        )

    def _normalized(self, samples: np.ndarray, span: tuple[int, int]) -> tuple[np.ndarray, float]:
        """A clip at the published rate, trimmed and normalised, and the gain in dB that was applied.

        Raises:
            ClipRejection: level_lufs, the trimmed clip is too quiet to normalise.
        """
        scale = self.rate / MODEL_RATE
        cut = samples[round(span[0] * scale) : round(span[1] * scale)]
        batch, lengths = pad([cut], "cpu")  # where loudness is measured
        loudness = integrated_loudness(batch, lengths, self.rate)
        if not math.isfinite(float(loudness)):
            _check_level(cut, self.rate)
        gain = normalization_gain_db(
            loudness,
            true_peak_dbtp(batch, lengths, self.rate),
            self.settings["loudness_lufs"],
            self.settings["true_peak_dbtp"],
        )
        # Rounded down to stay below the ceiling. `gain_db` has few digits, and is exactly what was applied.
        rounded = math.floor(float(gain) * 100) / 100
        return cut * np.float32(10 ** (rounded / 20)), rounded


def _fit(samples: np.ndarray, size: int) -> np.ndarray:
    """Cut or pad to `size`: resampling to another rate and back can change the length by a sample or two."""
    return samples[:size] if len(samples) >= size else np.pad(samples, (0, size - len(samples)))


def remove_offset(samples: np.ndarray) -> tuple[np.ndarray, float]:
    """Subtract the mean (DC offset) of a clip (S,) float32. Returns the samples and the mean."""
    offset = float(np.float32(np.mean(samples, dtype=np.float64))) if samples.size else 0.0
    return samples - np.float32(offset), offset


def _check_level(samples: np.ndarray, rate: int) -> None:
    """Reject a clip whose loudness cannot be measured, because no block is above the gate of BS.1770.

    Such a clip cannot be normalised, and voice activity detection misses speech at this level. Digital silence has no
    level: it is left to the rule about speech.
    """
    level = loudest_block_lufs(samples, rate)
    if math.isfinite(level):
        raise ClipRejection(
            "level_lufs",
            level,
            ABSOLUTE_GATE,
            f"too quiet: the loudest 400 ms are at {level:.1f} LUFS, more than {ABSOLUTE_GATE:g} LUFS are needed",
        )
