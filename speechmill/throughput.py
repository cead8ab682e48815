"""How fast jobs are: measured on earlier runs, else from a small table of figures that were measured elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from speechmill.attempts import jobs, read_attempts
from speechmill.files import read_json
from speechmill.metrics.registry import resolve_groups

KEPT_JOBS = 200  # the newest of a stage and run: a slope is taken over all pairs of them
SPREAD = 1.5  # times as much audio that one of two jobs must have for a slope
LEAST_PAIRS = 3

# Seconds of a job per second of audio. CPU: two threads of an AMD EPYC, benchmarks/README.md ("Speed of the engine").
# GPU: nobody has measured one. The part of the job that stays on two threads of the CPU as measured (loading 730,
# loudness 2,374, FLAC 4,527 times real time; of score FLAC 6,453), and for the models the lower end of what is
# expected of an H200: 12,000 times real time, 5,000 with the two large networks.
CPU_ENHANCE = {True: 1 / 80, False: 1 / 36}  # by enhance.guard, of rnnoise
CPU_GROUPS = {"signal": 1 / 305, "dnsmos_p808": 1 / 438, "dnsmos_p835": 1 / 18.4, "distillmos": 1 / 17.1}
GPU_ENHANCE = 1 / 730 + 1 / 2374 + 1 / 4527 + 1 / 12_000
GPU_SCORE = 1 / 6453 + 1 / 12_000
GPU_NETWORKS = (1 / 5000 - 1 / 12_000) / 2  # each of dnsmos_p835 and distillmos
CPU_START, GPU_START = 3.0, 10.0  # seconds: imports and models; of a GPU also CUDA
AROUND = 1.0  # seconds until a job's process is there, and until its end is seen

# Seconds per clip of the jobs of a whole run, ibid. ("Scale").
SINGLE = {"duplicates": 1.1e-6, "near_duplicates": 1.4e-5, "advice": 0.7e-6, "report": 7.4e-6}
PUBLISH = 0.5 / 3600  # seconds per second of audio, ibid. ("Publishing")
RANK = 1.0  # seconds of a rank job, which runs beside Snakemake


@dataclass(frozen=True)
class Rate:
    """Of the jobs of a stage: each takes `overhead` seconds and `per_second` for each second of its batch's audio.

    around: seconds before and after, in which it holds its worker but does not work yet or any more.
    """

    overhead: float
    per_second: float
    around: float
    basis: str
    is_measured: bool = False

    def seconds(self, audio: float) -> float:
        """Of one job."""
        return self.overhead + self.per_second * audio


class Past:
    """An earlier run, as far as its folder tells."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir

    @cached_property
    def finished(self) -> dict[tuple[str, str | None, str | None], dict[str, Any]]:
        """The last success of every piece of work, by stage, batch and fetched file."""
        done = [job for job in jobs(read_attempts(self.run_dir)) if job["status"] == "finished"]
        return {(job["stage"], job["batch"], job.get("file")): job for job in done}

    @cached_property
    def preflight(self) -> Mapping[str, Any]:
        return self.json("preflight.json")

    @cached_property
    def source(self) -> Mapping[str, Any]:
        return self.json("source.json")

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        return self.json("report/summary.json")

    @cached_property
    def published(self) -> Mapping[str, Any]:
        return self.json("published/UPLOADED.json")

    def json(self, path: str) -> Mapping[str, Any]:
        try:
            value = read_json(self.run_dir / path)
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def stage(self, name: str) -> list[dict[str, Any]]:
        return [job for (stage, _, _), job in self.finished.items() if stage == name and _is_number(job.get("seconds"))]

    def input_seconds(self, batch: str | None) -> float | None:
        """Seconds of audio that the batch came with, as its enhance job decoded them."""
        told = self.finished.get(("enhance", batch, None), {}).get("audio_seconds")
        return math.fsum(told.values()) if told is not None else None

    def has_settings(self, stage: str, config: Mapping[str, Any]) -> bool:
        """Whether jobs of the stage did the same work there as they would with this configuration."""
        if stage == "score":
            unused = set() if config["score"]["squim_weights"] else {"squim"}
            wanted = set(resolve_groups(config["score"]["metrics"])) - unused
            return set(self.preflight.get("metric_groups") or ()) - unused == wanted
        if self.preflight.get("enhancer") != config["enhance"]["enhancer"]:
            return False
        theirs = (self.summary.get("config") or {}).get("enhance")  # of a run that was not finished, this is not known
        return theirs is None or _denoising(theirs) == _denoising(config["enhance"])


def rate_of(
    stage: str, config: Mapping[str, Any], device: str, mine: Sequence[Past], others: Sequence[Past] = ()
) -> Rate:
    """Of enhance or score jobs on a CPU or GPU: of runs of the same corpus, else of other runs, else of the table."""
    for runs in (mine, others):
        points: list[tuple[float, float]] = []
        around: list[float] = []
        used: list[str] = []
        models: set[str] = set()
        for run in runs:
            found = [job for job in run.stage(stage) if _kind(job) == device] if run.has_settings(stage, config) else []
            for job in found[-KEPT_JOBS:]:
                audio = run.input_seconds(job["batch"])
                points.append(
                    (sum((job.get("audio_seconds") or {}).values()) if audio is None else audio, job["seconds"])
                )
                around.append(max(occupied(job) - job["seconds"], 0))
                models.add(job["device"])
            used += [str(run.run_dir)] if found else []
        if points and any(audio for audio, _ in points):
            overhead, slope = fit(points, CPU_START if device == "CPU" else GPU_START)
            basis = f"measured on {len(points)} jobs of {_listed(used)} ({', '.join(sorted(models))})"
            return Rate(overhead, slope, median(around), basis, True)
    return _of_table(stage, config, device)


def fit(points: Sequence[tuple[float, float]], usual_overhead: float) -> tuple[float, float]:
    """Seconds of a job and seconds per second of audio, over (audio, seconds) of jobs.

    Median slope of the pairs that differ in length. Where there are too few, jobs do not tell the two apart: the
    overhead is the usual one, half of the shortest job at most.
    """
    points = points[-KEPT_JOBS:]
    slopes = [
        (b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(sorted(points), 2) if b[0] >= SPREAD * a[0] and b[0] > 0
    ]
    slope = median(slopes) if len(slopes) >= LEAST_PAIRS else 0.0
    overhead = median([seconds - slope * audio for audio, seconds in points])
    if slope <= 0 or overhead < 0:
        overhead = min(usual_overhead, min(seconds for _, seconds in points) / 2)
        slope = median([(seconds - overhead) / audio for audio, seconds in points if audio > 0])
    return overhead, slope


def occupied(job: Mapping[str, Any]) -> float:
    """Seconds in which a job held its place: beside Snakemake from its submission, on Slurm from its beginning on."""
    since = job.get("began") if job.get("slurm_job") else job["submitted"]
    if not since:
        return float(job["seconds"])
    return (datetime.fromisoformat(job["ended"]) - datetime.fromisoformat(since)).total_seconds()


def single_seconds(stage: str, clips: float, audio: float, runs: Iterable[Past]) -> tuple[float, bool]:
    """Of a job of the whole run, and whether it was measured: what the run nearest in size took, and the table for the
    clips that this one has more."""
    measured = []
    for run in runs:
        theirs = (run.summary.get("clips") or {}).get("input"), (run.summary.get("hours") or {}).get("input")
        if theirs[0] and theirs[1] is not None:
            measured += [(theirs[0], theirs[1] * 3600, occupied(job)) for job in run.stage(stage)]
    base = (0, 0.0, AROUND)
    if measured:
        base = min(measured, key=lambda point: abs(math.log(point[0] / max(clips, 1))))
    more = (audio - base[1]) * PUBLISH if stage == "publish" else (clips - base[0]) * SINGLE.get(stage, 0)
    return base[2] + max(more, 0), bool(measured)


def download_rate(runs: Iterable[Past]) -> tuple[float, int] | None:
    """Bytes per second of one download, and of how many that is the median; None where nothing was downloaded."""
    rates = [
        job["bytes"] / job["transfer_seconds"]
        for run in runs
        for job in run.stage("fetch")
        if job.get("bytes") and job.get("transfer_seconds")
    ]
    return (median(rates), len(rates)) if rates else None


def upload_rate(runs: Iterable[Past]) -> tuple[float, int] | None:
    """Bytes per second that one job sends to the Hub, building its shards included, and of how many jobs."""
    size = seconds = 0.0
    count = 0
    for run in runs:
        sending = run.stage("send")
        if not sending:
            continue
        size += sum(
            run.json(f"published/data/{path.name}").get("size", 0) for path in run.run_dir.glob("published/data/*.json")
        )
        seconds += sum(job["seconds"] for job in sending)
        count += len(sending)
    return (size / seconds, count) if size and seconds else None


def _of_table(stage: str, config: Mapping[str, Any], device: str) -> Rate:
    basis = "calibration table (no earlier run with these settings on this kind of device)"
    if device != "CPU":
        basis += "; no GPU was ever measured: expected of an H200"
    if stage == "enhance":
        if config["enhance"]["enhancer"] != "rnnoise":
            basis += "; of rnnoise, which takes longer"
        slope = CPU_ENHANCE[config["enhance"]["guard"]] if device == "CPU" else GPU_ENHANCE
    else:
        groups = resolve_groups(config["score"]["metrics"])
        if "squim" in groups and config["score"]["squim_weights"]:
            basis += "; without squim, which was not measured"
        if device == "CPU":
            slope = math.fsum(CPU_GROUPS.get(group, 0.0) for group in groups)
        else:
            slope = GPU_SCORE + GPU_NETWORKS * len({"dnsmos_p835", "distillmos"} & set(groups))
    return Rate(CPU_START if device == "CPU" else GPU_START, slope, AROUND, basis)


def _denoising(section: Mapping[str, Any]) -> tuple[bool, Any]:
    return section.get("level") == "none", section.get("guard")


def _kind(job: Mapping[str, Any]) -> str | None:
    device = job.get("device")
    return None if device is None else "CPU" if device == "CPU" else "GPU"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
