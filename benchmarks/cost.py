"""What a command costs in time and memory, and the table that shows it beside its target."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
MB = 2**20


@dataclass(frozen=True)
class Cost:
    """Wall-clock and CPU seconds, and peak resident memory in MiB, of a process and all that it started."""

    seconds: float
    cpu: float
    megabytes: float
    output: str


def cost(command: list[str], directory: Path) -> Cost:
    """What a command costs; its failure ends the benchmark with what it said."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    peak, ended = 0.0, threading.Event()

    def watch(process: psutil.Process) -> None:
        nonlocal peak
        while not ended.wait(0.05):
            try:
                tree = [process, *process.children(recursive=True)]
                peak = max(peak, sum(one.memory_info().rss for one in tree if one.is_running()) / MB)
            except psutil.Error:
                pass

    with tempfile.TemporaryFile("w+") as output:
        begin = time.monotonic()
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
        watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid),))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
        ended.set()
        watcher.join()
        output.seek(0)
        text = output.read()
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, max(peak, usage.ru_maxrss / 1024), text)


class Table:
    """Figures as they come, beside their targets."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        print("| what | measured | target |\n|---|---|---|")

    def row(self, what: str, shown: str, target: str = "", met: bool = True) -> None:
        print(f"| {what} | {shown} | {target}{'' if met else ' **missed**'} |", flush=True)
        if not met:
            self.missed.append(what)

    def cost(self, what: str, found: Cost, seconds: float | None = None, megabytes: float | None = None) -> None:
        """`seconds` and `megabytes` are targets; None is none."""
        shown = f"{found.seconds:.1f} s ({found.cpu:.1f} s CPU), {found.megabytes:.0f} MB"
        targets = [f"{limit:g} {unit}" for limit, unit in ((seconds, "s"), (megabytes, "MB")) if limit is not None]
        met = (seconds is None or found.seconds < seconds) and (megabytes is None or found.megabytes < megabytes)
        self.row(what, shown, ", ".join(targets), met)
