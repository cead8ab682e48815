"""The enhance job: one batch of the manifest in, its enhanced shard and its ledger out.

decode, mono, resample -> voice activity, input metrics -> denoise -> guard -> trim -> loudness -> FLAC.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from speechmill import __version__
from speechmill.audio.decode import Decoded, DecodeLimits, decode
from speechmill.audio.encode import encode_flac
from speechmill.audio.loudness import integrated_loudness, normalization_gain_db, true_peak_dbtp
from speechmill.audio.resample import resample
from speechmill.engine import WINDOW_BATCHES, is_machine_fault, isolate, length_batches, pad, windows
from speechmill.enhance import Enhancer, limit_attenuation, load_enhancer
from speechmill.enhance.guard import Decision, GuardEvidence, GuardThresholds, choose_variant, measure_evidence
from speechmill.errors import ClipError, ClipRejection
from speechmill.files import sha256_json
from speechmill.fingerprint import fingerprint
from speechmill.manifest import identify, plan_of, read_batch
from speechmill.metrics import ENHANCE_METRICS, ClipBatch, clip_ratio, dc_offset, measure_input_signal, peak_dbfs
from speechmill.parallel import bounded_map
from speechmill.preflight import as_preflight_found, check_models
from speechmill.shards import ENHANCED, LEDGER, table_writer, with_models
from speechmill.sources import Source
from speechmill.transcript import count_characters, normalize, utterance_key
from speechmill.vad import CHUNK, SileroVad, VadOptions, longest_pause_s, speech_seconds, speech_segments, vad_versions
from speechmill.vad import RATE as MODEL_RATE

AUDIO_COLUMNS = ("audio.bytes", "original.bytes")
ROW_GROUP = 100  # the Hub's advice for audio


@dataclass
class Clip:
    """One clip on its way: its manifest row, what decoding found, and its samples at the rates that are needed."""

    row: dict[str, Any]
    decoded: Decoded  # without samples: they are resampled and dropped
    model: np.ndarray  # float32 at MODEL_RATE
    original: np.ndarray  # float32 at the published rate
    native: np.ndarray  # float32 at the enhancer's rate
    measured: dict[str, float] = field(default_factory=dict)


Loaded = tuple[dict[str, Any], Clip | ClipError | ClipRejection]  # with its row


@dataclass(frozen=True)
class Enhanced:
    """What one clip became: the columns of ENHANCED and its metrics."""

    values: dict[str, Any]


Outcome = Enhanced | ClipError | ClipRejection


class Processor:
    """Models and settings of a job; `process` turns decoded clips into outcomes, one device batch at a time."""

    def __init__(self, config: dict[str, Any], found: Mapping[str, Any], device: str, pool: ThreadPoolExecutor):
        self.settings = config["enhance"]
        self.device = device
        self.pool = pool
        with as_preflight_found():
            self.vad = SileroVad(device)
            check_models(vad_versions(), found)
            self.enhancer: Enhancer | None = load_enhancer(found["enhancer"])
        self.vad_options = VadOptions(threshold=self.settings["vad_threshold"], pad_ms=0)
        self.rate = int(self.settings["sampling_rate"])
        self.native_rate = self.enhancer.native_rate if self.enhancer else self.rate
        self.limits = DecodeLimits(
            max_seconds=self.settings["max_seconds"],
            max_bytes=self.settings["max_bytes"],
            max_channels=self.settings["max_channels"],
        )
        # How clips are grouped must not change what they become, so it is not part of the provenance.
        self.config_sha256 = sha256_json({k: v for k, v in self.settings.items() if k != "batch_seconds"})

    def load(self, item: tuple[dict[str, Any], bytes | Path | ClipError]) -> Loaded:
        """Decode one clip and measure what resampling would hide. Called from many threads."""
        row, data = item
        if isinstance(data, ClipError):
            return row, data
        try:
            return row, self._load(row, data)
        except (ClipError, ClipRejection) as error:
            return row, error
        except Exception as error:
            if is_machine_fault(error):
                raise
            return row, ClipError("decode_failed", f"{type(error).__name__}: {error}")

    def _load(self, row: dict[str, Any], data: bytes | Path) -> Clip:
        decoded = decode(data, self.limits)
        if isinstance(data, Path) and row.get("sha256") not in (None, decoded.input_sha256):
            raise ClipError("changed", "the file was changed after it was listed; run again to list it anew")
        samples = decoded.samples
        measured = {
            "input_clip_ratio": clip_ratio(samples),
            "input_peak_dbfs": peak_dbfs(samples),
            "input_dc_offset": dc_offset(samples),
        }
        rates = {MODEL_RATE, self.rate, self.native_rate}
        at = {rate: resample(samples, decoded.sampling_rate, rate) for rate in rates}
        row["fingerprint"] = fingerprint(at[MODEL_RATE])
        decoded = replace(decoded, samples=np.empty(0, np.float32))
        return Clip(row, decoded, at[MODEL_RATE], at[self.rate], at[self.native_rate], measured)

    def process(self, clips: Sequence[Clip]) -> list[Outcome]:
        """One device batch: clips of similar length -> an outcome per clip, in their order."""
        batch, lengths = pad([clip.model for clip in clips], self.device, multiple=CHUNK)
        probabilities = self.vad.probabilities(batch, lengths)
        inputs = measure_input_signal(ClipBatch(batch, lengths, probabilities))
        outcomes: list[Outcome | None] = [None] * len(clips)
        spans: dict[int, tuple[int, int]] = {}
        segments: dict[int, list[tuple[int, int]]] = {}
        probabilities_np = probabilities.cpu().numpy()
        for index, clip in enumerate(clips):
            clip.measured.update({name: float(values[index]) for name, values in inputs.items()})
            steps = -(-len(clip.model) // CHUNK)
            segments[index] = speech_segments(probabilities_np[index, :steps], len(clip.model), self.vad_options)
            try:
                spans[index] = self._span(segments[index], len(clip.model))
            except ClipRejection as rejection:
                outcomes[index] = rejection
        kept = sorted(spans)
        if kept:
            finished = self._finish(
                [clips[i] for i in kept],
                [spans[i] for i in kept],
                batch[kept],
                lengths[kept],
                probabilities[kept],
            )
            for index, outcome in zip(kept, finished, strict=True):
                outcome.values["longest_pause_s"] = longest_pause_s(segments[index])
                characters, seconds = count_characters(clips[index].row["text_norm"]), speech_seconds(segments[index])
                outcome.values["chars_per_second"] = characters / seconds if characters else None
                outcomes[index] = outcome
        found = [outcome for outcome in outcomes if outcome is not None]
        assert len(found) == len(clips), "a clip was lost"
        return found

    def _span(self, segments: list[tuple[int, int]], size: int) -> tuple[int, int]:
        """The samples at MODEL_RATE to keep: first to last speech, padded; rejects what holds too little."""
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

    def _finish(
        self,
        clips: list[Clip],
        spans: list[tuple[int, int]],
        batch: torch.Tensor,
        lengths: torch.Tensor,
        probabilities: torch.Tensor,
    ) -> list[Enhanced]:
        """Denoise, choose the variant, trim, set the loudness and encode clips that hold enough speech."""
        originals = [clip.original for clip in clips]
        decisions = [Decision("original", "no enhancer")] * len(clips)
        removed = np.zeros(len(clips))
        chosen = list(originals)
        if self.enhancer is not None:
            denoised = self._denoised(clips)
            evidence = self._evidence(clips, denoised, batch, lengths, probabilities)
            removed = np.array([item.removed_db for item in evidence])
            if self.settings["guard"]:
                thresholds = GuardThresholds.for_level(self.settings["level"])
                decisions = [choose_variant(item, thresholds) for item in evidence]
            else:
                decisions = [Decision("enhanced", "guard off")] * len(clips)
            for i, decision in enumerate(decisions):
                if decision.variant == "enhanced":
                    chosen[i] = denoised[self.rate][i]
        published, gains = self._normalized(chosen, spans)
        spare = [i for i, d in enumerate(decisions) if d.variant == "enhanced" and self.settings["keep_original"]]
        beside, _ = self._normalized([originals[i] for i in spare], [spans[i] for i in spare])
        audio = list(self.pool.map(lambda samples: encode_flac(samples, self.rate), [*published, *beside]))
        original_audio = dict(zip(spare, audio[len(published) :], strict=True))
        results = []
        for i, clip in enumerate(clips):
            # Of what is published: where the guard kept the original, nothing was removed.
            clip.measured["denoise_removed_db"] = float(removed[i]) if decisions[i].variant == "enhanced" else 0.0
            start, stop = spans[i]
            values = {
                "audio": {"bytes": audio[i], "path": f"{clip.row['id']}.flac"},
                "original": {"bytes": original_audio[i], "path": f"{clip.row['id']}.original.flac"}
                if i in original_audio
                else None,
                "duration": len(published[i]) / self.rate,
                "sampling_rate": self.rate,
                "variant": decisions[i].variant,
                "variant_reason": decisions[i].reason,
                "trim_start_s": start / MODEL_RATE,
                "trim_end_s": (len(clip.model) - stop) / MODEL_RATE,
                "gain_db": gains[i],
                "input_sampling_rate": clip.decoded.sampling_rate,
                "input_channels": clip.decoded.channels,
                "input_codec": clip.decoded.codec,
                "enhancer": f"{self.enhancer.name} {self.enhancer.version}, {self.settings['level']}"
                if self.enhancer
                else "none",
                "enhancer_sha256": self.enhancer.weights_sha256 if self.enhancer else None,
                "config_sha256": self.config_sha256,
                "code_version": __version__,
                **clip.measured,
            }
            results.append(Enhanced(values))
        return results

    def _denoised(self, clips: list[Clip]) -> dict[int, list[np.ndarray]]:
        """The denoised clips at the published rate and at MODEL_RATE, as long as their originals there."""
        assert self.enhancer is not None
        native, lengths = pad([clip.native for clip in clips], self.device, multiple=CHUNK)
        limited = limit_attenuation(native, self.enhancer(native, lengths), self.settings["level"])
        rows = [row[: len(clip.native)] for row, clip in zip(limited.float().cpu().numpy(), clips, strict=True)]

        def at(rate: int) -> list[np.ndarray]:
            sizes = [len(clip.model if rate == MODEL_RATE else clip.original) for clip in clips]
            resampled = self.pool.map(lambda row: resample(row, self.native_rate, rate), rows)
            return [_fit(samples, size) for samples, size in zip(resampled, sizes, strict=True)]

        return {rate: at(rate) for rate in {MODEL_RATE, self.rate}}

    def _evidence(
        self,
        clips: list[Clip],
        denoised: dict[int, list[np.ndarray]],
        batch: torch.Tensor,
        lengths: torch.Tensor,
        probabilities: torch.Tensor,
    ) -> list[GuardEvidence]:
        """What the guard decides by, measured at MODEL_RATE on the whole clip."""
        enhanced, _ = pad(denoised[MODEL_RATE], self.device, multiple=CHUNK)
        size = enhanced.shape[1]  # `batch` may still be padded to a longer clip that was rejected
        return measure_evidence(
            batch[:, :size],
            enhanced,
            lengths,
            probabilities[:, : size // CHUNK],
            self.vad.probabilities(enhanced, lengths),
            np.array([clip.measured["input_snr_db"] for clip in clips]),
        )

    def _normalized(
        self, clips: list[np.ndarray], spans: list[tuple[int, int]]
    ) -> tuple[list[np.ndarray], list[float]]:
        """Clips at the published rate, trimmed and at the published loudness, and the gains in dB that gave it."""
        if not clips:
            return [], []
        scale = self.rate / MODEL_RATE
        cut = [
            samples[round(start * scale) : round(stop * scale)]
            for samples, (start, stop) in zip(clips, spans, strict=True)
        ]
        batch, lengths = pad(cut, "cpu")  # where loudness is measured, clip by clip
        gains = normalization_gain_db(
            integrated_loudness(batch, lengths, self.rate),
            true_peak_dbtp(batch, lengths, self.rate),
            self.settings["loudness_lufs"],
            self.settings["true_peak_dbtp"],
        )
        # Down, so that the ceiling holds; `gain_db` has few digits and is exactly what was applied.
        rounded = [math.floor(float(gain) * 100) / 100 for gain in gains]
        return [samples * np.float32(10 ** (gain / 20)) for samples, gain in zip(cut, rounded, strict=True)], rounded


def _fit(samples: np.ndarray, size: int) -> np.ndarray:
    """Cut or pad by the sample or two that resampling there and back may differ."""
    return samples[:size] if len(samples) >= size else np.pad(samples, (0, size - len(samples)))


def enhance_batch(
    batch_json: Path,
    source: Source,
    fetched: Path | None,
    config: dict[str, Any],
    found: Mapping[str, Any],
    device: str,
    threads: int,
    batch_seconds: float,
    enhanced: Path,
    ledger: Path,
) -> dict[str, int]:
    """Run the job; returns the number of clips by state. Both files appear complete or not at all.

    `fetched` is where the batch's source file was downloaded to, None where it is read in place.

    Raises:
        SpeechmillError: this node lacks what preflight `found`.
    """
    description, table = read_batch(batch_json)
    plan = plan_of(description, table)
    torch.set_num_threads(threads)
    metric_fields = [pa.field(name, pa.float64()) for name in ENHANCE_METRICS]
    schema = with_models(pa.schema([*ENHANCED, *metric_fields]), vad_versions())
    counts = {"passed": 0, "rejected": 0, "errored": 0}
    passed_over: Counter[str] = Counter()
    with (
        ThreadPoolExecutor(threads) as pool,
        table_writer(LEDGER, ledger) as ledger_writer,
        table_writer(schema, enhanced, row_group_size=ROW_GROUP, uncompressed=AUDIO_COLUMNS) as shard_writer,
        tqdm(total=plan.rows, desc=plan.batch, unit="clip", mininterval=5) as progress,
    ):
        processor = Processor(config, found, device, pool)
        clips = ((_complete(row, config["dataset"]), data) for row, data in source.read(plan, fetched, passed_over))
        loaded = bounded_map(pool, processor.load, clips, ahead=4 * threads)
        for window in windows(loaded, _held_seconds, WINDOW_BATCHES * batch_seconds):
            for row, decoded, outcome in _process_window(processor, window, batch_seconds):
                entry = _ledger_row(row, decoded, outcome)
                counts[entry["state"]] += 1
                ledger_writer.write(entry)
                if isinstance(outcome, Enhanced):
                    shard_writer.write(_shard_row(row, entry, outcome, schema, description["source_revision"]))
                progress.update()
        ledger_writer.note(passed_over=passed_over)
    for what, count in sorted(passed_over.items()):
        print(f"passed over: {count} {what}")
    return counts


def _complete(row: dict[str, Any], dataset: str) -> dict[str, Any]:
    """A source's row with the clip's id, its transcript in one form, and what the same utterance has in common."""
    row = identify(row, dataset)
    row["text_norm"] = normalize(row.get("text"))
    row["utterance"] = utterance_key(row["text_norm"], row.get("speaker_id"))
    return row


def _held_seconds(loaded: Loaded) -> float:
    return loaded[1].decoded.duration if isinstance(loaded[1], Clip) else 0.0


def _process_window(
    processor: Processor, window: list[Loaded], batch_seconds: float
) -> Iterator[tuple[dict[str, Any], Decoded | None, Outcome]]:
    clips = [item for _, item in window if isinstance(item, Clip)]
    outcomes: dict[str, Outcome] = {}
    for group in length_batches([len(clip.model) for clip in clips], int(batch_seconds * MODEL_RATE), CHUNK):
        members = [clips[i] for i in group]
        for clip, outcome in zip(members, isolate(processor.process, members, "enhance_failed"), strict=True):
            outcomes[clip.row["id"]] = outcome
    for row, item in window:
        if isinstance(item, Clip):
            yield row, item.decoded, outcomes[row["id"]]
        else:
            yield row, None, item


def _ledger_row(row: dict[str, Any], decoded: Decoded | None, outcome: Outcome) -> dict[str, Any]:
    entry = {name: row.get(name) for name in LEDGER.names}
    entry["state"] = "passed"
    entry["input_duration"] = decoded.duration if decoded else None  # never what a header claims
    entry["input_sha256"] = decoded.input_sha256 if decoded else row.get("sha256")
    entry["pcm_sha256"] = decoded.pcm_sha256 if decoded else None
    if isinstance(outcome, ClipError):
        entry.update(state="errored", error_class=outcome.error_class, message=outcome.message)
    elif isinstance(outcome, ClipRejection):
        entry.update(
            state="rejected",
            criterion=outcome.criterion,
            value=outcome.value,
            threshold=outcome.threshold,
            message=outcome.message,
        )
    return entry


def _shard_row(
    row: dict[str, Any], entry: dict[str, Any], outcome: Enhanced, schema: pa.Schema, revision: str | None
) -> dict[str, Any]:
    values = {**row, **entry, **outcome.values, "source_revision": revision or f"sha256:{entry['input_sha256']}"}
    shard_row = {name: values.get(name) for name in schema.names}
    for name, value in shard_row.items():
        if isinstance(value, float) and not math.isfinite(value):
            shard_row[name] = None  # missing is null, never NaN
    return shard_row
