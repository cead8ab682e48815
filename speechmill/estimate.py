"""What a run will take, before it begins: `speechmill plan`.

A batch is one enhance job and then one score job. Each takes a fixed time and a time per second of audio, both from
earlier runs (`speechmill.throughput`); the workers take them one after the other. Every figure says what it rests on;
what nobody knows is None and says why. Work that is done in the run's folder does not count again.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from speechmill.attempts import FILE as ATTEMPTS
from speechmill.corpus_size import BatchSize, CorpusSize, corpus_size
from speechmill.devices import visible_gpus
from speechmill.errors import SpeechmillError
from speechmill.runs import read_profile
from speechmill.sources.revision import asked_for
from speechmill.throughput import RANK, Past, Rate, download_rate, occupied, rate_of, single_seconds, upload_rate

MB_PER_HOUR = 70  # of FLAC, mono, 16 bit at 16 kHz: docs/operating.md (Files and space)
KEPT_RUNS = 50  # earlier runs beside a run that are looked at
KEPT_SHARDS = 50  # footers of enhanced shards that are read
THREADS = 2  # of an enhance or score job
BEFORE = {"preflight": "preflight.json", "source": "source.json", "manifest": "manifest/batches.tsv"}
AFTER = {
    "duplicates": "ledger/duplicates.parquet",
    "near_duplicates": "ledger/near_duplicates.parquet",
    "advice": "ranking/advice.json",
    "report": "report/summary.json",
    "publish": "published/UPLOADED.json",
}
NOTES = (
    "waiting in a queue is not in it, nor failed attempts",
    "results made with other settings of ranking or publishing, or by an older version, are taken for done",
)


@dataclass(frozen=True)
class Figure:
    """A number and what it rests on; None where it is not known."""

    value: float | None
    basis: str


@dataclass(frozen=True)
class Stage:
    """What is left of enhance or score: jobs, their seconds in all, and the rate that says so."""

    stage: str
    jobs: int | None
    job_seconds: float | None
    audio_seconds_per_second: float | None
    overhead_seconds: float
    basis: str
    is_measured: bool


@dataclass(frozen=True)
class Slots:
    """What works at the same time."""

    device: str  # CPU | GPU
    workers: int
    local_cores: int
    downloads: int
    uploads: int
    basis: str


@dataclass(frozen=True)
class Estimate:
    """`clips`, `audio_hours` and `batches` are of the whole corpus, all else is of what is left to do."""

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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def earlier_runs(run_dir: Path) -> list[Path]:
    """Runs beside this one, the newest first."""
    found = [path.parents[1] for path in run_dir.parent.glob(f"*/{ATTEMPTS}") if path.parents[1] != run_dir]
    return sorted(found, key=lambda run: (run / ATTEMPTS).stat().st_mtime, reverse=True)[:KEPT_RUNS]


def estimate(
    config: Mapping[str, Any],
    run_dir: Path,
    history: Sequence[Path],
    *,
    profile: str = "slurm",
    directory: Path = Path(),
) -> Estimate:
    """Of a run that would begin, or go on, in `run_dir`.

    Args:
        config: the complete configuration.
        history: folders of earlier runs, the newest first; the run's own comes before them.
        profile: as for `speechmill run`.
        directory: in which relative paths of the configuration begin.

    Raises:
        SpeechmillError: a folder of the history holds no run, there is no such profile, or no such metric group.
    """
    empty = [str(path) for path in history if not (path / ATTEMPTS).exists()]
    if empty:
        raise SpeechmillError(f"{', '.join(empty)}: there is no run here ({ATTEMPTS} is missing)")
    own = Past(run_dir)
    past = [own, *(Past(path) for path in history if path.resolve() != run_dir.resolve())]
    mine = [run for run in past if run is own or _same_source(run, own, config)]
    others = [run for run in past if run not in mine]
    slots = slots_of(config, profile)
    size = corpus_size(config, own, mine, directory)
    left = {stage: _left(stage, config, own, size) for stage in ("enhance", "score")}
    rates = {stage: rate_of(stage, config, slots.device, mine, others) for stage in left}
    stages = [_stage(name, left[name], rates[name], size) for name in left]
    downloads = _downloads(config, past, own, mine, left["enhance"], size)
    disk = _disk(config, past, left["enhance"], size) | {"downloads": downloads[0]}
    upload = _upload(config, past, size, disk["published"])
    if config["publish"]["kind"] == "hub":
        disk["published"] = Figure(0.0, "shards on their way to the Hub alone")
    wall = _wall(config, slots, left, rates, own, past, size, downloads[1], upload)
    return Estimate(
        dataset=config["dataset"],
        run=str(run_dir),
        clips=Figure(size.clips, size.clips_basis),
        audio_hours=Figure(None if size.seconds is None else size.seconds / 3600, size.seconds_basis),
        batches=Figure(
            len(size.batches) or None, size.clips_basis + ("" if size.is_cut else f", by {config['batch_size']}")
        ),
        batches_left=_batches_left(left, size),
        stages=stages,
        workers=Figure(slots.workers, slots.basis),
        wall_hours=wall,
        gpu_hours=_gpu_hours(stages, slots),
        disk_bytes=disk,
        upload_bytes=upload,
        notes=list(NOTES),
    )


def makespan(work: Sequence[tuple[float, float]], workers: int) -> float:
    """Seconds until every batch is enhanced and then scored, each pair in this order, by workers that do either.

    A worker that is free takes a batch that can be scored before one to enhance; 0 seconds are no job.
    """
    waiting = iter([pair for pair in work if pair[0]])
    ready = [(0.0, score) for enhance, score in work if not enhance and score]
    heapq.heapify(ready)  # by when they are enhanced
    free = [0.0] * max(workers, 1)
    pending = next(waiting, None)
    end = 0.0
    while pending or ready:
        now = heapq.heappop(free)
        if ready and (ready[0][0] <= now or not pending):
            since, seconds = heapq.heappop(ready)
            done = max(now, since) + seconds
        else:
            assert pending is not None
            done = now + pending[0]
            if pending[1]:
                heapq.heappush(ready, (done, pending[1]))
            pending = next(waiting, None)
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def slots_of(config: Mapping[str, Any], profile: str) -> Slots:
    """By the profile and the configuration, as rules/common.smk has it."""
    values = read_profile(profile)[1]
    pools = dict(str(each).split("=", 1) for each in values.get("resources") or () if "=" in str(each))
    on_slurm = values.get("executor") == "slurm"
    cores = _cores() if values.get("cores") in (None, "all") else int(values["cores"])
    gpus = int(pools.get("gpu", 0 if on_slurm else visible_gpus()))
    per_worker = min(gpus, config["cluster"]["gpus_per_worker"])
    most = {"cluster.workers": config["cluster"]["workers"]}
    if per_worker:
        most["GPUs"] = gpus // per_worker
    if on_slurm:
        most["jobs of the profile"] = int(values.get("jobs") or most["cluster.workers"])
    else:
        most["cores"] = max(cores // min(THREADS, cores), 1)
    bound = min(most, key=lambda name: most[name])
    return Slots(
        device="GPU" if per_worker and config["device"] != "cpu" else "CPU",
        workers=most[bound],
        local_cores=int(values.get("local-cores") or 1) if on_slurm else cores,
        downloads=int(pools.get("download_slots", 1)),
        uploads=int(pools.get("upload_slots", 1)),
        basis=f"profile {profile}: bound by {bound}",
    )


def _same_source(run: Past, own: Past, config: Mapping[str, Any]) -> bool:
    """A relative path means the same where the runs lie beside each other."""
    section = config["source"]
    path = section["path"]
    beside = run.run_dir.resolve().parent == own.run_dir.resolve().parent
    return run.source.get("asked_for") == asked_for(section) and (path is None or Path(path).is_absolute() or beside)


def _left(stage: str, config: Mapping[str, Any], own: Past, size: CorpusSize) -> list[BatchSize]:
    """Batches that the stage has to do: there are no results, or they were made with other settings."""
    if not size.is_cut or not own.has_settings("enhance", config):
        return list(size.batches)
    scored = own.has_settings("score", config)

    def is_done(batch: BatchSize) -> bool:
        has_scores = scored and (own.run_dir / "scores" / f"{batch.name}.parquet").exists()
        shard = own.run_dir / "enhanced" / f"{batch.name}.parquet"
        kept = shard.exists() or (has_scores and not config["keep_enhanced"])
        is_enhanced = kept and (own.run_dir / "ledger" / f"{batch.name}.enhance.parquet").exists()
        return is_enhanced and (stage == "enhance" or has_scores)

    return [batch for batch in size.batches if not is_done(batch)]


def _stage(name: str, left: Sequence[BatchSize], rate: Rate, size: CorpusSize) -> Stage:
    seconds = None if size.seconds is None else math.fsum(rate.seconds(batch.seconds or 0) for batch in left)
    return Stage(
        stage=name,
        jobs=len(left) if size.batches else None,
        job_seconds=seconds,
        audio_seconds_per_second=1 / rate.per_second if rate.per_second else None,
        overhead_seconds=rate.overhead,
        basis=rate.basis,
        is_measured=rate.is_measured,
    )


def _batches_left(left: Mapping[str, Sequence[BatchSize]], size: CorpusSize) -> Figure:
    if not size.batches:
        return Figure(None, size.clips_basis)
    named = {batch.name for batches in left.values() for batch in batches if batch.name}
    count = len(named) if size.is_cut else len(size.batches)
    return Figure(count, f"to enhance {len(left['enhance'])}, to score {len(left['score'])}")


def _wall(
    config: Mapping[str, Any],
    slots: Slots,
    left: Mapping[str, Sequence[BatchSize]],
    rates: Mapping[str, Rate],
    own: Past,
    past: Sequence[Past],
    size: CorpusSize,
    download_seconds: float | None,
    upload: Figure,
) -> Figure:
    if size.seconds is None or size.clips is None:
        return Figure(None, size.seconds_basis if size.seconds is None else size.clips_basis)
    work: dict[Any, list[float]] = {}
    for place, stage in enumerate(left):
        for number, batch in enumerate(left[stage]):
            seconds = rates[stage].seconds(batch.seconds or 0) + rates[stage].around
            work.setdefault(batch.name or number, [0.0, 0.0])[place] = seconds
    parts = {"workers": makespan([(each[0], each[1]) for each in work.values()], slots.workers)}
    if download_seconds is not None:
        parts["downloads"] = download_seconds / slots.downloads
    sending = upload_rate(past)
    if upload.value and sending:
        parts["uploads"] = upload.value / sending[0] / slots.uploads
    bound = max(parts, key=lambda name: parts[name])

    wanted = [name for name in BEFORE if not (own.run_dir / BEFORE[name]).exists()]
    after = [name for name in AFTER if work or not (own.run_dir / AFTER[name]).exists()]
    wanted += [name for name in after if name != "publish" or config["publish"]["kind"] != "none"]
    singles = {name: single_seconds(name, size.clips, size.seconds, past) for name in wanted}
    ranking = [occupied(job) for run in past for job in run.stage("rank")]
    ranks = (len(size.batches) if work or "advice" in after else 0) * (median(ranking) if ranking else RANK)
    rest = math.fsum(seconds for seconds, _ in singles.values()) + ranks / slots.local_cores

    basis = [f"{slots.workers} workers, bound by {bound}"]
    basis += [
        f"{stage} by the {'account of earlier jobs' if r.is_measured else 'calibration table'}"
        for stage, r in rates.items()
    ]
    basis.append(f"{rest / 3600:.3g} h of jobs of the whole run and of ranking")
    unknown = [name for name, (_, is_measured) in singles.items() if not is_measured]
    if {"source", "manifest"} & set(unknown):
        basis.append("listing the source is not in it: no earlier run")
    if left["enhance"] and config["source"]["repo"] is not None and download_seconds is None:
        basis.append("as if downloads kept up: their rate or size is not known")
    if upload.value and not sending:
        basis.append("as if uploads kept up: none was measured")
    return Figure((parts[bound] + rest) / 3600, "; ".join(basis))


def _gpu_hours(stages: Sequence[Stage], slots: Slots) -> Figure:
    if slots.device == "CPU":
        return Figure(0.0, f"no GPU is used ({slots.basis})")
    seconds = [stage.job_seconds for stage in stages]
    known = [each for each in seconds if each is not None]
    measured = all(stage.is_measured for stage in stages)
    basis = "job seconds of enhance and score" + ("" if measured else "; not all measured on a GPU")
    return Figure(math.fsum(known) / 3600 if len(known) == len(seconds) else None, basis)


def _downloads(
    config: Mapping[str, Any],
    past: Sequence[Past],
    own: Past,
    mine: Sequence[Past],
    left: Sequence[BatchSize],
    size: CorpusSize,
) -> tuple[Figure, float | None]:
    """Bytes on disk at the same time, and seconds of all downloads that are left, one after the other."""
    if config["source"]["repo"] is None:
        return Figure(0.0, "the source is read in place, or its one archive is kept in raw/"), None
    if not left and size.batches:
        return Figure(0.0, "every batch is enhanced"), 0.0
    most = config["download"]["max_gb"] * 1e9
    listed = next((run for run in (own, *mine) if run.source.get("bytes")), None)
    if listed is None:
        return Figure(most, "download.max_gb, at most: the source was never listed"), None
    total = listed.source["bytes"] * (len(left) / len(size.batches) if size.batches else 1)
    rate = download_rate(past)
    return (
        Figure(min(most, total), f"{total / 1e9:.1f} GB by {listed.run_dir}/source.json, download.max_gb at a time"),
        total / rate[0] if rate else None,
    )


def _disk(
    config: Mapping[str, Any], past: Sequence[Past], left: Sequence[BatchSize], size: CorpusSize
) -> dict[str, Figure]:
    if size.seconds is None:
        return {name: Figure(None, size.seconds_basis) for name in ("enhanced", "originals", "published")}
    usual = MB_PER_HOUR * 1e6 / 3600 * config["enhance"]["sampling_rate"] / 16_000
    table = f"{usual * 3600 / 1e6:.0f} MB per hour of audio at {config['enhance']['sampling_rate']} Hz"
    to_write = math.fsum(batch.seconds or 0 for batch in left)
    found: dict[str, Figure] = {}
    measured = next((each for run in past if _same_audio(run, config) and (each := _shard_bytes(run))), None)
    if measured:
        enhanced, originals, basis = measured
        found["enhanced"] = Figure(to_write * enhanced, basis)
        found["originals"] = Figure(to_write * originals, basis)
    else:
        found["enhanced"] = Figure(to_write * usual, table)
        found["originals"] = Figure(to_write * usual, f"{table}, at most: as if all clips were denoised")
    if not config["enhance"]["keep_original"]:
        found["originals"] = Figure(0.0, "enhance.keep_original is false")
    is_done = not left and bool(past[0].published)
    found["published"] = (
        Figure(0.0, "published already") if is_done else _published(config, past, size.seconds, usual, table)
    )
    return found


def _published(config: Mapping[str, Any], past: Sequence[Past], seconds: float, usual: float, table: str) -> Figure:
    if config["publish"]["kind"] == "none":
        return Figure(0.0, "publish.kind is none")
    for run in past:
        size, hours = run.published.get("bytes"), (run.summary.get("hours") or {}).get("input")
        if size and hours and _same_audio(run, config):
            return Figure(seconds * size / (hours * 3600), f"as {run.run_dir} published of each hour that it had")
    return Figure(seconds * usual, f"{table}, at most: as if all were accepted")


def _upload(config: Mapping[str, Any], past: Sequence[Past], size: CorpusSize, published: Figure) -> Figure:
    if config["publish"]["kind"] != "hub":
        return Figure(0.0, f"publish.kind is {config['publish']['kind']}")
    return published


def _same_audio(run: Past, config: Mapping[str, Any]) -> bool:
    theirs = (run.summary.get("config") or {}).get("enhance") or {}
    same = all(theirs.get(name) == config["enhance"][name] for name in ("sampling_rate", "keep_original"))
    return same and run.has_settings("enhance", config)


def _shard_bytes(run: Past) -> tuple[float, float, str] | None:
    """Bytes of enhanced shards per second of audio that came in, without and of the originals, by their footers."""
    all_bytes = originals = 0
    seconds = 0.0
    count = 0
    for shard in sorted((run.run_dir / "enhanced").glob("*.parquet"))[:KEPT_SHARDS]:
        audio = run.input_seconds(shard.stem)
        if not audio:
            continue
        footer = pq.read_metadata(shard)
        for group in (footer.row_group(number) for number in range(footer.num_row_groups)):
            columns = [group.column(number) for number in range(group.num_columns)]
            originals += sum(c.total_compressed_size for c in columns if c.path_in_schema.startswith("original."))
        all_bytes += shard.stat().st_size
        seconds += audio
        count += 1
    if not seconds:
        return None
    return (all_bytes - originals) / seconds, originals / seconds, f"measured on {count} shards of {run.run_dir}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def estimate_text(found: Estimate) -> str:
    """For a person."""
    lines = [f"{found.dataset}: what is left of {found.run}"]

    def add(title: str, figure: Figure, unit: str = "", scale: float = 1) -> None:
        lines.append(f"  {title:<16}{_shown(figure.value, unit, scale):>15}  {figure.basis}")

    add("clips", found.clips)
    add("audio", found.audio_hours, " h")
    add("batches", found.batches)
    add("batches left", found.batches_left)
    for stage in found.stages:
        speed = f"{stage.audio_seconds_per_second or math.inf:,.1f} x real time"
        basis = f"{speed} and {stage.overhead_seconds:.1f} s a job: {stage.basis}"
        add(stage.stage, Figure(stage.job_seconds, basis), " job-h", 3600)
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
