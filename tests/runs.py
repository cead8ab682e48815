"""Real Snakemake on a small corpus of real speech: runs, copies of runs, and what ran in them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import soundfile
import yaml

from speechmill.storage.files import sha256_file

from .patience import seconds

ROOT = Path(__file__).parents[1]
SPEECH = ROOT / "demo" / "speech"
BATCH_SIZE = 4
MODULES = "modules.txt"  # beside the session's finished run: what its Snakemake imported


class Run:
    """A working directory with a corpus and a configuration, in which Snakemake is started."""

    checkout = ROOT  # whose Snakefile is used
    program: tuple[str, ...] = ("-m", "snakemake")

    def __init__(self, directory: Path, **changes):
        self.directory = directory
        self.results = directory / "results" / "demo"
        config = {
            "dataset": "demo",
            "batch_size": BATCH_SIZE,
            "source": {"path": "corpus", "metadata": None},
            "score": {"metrics": ["signal"]},
            "enhance": {"batch_seconds": 30},
            "report": {"examples": 1},
        }
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.yaml").write_text(yaml.safe_dump(config | changes))

    @classmethod
    def at(cls, directory: Path) -> Self:
        """The run that is in this directory already."""
        run = cls.__new__(cls)
        run.directory, run.results = directory, directory / "results" / "demo"
        return run

    def command(self, *arguments: str) -> list[str]:
        return [
            *(sys.executable, *self.program),
            *("--snakefile", str(self.checkout / "Snakefile"), "--directory", str(self.directory)),
            *("--profile", str(ROOT / "profiles" / "local"), "--configfile", str(self.directory / "config.yaml")),
            *("--cores", "2", *arguments),
        ]

    def environment(self) -> dict[str, str]:
        return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(self, *arguments: str, check: bool = True) -> Finished:
        done = subprocess.run(
            self.command(*arguments), env=self.environment(), capture_output=True, text=True, timeout=seconds(1800)
        )
        finished = Finished(done.returncode, done.stdout + done.stderr)
        if check:
            assert finished.status == 0, finished.output[-6000:]
        return finished

    def popen(self) -> subprocess.Popen:
        log = open(self.directory / "snakemake.log", "ab")  # noqa: SIM115 - the child keeps it
        return subprocess.Popen(self.command(), env=self.environment(), stdout=log, stderr=log, start_new_session=True)

    def copy(self, directory: Path) -> Self:
        """The same state elsewhere, modification times and Snakemake's records included."""
        shutil.copytree(self.directory, directory, symlinks=True)
        return self.at(directory)

    def change(self, **changes) -> None:
        file = self.directory / "config.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))

    def hashes(self, *folders: str) -> dict[str, str]:
        """Path -> checksum of the results that must be the same in every run."""
        files = [p for folder in folders for p in (self.results / folder).rglob("*") if p.is_file()]
        return {str(p.relative_to(self.results)): sha256_file(p) for p in sorted(files)}


class Finished:
    """What one start of Snakemake did."""

    def __init__(self, status: int, output: str):
        self.status, self.output = status, output
        names = re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):$", output, re.MULTILINE)
        self.jobs = Counter(names)


RESULTS = ("manifest", "enhanced", "ledger", "scores", "ranking", "published")


def make_corpus(folder: Path) -> None:
    """Ten clips: clean, noisy, a lossless duplicate, a truncated file and one that is no audio."""
    folder.mkdir(parents=True)
    prompts = sorted(SPEECH.rglob("*.flac"))[:6]
    random = np.random.default_rng(5)
    for number, prompt in enumerate(prompts):
        samples, rate = soundfile.read(prompt, dtype="float32")
        if number % 2:
            noise = random.normal(0, 1, len(samples)).astype(np.float32)
            samples = samples + noise * np.float32(np.sqrt(np.mean(samples**2)) * 10 ** (-(number * 4) / 20))
        soundfile.write(folder / f"clip {number}.wav", samples, rate, subtype="PCM_16")
    samples, rate = soundfile.read(folder / "clip 0.wav", dtype="int16")
    soundfile.write(folder / "same samples.flac", samples, rate)
    (folder / "cut.flac").write_bytes(prompts[1].read_bytes()[:9000])
    (folder / "text.wav").write_text("not audio")
    soundfile.write(folder / "ความเงียบ.wav", np.zeros(16000, np.int16), 16000)


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def kill_group(process: subprocess.Popen) -> None:
    """Kill a process that began a session, and all that it started; returns once none of them lives."""
    members = [each.pid for each in psutil.process_iter() if _group(each.pid) == process.pid]
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(lives(pid) for pid in members))


def _group(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def wait_for(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it is true."""
    end = time.monotonic() + seconds(600)
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError("waited in vain")
