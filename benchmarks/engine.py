"""How fast clips are enhanced and scored: `python benchmarks/engine.py [--part steps ...] [--device cuda:0] [--quick]`.

steps: each step of the jobs alone. jobs: whole jobs, beside what the machine could do at most and what one would write
clip by clip with the libraries themselves. share: what of the job `full` is not its models. vad: Silero VAD and the
package's own function on one core. lengths, batches, threads, sizes: what the jobs cost by each. Each job is a process
of its own; importing is not counted, loading its models is.

Speed is seconds of audio per second (audio-hours per hour), by the wall clock and per core (by the CPU seconds of all
threads), which other work on the machine disturbs less. Status 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from engine_measures import Job, Ran, enhanced, limits, scored, share_of_models, steps, vad_on_one_core
from per_clip import FULL, LIGHT, per_clip, summed
from speech_corpus import Corpus, Cost, apart, build_corpus, cores, drawn_lengths, machine, need, said

PARTS = ("steps", "jobs", "share", "vad", "lengths", "batches", "threads", "sizes")
PACKAGES = ("torch", "onnxruntime", "soundfile", "soxr", "numpy", "silero-vad", "pyrnnoise", "speechmos", "distillmos")
PACKAGES += ("noisereduce", "pyloudnorm")
TARGETS = {"light_times_per_clip": 4.0, "vad_times_package": 12.0, "full_other_share": 0.10}
# For clips of one length: none is rejected for it, and all are denoised.
ANY_LENGTH = {"max_seconds": 3600, "min_seconds": 0.1, "min_speech_seconds": 0.01, "trim": False, "guard": False}


@dataclass(frozen=True)
class Amounts:
    """How much is measured: clips of the corpus, of its first part for slow things, and what is varied."""

    clips: int
    steps: int
    per_clip: int
    share: int
    lengths: tuple[float, ...]  # seconds of a clip
    length_total: float  # seconds of audio for each
    batch_seconds: tuple[float, ...]
    threads: tuple[int, ...]
    sizes: tuple[int, ...]  # clips

    @classmethod
    def of(cls, clips: int, quick: bool) -> Amounts:
        if quick:
            return cls(12, 4, 2, 4, (30,), 30, (10,), (1,), (16,))
        lengths = (0.5, 1, 2, 5, 10, 30, 60, 300, 1200)
        threads = tuple(sorted({1, 2, 4, 8, 16, 32, 64} & set(range(cores())) | {cores()}))
        sizes = (clips // 2, clips, 2 * clips, 4 * clips)
        return cls(clips, clips // 4, clips // 8, clips // 4, lengths, 3 * clips, (10, 30, 120, 480), threads, sizes)


class Benchmark:
    """Parts that are asked for, their tables, and what is missed."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.folder, self.device, self.seed = folder, options.device, options.seed
        self.amounts = Amounts.of(options.clips, options.quick)
        self.missed: list[str] = []
        self.results: dict[str, Any] = {}
        self.corpus = build_corpus(folder / "corpus", drawn_lengths(self.amounts.clips, self.seed), self.seed)
        self.runs = 0

    def run(self, part: str) -> None:
        begin = time.perf_counter()
        self.results[part] = getattr(self, part)()
        print(f"({part}: {time.perf_counter() - begin:.0f} s, load now {os.getloadavg()[0]:.1f})\n", flush=True)

    def first(self, clips: int) -> Corpus:
        self.runs += 1
        return self.corpus.first(clips, self.folder / f"first-{self.runs}")

    def work(self) -> Path:
        self.runs += 1
        return self.folder / f"work-{self.runs}"

    def job(self, corpus: Corpus, **settings: Any) -> Job:
        return Job(corpus.folder, self.device, **{"threads": cores(), **settings})

    def both(self, job: Job) -> dict[str, Ran]:
        """Enhanced and scored."""
        work = self.work()
        return {"enhance": apart(enhanced, job, work), "score": apart(scored, job, work)}

    def target(self, name: str, value: float, better: bool) -> None:
        if not better:
            self.missed.append(f"{name} is {value:.3g}, the target is {TARGETS[name]:g}")

    def steps(self) -> Any:
        corpus = self.first(self.amounts.steps)
        found = apart(steps, corpus.folder, self.device, self.work())
        print(f"Each step alone, {len(corpus.seconds)} clips, {corpus.total / 60:.1f} minutes:\n")
        table("step", "x real time", "per core", "CPU seconds per audio-hour")
        for name, one in found.items():
            row(name, *speeds(corpus.total, one), f"{3600 * one.cpu_seconds / corpus.total:.1f}")
        return {"seconds": corpus.total, "costs": {name: vars(one) for name, one in found.items()}}

    def jobs(self) -> Any:
        corpus, few = self.corpus, self.first(self.amounts.per_clip)
        bounds = apart(limits, corpus.folder, self.device)
        light, work = self.job(corpus), self.work()
        ours = {"enhance": apart(enhanced, light, work), "score light": apart(scored, light, work)}
        ours |= {f"{name}, one clip: what starting takes": one for name, one in self.started().items()}
        unguarded = dataclasses.replace(light, enhance={"guard": False})
        ours["enhance without the guard (all clips denoised)"] = apart(enhanced, unguarded, self.work())
        ours["score full"] = apart(scored, dataclasses.replace(light, metrics="full"), work)
        ours["enhance and score light"] = together(ours["enhance"], ours["score light"])
        ours["enhance and score full"] = together(ours["enhance"], ours["score full"])
        alone = apart(per_clip, sorted(few.folder.iterdir()))
        print("Whole jobs, beside what the machine can do at most and what one would write clip by clip:\n")
        table("what", "x real time", "per core", "peak MB", "GPU busy")
        for name, one in bounds.items():
            row(f"limit: {name}, all cores", *speeds(corpus.total, one), "", "")
        for name, one in ours.items():
            if "one clip" in name:
                row(name, f"({one.seconds:.2f} s)", f"({one.cpu_seconds:.2f} s)", f"{one.peak_mb:.0f}", "")
                continue
            busy = "not measured" if one.busy is None else f"{100 * one.busy:.0f} %"
            row(name, *speeds(corpus.total, one), f"{one.peak_mb:.0f}", busy if self.device != "cpu" else "")
        ratios = self.compositions(few, alone, ours)
        return {
            "limits": {name: vars(one) for name, one in bounds.items()},
            "jobs": {name: vars(one) for name, one in ours.items()},
            "seconds": corpus.total,
            "per_clip": {name: vars(one) for name, one in alone.items()},
            "per_clip_seconds": few.total,
            "ratios": ratios,
        }

    def started(self) -> dict[str, Ran]:
        """Both jobs over one clip."""
        return self.both(self.job(self.first(1)))

    def compositions(self, few: Corpus, alone: dict[str, Cost], ours: dict[str, Ran]) -> dict[str, Any]:
        """Prints what the compositions take and how many times faster the jobs are; the target is of the first."""
        print(f"\nClip by clip, {len(few.seconds)} clips, {few.total / 60:.1f} minutes, one process:\n")
        table("step", "x real time", "per core")
        for name, one in alone.items():
            row(name, *speeds(few.total, one))
        print()
        table("composition", "x real time", f"times {cores()} cores", "jobs are faster", "than on all cores", "by CPU")
        ratios = {}
        for metrics, variants in (("light", LIGHT), ("full", FULL)):
            job = ours[f"enhance and score {metrics}"]
            for name, parts in variants.items():
                whole = summed(alone, parts)
                speed, own = few.total / whole.seconds, self.corpus.total / job.seconds
                cpu = (whole.cpu_seconds / few.total) / (job.cpu_seconds / self.corpus.total)
                ratios[name] = {"wall": own / speed, "all_cores": own / speed / cores(), "cpu": cpu}
                shown = [f"{value:.1f}" for value in ratios[name].values()]
                row(f"{metrics}: {name}", f"{speed:.1f}", f"{speed * cores():.1f}", *shown)
        first = ratios[next(iter(LIGHT))]["wall"]
        self.target("light_times_per_clip", first, first >= TARGETS["light_times_per_clip"])
        return ratios

    def share(self) -> Any:
        corpus = self.first(self.amounts.share)
        job, work = self.job(corpus, metrics="full"), self.work()
        apart(enhanced, job, work)
        found = apart(share_of_models, job, work)
        print(f"Score job `full`, {len(corpus.seconds)} clips, {found['wall']:.1f} s:\n")
        table("model", "calls", "seconds in them", "seconds alone")
        for name, one in found["models"].items():
            row(name, one["calls"], f"{one['in_calls']:.2f}", "" if one["alone"] is None else f"{one['alone']:.2f}")
        at_work = found["in_calls"]
        if self.device.startswith("cuda"):  # where calls return before they are computed
            at_work = sum(one["alone"] for one in found["models"].values())
        other = 1 - at_work / found["wall"]
        row("**all else**", "", f"{100 * other:.1f} %", "")
        self.target("full_other_share", other, other <= TARGETS["full_other_share"])
        return found | {"other": other}

    def vad(self) -> Any:
        found = apart(vad_on_one_core, self.corpus.folder)
        faster = found["package"] / found["ours"]
        print(f"Silero VAD on one core, {found['clips']} clips:\n")
        table("", "x real time")
        row("ours, in batches", f"{found['seconds'] / found['ours']:.0f}")
        row("the package's get_speech_timestamps", f"{found['seconds'] / found['package']:.0f}")
        print(f"\n{faster:.1f} times as fast; segments equal for {found['equal']} of {found['clips']} clips, ", end="")
        print(f"probabilities differ by {found['difference']:.1e} at most")
        self.target("vad_times_package", faster, faster >= TARGETS["vad_times_package"])
        if found["equal"] < found["clips"]:
            self.missed.append(f"VAD: other segments for {found['clips'] - found['equal']:.0f} clips")
        return found | {"faster": faster}

    def varied(self, what: str, jobs: dict[str, tuple[Corpus, Job]]) -> Any:
        """Both jobs for each value of something, in a table."""
        table(what, "clips scored", "minutes", "enhance, x", "per core", "MB", "score light, x", "per core", "MB")
        found = {}
        for value, (corpus, job) in jobs.items():
            both = self.both(job)
            cells = [cell for one in both.values() for cell in (*speeds(corpus.total, one), f"{one.peak_mb:.0f}")]
            row(value, f"{both['score'].clips} of {len(corpus.seconds)}", f"{corpus.total / 60:.1f}", *cells)
            found[value] = {"seconds": corpus.total, **{name: vars(one) for name, one in both.items()}}
        return found

    def lengths(self) -> Any:
        print(
            "By length of the clips (enhance.max_seconds raised, nothing trimmed, guard off so that all are denoised):\n"
        )
        jobs = {}
        for seconds in self.amounts.lengths:
            clips = max(1, round(self.amounts.length_total / seconds))
            corpus = build_corpus(self.folder / f"length-{seconds:g}", [seconds] * clips, self.seed)
            jobs[f"{seconds:g} s"] = (corpus, self.job(corpus, enhance=ANY_LENGTH))
        return self.varied("length", jobs)

    def batches(self) -> Any:
        print("By padded seconds of a device batch (batch_seconds of enhance and score):\n")
        values = self.amounts.batch_seconds
        return self.varied("seconds", {f"{v:g}": (self.corpus, self.job(self.corpus, batch_seconds=v)) for v in values})

    def threads(self) -> Any:
        print("By threads of the job:\n")
        counts = self.amounts.threads
        return self.varied("threads", {str(n): (self.corpus, self.job(self.corpus, threads=n)) for n in counts})

    def sizes(self) -> Any:
        print("By number of clips:\n")
        jobs = {}
        for clips in self.amounts.sizes:
            corpus = build_corpus(self.folder / f"size-{clips}", drawn_lengths(clips, self.seed), self.seed)
            jobs[str(clips)] = (corpus, self.job(corpus))
        return self.varied("corpus", jobs)


def together(*parts: Ran) -> Ran:
    """Jobs one after the other."""
    return Ran(
        sum(one.seconds for one in parts),
        sum(one.cpu_seconds for one in parts),
        max(one.peak_mb for one in parts),
        parts[-1].clips,
    )


def speeds(seconds: float, one: Cost) -> tuple[str, str]:
    """Seconds of audio per second, and per CPU second, in three digits."""
    return digits(seconds / one.seconds), digits(seconds / one.cpu_seconds)


def digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(*names: str) -> None:
    row(*names)
    print("|" + "---|" * len(names))


def row(*cells: Any) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--clips", type=int, default=400, help="of the corpus, log-normal from 2 to 16 s")
    parser.add_argument("--quick", action="store_true", help="few clips: shows that it works, not how fast; no targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where the temporary files go: about 4 MB per clip")
    options = parser.parse_args(arguments)
    need("noisereduce", "pyloudnorm")
    if options.device == "auto":
        options.device = "cuda:0" if torch.cuda.is_available() else "cpu"
    about = machine(*PACKAGES)
    print(f"{said(about)}\ndevice {options.device}, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="speechmill-engine-", dir=options.directory) as name:
        benchmark = Benchmark(options, Path(name))
        described = benchmark.corpus.described()
        print("corpus: " + ", ".join(f"{key} {value:.4g}" for key, value in described.items()) + "\n", flush=True)
        for part in options.part:
            benchmark.run(part)
    missed = [] if options.quick else benchmark.missed
    if options.json:
        content = {
            "machine": about,
            "device": options.device,
            "threads": cores(),
            "seed": options.seed,
            "corpus": described,
            "targets": TARGETS,
            **benchmark.results,
            "missed": missed,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    for what in missed:
        print(f"MISSED: {what}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
