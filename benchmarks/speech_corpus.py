"""What benchmarks of audio share: clips made of the demo's prompts, a process of its own for each figure, the machine.

The prompts are real recordings (demo/speech, CC BY-SA), 1.5 to 3.5 s each, by one voice in two languages. They are
joined and cut; a corpus is the same for the same seed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000  # Hz of the prompts
LENGTHS = (2.0, 5.5, 16.0)  # seconds: shortest, median, longest; log-normal, as read speech is
SPREAD = 0.5  # standard deviation of a length's logarithm
SNRS = (0.0, 30.0)  # dB, of the half that is noisy
# As real corpora come: half 16 kHz FLAC, a quarter each MP3 of 44.1 kHz and FLAC of 48 kHz.
FORMATS = ((RATE, "flac"), (44_100, "mp3"), (RATE, "flac"), (48_000, "flac"))


def demo_builder() -> ModuleType:
    """demo/build.py: prompts, noises, mixing and encoding."""
    if "build" not in sys.modules:
        spec = importlib.util.spec_from_file_location("build", ROOT / "demo" / "build.py")
        sys.modules["build"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["build"]


def joined(prompts: Sequence[Any], seconds: float, random: np.random.Generator) -> np.ndarray:
    """Prompts in a random order, one after the other, cut at so many seconds: float64 (n,) at RATE."""
    size = max(1, round(seconds * RATE))
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < size:
        parts += [prompts[i].samples for i in random.permutation(len(prompts))]
    return np.concatenate(parts)[:size]


@dataclass(frozen=True)
class Corpus:
    """A folder of clips. seconds: of each, in the order of the files' names."""

    folder: Path
    seconds: tuple[float, ...]

    @property
    def total(self) -> float:
        """Seconds of audio."""
        return sum(self.seconds)

    def first(self, clips: int, folder: Path) -> Corpus:
        """The first so many clips, as links in another folder."""
        folder.mkdir(parents=True)
        for path in sorted(self.folder.iterdir())[:clips]:
            (folder / path.name).hardlink_to(path)
        return Corpus(folder, self.seconds[:clips])

    def described(self) -> dict[str, float]:
        """Clips, hours, and seconds of the shortest, median and longest."""
        low, middle, high = np.quantile(self.seconds, (0, 0.5, 1)).tolist()
        return {"clips": len(self.seconds), "hours": self.total / 3600, "min_s": low, "median_s": middle, "max_s": high}


def drawn_lengths(clips: int, seed: int) -> list[float]:
    """Seconds of so many clips."""
    low, median, high = LENGTHS
    drawn = np.random.default_rng([seed, 1]).lognormal(np.log(median), SPREAD, clips)
    return np.clip(drawn, low, high).round(3).tolist()


def build_corpus(folder: Path, lengths: Sequence[float], seed: int) -> Corpus:
    """Clips of so many seconds, every other one noisy, in FORMATS."""
    folder.mkdir(parents=True)
    build = demo_builder()
    prompts = build.load_prompts()

    def one(number: int) -> None:
        random = np.random.default_rng([seed, 2, number])
        samples = joined(prompts, lengths[number], random)
        if (number + number // len(FORMATS)) % 2 == 0:  # so that each format is as often noisy as clean
            noise = build.make_noise(random.choice(build.NOISES), len(samples), random, prompts)
            samples = build.mix(samples, noise, random.uniform(*SNRS))
        rate, kind = FORMATS[number % len(FORMATS)]
        (folder / f"{number:06d}.{kind}").write_bytes(build.encode(samples, rate, kind))

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(one, range(len(lengths))))
    return Corpus(folder, tuple(lengths))


@dataclass(frozen=True)
class Cost:
    """What something took: wall-clock seconds, CPU seconds of all threads, peak resident memory of its process in MB."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def cost(call: Callable[[], Any]) -> Cost:
    """Run it once in this process."""
    begin, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost(time.perf_counter() - begin, time.process_time() - cpu, peak_mb())


def peak_mb() -> float:
    """Peak resident memory of this process in MB: getrusage would count its parent's as well."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "no Linux"
    return int(found[1]) * 1024 / 1e6


def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """A module's function in a process of its own: with threads, caches and memory of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(call, arguments)
        pool.close()  # or the process would be killed before it tidies up
        pool.join()
        return result


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, GPU, load of the last minute before the benchmark began, and versions."""
    import torch

    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def said(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {value}" for name, value in list(machine.items())[4:])
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    load = f"load before it began {machine['load']:.1f}"
    return f"{machine['cores']} cores of {machine['processor']}{gpu}; {load}; {versions}"


def need(*modules: str) -> None:
    """End with what to install where a module is missing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} not installed: pip install -c constraints.txt -e '.[bench]'")
