"""Rates of jobs: measured on earlier runs, or else recorded in benchmarks/README.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from speechmill.metrics.registry import resolve_groups
from speechmill.runlog.attempts import jobs, read_attempts
from speechmill.storage.files import read_json

SUMMARY = "report/summary.json"
# Seconds of audio per second of a job. CPU: two threads, "Speed of the engine". GPU: expected for an H200, not
# measured: steps that stay on the CPU at their recorded speed, models at 12,000.
RECORDED: dict[str, dict[str, float]] = {
    "CPU": {"enhance": 80, "denoise": 36, "signal": 305, "dnsmos_p808": 438, "dnsmos_p835": 18.4, "distillmos": 17.1},
    "GPU": {"enhance": 477, "denoise": 477, "score": 4196, "dnsmos_p835": 17_143, "distillmos": 17_143},
}
SPREAD = {"CPU": 2.0, "GPU": 4.0}  # the range of unmeasured jobs: 1/SPREAD to SPREAD times as long (docs/operating.md)
START = {"CPU": 3.0, "GPU": 10.0}  # seconds before a job computes: imports, models, CUDA


@dataclass(frozen=True)
class Rate:
    """A job takes `overhead` seconds, plus `per_second` for each second of audio. `spread` is 1 if it was measured."""

    overhead: float
    per_second: float
    basis: str
    spread: float = 1.0

    def seconds(self, audio: float) -> float:
        return self.overhead + self.per_second * audio


class Past:
    """An earlier run, read from its folder."""

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self._read: dict[str, Mapping[str, Any]] = {}

    @cached_property
    def finished(self) -> dict[tuple[str, str | None, str | None], dict[str, Any]]:
        """The last successful job of each stage, batch and fetched file."""
        known = [job for job in jobs(read_attempts(self.run_dir)) if job.get("seconds") is not None]
        return {(job["stage"], job["batch"], job.get("file")): job for job in known if job["status"] == "finished"}

    def json(self, path: str) -> Mapping[str, Any]:
        """A file of the run; empty if it is missing or damaged."""
        if path not in self._read:
            try:
                value = read_json(self.run_dir / path)
            except (OSError, ValueError):
                value = None
            self._read[path] = value if isinstance(value, dict) else {}
        return self._read[path]

    def stage(self, name: str) -> list[dict[str, Any]]:
        return [job for job in self.finished.values() if job["stage"] == name]

    def audio_seconds(self, batch: str | None, stage: str = "enhance") -> float:
        """Seconds of audio that the job of the batch read; 0 if it has not finished."""
        return math.fsum((self.finished.get((stage, batch, None), {}).get("audio_seconds") or {}).values())

    def has_settings(self, stage: str, config: Mapping[str, Any]) -> bool:
        """Whether the run's jobs of this stage did the same work as they would with `config`."""
        found = self.json("preflight.json")
        if stage == "score":
            unused = set() if config["score"]["squim_weights"] else {"squim"}
            wanted = set(resolve_groups(config["score"]["metrics"])) - unused
            return set(found.get("metric_groups") or ()) - unused == wanted
        theirs = (self.json(SUMMARY).get("config") or {}).get("enhance")  # unknown until the run has a report
        same = theirs is None or _denoising(theirs) == _denoising(config["enhance"])
        return same and found.get("enhancer") == config["enhance"]["enhancer"]


def rate_of(stage: str, config: Mapping[str, Any], device: str, runs: Sequence[Past]) -> Rate:
    """The rate of enhance or score jobs on a CPU or GPU: measured on the first run with such jobs, or else recorded."""
    for run in runs:
        found = [
            (job, audio)
            for job in (run.stage(stage) if run.has_settings(stage, config) else ())
            if job.get("device") and (job["device"] == "CPU") == (device == "CPU")
            if (audio := run.audio_seconds(job["batch"]) or run.audio_seconds(job["batch"], stage))
        ]
        if found:
            overhead = min(START[device], min(job["seconds"] for job, _ in found) / 2)
            per_second = median((job["seconds"] - overhead) / audio for job, audio in found)
            models = ", ".join(sorted({job["device"] for job, _ in found}))
            return Rate(overhead, per_second, f"measured on {len(found)} jobs of {run.run_dir} ({models})")
    basis = "not measured (no earlier run with these settings on this kind of device): rates of benchmarks/README.md"
    if device == "GPU":
        basis += ", expected for an H200, because no GPU was measured"
    if stage == "enhance":
        names = ["enhance" if config["enhance"]["guard"] else "denoise"]
        if config["enhance"]["enhancer"] != "rnnoise":
            basis += "; for rnnoise, which is slower"
    else:
        names = ["score", *resolve_groups(config["score"]["metrics"])]
        if "squim" in names and config["score"]["squim_weights"]:
            basis += "; without squim, which was not measured"
    slope = math.fsum(1 / RECORDED[device][name] for name in names if name in RECORDED[device])
    return Rate(START[device], slope, basis, SPREAD[device])


def download_rate(runs: Sequence[Past]) -> float | None:
    """Median bytes per second of the downloads; None if there were none."""
    fetched = [job for run in runs for job in run.stage("fetch") if job.get("bytes") and job.get("transfer_seconds")]
    return median(job["bytes"] / job["transfer_seconds"] for job in fetched) if fetched else None


def _denoising(section: Mapping[str, Any]) -> tuple[bool, Any]:
    return section.get("level") == "none", section.get("guard")
