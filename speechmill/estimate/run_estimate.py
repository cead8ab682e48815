"""Estimate the time, GPU hours and disk of a run: `speechmill plan`.

The size of the corpus, times the rate of earlier jobs of the same kind, times what is left to do. Every figure names
its basis. A figure that uses unmeasured rates has a range. Unknown figures are None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.estimate.corpus_size import CorpusSize, corpus_size
from speechmill.estimate.throughput import SUMMARY, Past, Rate, download_rate, rate_of
from speechmill.publish.target import NoTarget, target_of
from speechmill.runlog.attempts import FILE as ATTEMPTS
from speechmill.runs.plan import slots_of

MAX_RUNS = 50  # earlier runs beside a run
FLAC_BYTES = 70e6 / 3600 / 16_000  # per sample: docs/operating.md, "Files and space"
PCM_BYTES = 2  # per sample, uncompressed
# Seconds of the other jobs by batch, by clip, and of publishing by second of audio: benchmarks/README.md.
PER_BATCH, PER_CLIP, PUBLISH = 0.02, 3e-5, 0.5 / 3600
NOTES = (
    "not included: waiting in a queue, failed attempts, and uploads that are slower than the workers",
    "counted as done: results with other settings of ranking or publishing, or of an older version",
)


@dataclass(frozen=True)
class Figure:
    """A number and its basis; a range if it was not measured."""

    value: float | None
    basis: str
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Stage:
    """The remaining jobs of enhance or score."""

    stage: str
    jobs: int | None
    job_seconds: float | None
    job_seconds_range: tuple[float, float] | None
    audio_seconds_per_second: float | None
    overhead_seconds: float
    basis: str
    is_measured: bool


@dataclass(frozen=True)
class Estimate:
    """`clips`, `audio_hours` and `batches` are those of the whole corpus; the other figures cover the remaining work."""

    dataset: str
    run: str
    clips: Figure
    audio_hours: Figure
    batches: Figure
    batches_left: Figure
    stages: list[Stage]
    workers: Figure
    wall_hours: Figure
    gpu_hours: Figure
    disk_bytes: dict[str, Figure]  # enhanced, originals, published, downloads
    upload_bytes: Figure
    notes: list[str]


def earlier_runs(run_dir: Path) -> list[Path]:
    """Runs beside this one, the newest first."""
    found = [path.parents[1] for path in run_dir.parent.glob(f"*/{ATTEMPTS}") if path.parents[1] != run_dir]
    return sorted(found, key=lambda run: (run / ATTEMPTS).stat().st_mtime, reverse=True)[:MAX_RUNS]


def estimate(
    config: Mapping[str, Any], run_dir: Path, history: Sequence[Path], profile: str, directory: Path = Path()
) -> Estimate:
    """Estimate a run that starts or resumes in `run_dir`, from its own jobs and those of `history` (newest first).

    Raises:
        SpeechmillError: a folder of the history is not a run, or the profile or a metric group does not exist.
    """
    if empty := [str(path) for path in history if not (path / ATTEMPTS).exists()]:
        raise SpeechmillError(f"{', '.join(empty)}: no run here ({ATTEMPTS} is missing); name folders of runs")
    own = Past(run_dir)
    past = [own, *(Past(path) for path in history if path.resolve() != run_dir.resolve())]
    slots, target, size = slots_of(config, profile), target_of(dict(config)), corpus_size(config, own, directory)
    left = {stage: _left(stage, config, own, size) for stage in ("enhance", "score")}
    rates = {stage: rate_of(stage, config, slots.device, past) for stage in left}
    stages = [_stage(stage, left[stage], rates[stage], size) for stage in left]
    downloads, fetching = _downloads(config, past, len(left["enhance"]), len(size.batches))
    disk = _disk(config, math.fsum(left["enhance"]), size) | {"downloads": downloads}
    is_done = not left["score"] and (run_dir / target.goal).exists()
    nothing = Figure(0.0, "published already" if is_done else f"publish.kind is {config['publish']['kind']}")
    published, upload = disk["published"] if target.publishes and not is_done else nothing, nothing
    if target.needs_network and not is_done:
        upload, published = published, Figure(0.0, "only the shards that are being sent to the Hub")
    disk["published"] = published

    # The maximum of busy workers, the longest batch and downloads; then the other jobs.
    total = math.fsum(stage.job_seconds or 0 for stage in stages)
    working = max([total / slots.workers, *(sum(rate.seconds(n) for rate in rates.values()) for n in left["score"])])
    waiting = (fetching or 0.0) / slots.downloads
    rest = 0.0 if is_done else _other_jobs(past, target, size)
    basis = f"{slots.workers} workers, bound by {'downloads' if waiting > working else 'workers'}"
    basis += f"; {rest / 3600:.3g} h of other jobs" + ("; downloads are assumed to keep up" if fetching is None else "")
    spread = max(rate.spread for rate in rates.values())
    wall = _hours((max(working * factor, waiting) + rest for factor in (1, 1 / spread, spread)), basis)
    gpu = _hours((total * factor for factor in (1, 1 / spread, spread)), "job-hours of enhance and score")
    if size.clips is None or size.seconds is None:
        wall = gpu = Figure(None, size.seconds_basis if size.seconds is None else size.clips_basis)
    by_size = "" if size.is_cut else f", in batches of {config['batch_size']}"
    to_do = f"to enhance {len(left['enhance'])}, to score {len(left['score'])}"
    return Estimate(
        dataset=config["dataset"],
        run=str(run_dir),
        clips=Figure(size.clips, size.clips_basis),
        audio_hours=Figure(size.seconds and size.seconds / 3600, size.seconds_basis),
        batches=Figure(len(size.batches) or None, size.clips_basis + by_size),
        batches_left=Figure(len(left["score"]), to_do) if size.batches else Figure(None, size.clips_basis),
        stages=stages,
        workers=Figure(slots.workers, slots.basis),
        wall_hours=wall,
        gpu_hours=gpu if slots.device == "GPU" else Figure(0.0, f"no GPU is used ({slots.basis})"),
        disk_bytes=disk,
        upload_bytes=upload,
        notes=list(NOTES),
    )


def _left(stage: str, config: Mapping[str, Any], own: Past, size: CorpusSize) -> list[float]:
    """Seconds of audio of each batch that has no result with these settings."""
    enhanced = size.is_cut and own.has_settings("enhance", config)
    scored = enhanced and own.has_settings("score", config)

    def is_done(batch: str | int) -> bool:
        has_scores = scored and (own.run_dir / "scores" / f"{batch}.parquet").exists()
        has_audio = (own.run_dir / "enhanced" / f"{batch}.parquet").exists()
        kept = enhanced and (has_audio or (has_scores and not config["keep_enhanced"]))
        is_enhanced = kept and (own.run_dir / "ledger" / f"{batch}.enhance.parquet").exists()
        return is_enhanced and (stage == "enhance" or has_scores)

    return [seconds or 0.0 for batch, seconds in size.batches.items() if not is_done(batch)]


def _stage(stage: str, left: Sequence[float], rate: Rate, size: CorpusSize) -> Stage:
    seconds = None if size.seconds is None else math.fsum(rate.seconds(audio) for audio in left)
    span = (seconds / rate.spread, seconds * rate.spread) if seconds and rate.spread > 1 else None
    jobs, speed = len(left) if size.batches else None, 1 / rate.per_second if rate.per_second else None
    return Stage(stage, jobs, seconds, span, speed, rate.overhead, rate.basis, rate.spread == 1)


def _hours(seconds: Iterable[float], basis: str) -> Figure:
    value, low, high = (each / 3600 for each in seconds)
    return Figure(value, basis, (low, high) if low < high else None)


def _other_jobs(past: Sequence[Past], target: NoTarget, size: CorpusSize) -> float:
    """Seconds of all other jobs: those of the fastest earlier run, plus the recorded rates for this size."""
    heavy = ("enhance", "score", "rank", "fetch", "send")
    times = [
        [job["seconds"] for job in run.finished.values() if job["stage"] not in heavy]
        for run in past
        if run.json(SUMMARY)
    ]
    publishing = (size.seconds or 0) * PUBLISH if target.publishes else 0
    recorded = len(size.batches) * PER_BATCH + (size.clips or 0) * PER_CLIP + publishing
    return min((math.fsum(each) for each in times), default=0.0) + recorded


def _downloads(config: Mapping[str, Any], past: Sequence[Past], left: int, batches: int) -> tuple[Figure, float | None]:
    """Bytes on disk at the same time; seconds of all downloads one after another (None: unknown)."""
    if config["source"]["repo"] is None:
        return Figure(0.0, "the source is read in place, or its one archive is kept in raw/"), 0.0
    most, listed = config["download"]["max_gb"] * 1e9, past[0].json("source.json").get("bytes")
    if not listed:
        return Figure(most, "download.max_gb, at most: the source was never listed", (0.0, most)), None
    total, rate = listed * (left / batches if batches else 1), download_rate(past)
    basis = f"{total / 1e9:.1f} GB are left according to source.json, at most download.max_gb at the same time"
    return Figure(min(most, total), basis), total / rate if rate else None


def _disk(config: Mapping[str, Any], to_write: float, size: CorpusSize) -> dict[str, Figure]:
    rate = config["enhance"]["sampling_rate"]

    def flac(seconds: float, note: str = "") -> Figure:
        basis = f"not measured: {FLAC_BYTES * rate * 3600 / 1e6:.0f} MB per hour of audio at {rate} Hz{note}"
        return Figure(seconds * rate * FLAC_BYTES, basis, (0.0, seconds * rate * PCM_BYTES))

    found = {"enhanced": flac(to_write), "originals": flac(to_write, ", if all clips are denoised")}
    found["published"] = flac(size.seconds or 0.0, ", if all clips are accepted")
    if size.seconds is None:
        found = dict.fromkeys(found, Figure(None, size.seconds_basis))
    dropped = {"originals": Figure(0.0, "enhance.keep_original is false")}
    return found if config["enhance"]["keep_original"] else found | dropped


def estimate_text(found: Estimate) -> str:
    """The text of `speechmill plan`."""
    lines = [f"{found.dataset}: what is left of {found.run}"]

    def add(title: str, figure: Figure, unit: str = "", scale: float = 1) -> None:
        span = " to ".join(_shown(each, "", scale) for each in figure.range or ())
        basis = f"{span}{unit}: {figure.basis}" if span else figure.basis
        lines.append(f"  {title:<16}{_shown(figure.value, unit, scale):>15}  {basis}")

    add("clips", found.clips)
    add("audio", found.audio_hours, " h")
    add("batches", found.batches)
    add("batches left", found.batches_left)
    for stage in found.stages:
        speed = f"{stage.audio_seconds_per_second or math.inf:,.1f} x real time"
        basis = f"{speed} and {stage.overhead_seconds:.1f} s a job: {stage.basis}"
        add(stage.stage, Figure(stage.job_seconds, basis, stage.job_seconds_range), " job-h", 3600)
    add("workers", found.workers)
    add("wall clock", found.wall_hours, " h")
    add("GPUs", found.gpu_hours, " GPU-h")
    for name, figure in found.disk_bytes.items():
        add(f"disk, {name}", figure, " GB", 1e9)
    add("upload", found.upload_bytes, " GB", 1e9)
    return "\n".join(lines + [f"  {note}" for note in found.notes])


def _shown(value: float | None, unit: str, scale: float) -> str:
    if value is None:
        return "unknown"
    value /= scale
    return (f"{value:,.0f}" if value == round(value) else f"{value:,.2f}" if value >= 1 else f"{value:.2g}") + unit
