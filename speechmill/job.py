"""What every job of the workflow does around its work: a log file, and errors as one message."""

from __future__ import annotations

import csv
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError


@contextmanager
def logged(log: Any) -> Iterator[None]:
    """Send what the block prints (C libraries and child processes too) to the job's log file.

    `log` is Snakemake's list of log files. A SpeechmillError ends the process with status 1 and its message,
    on the terminal and in the log; any other exception leaves its traceback in the log.
    """
    path = str(log[0]) if log else os.devnull
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    terminal = os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(path, "w", encoding="utf-8") as handle:
        saved = os.dup(1)
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
        try:
            yield
        except SpeechmillError as error:
            _say(terminal, f"speechmill: {error}")
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        except Exception:
            traceback.print_exc()
            _say(terminal, f"speechmill: {traceback.format_exc(limit=0).strip()} (see {path})")
            sys.exit(1)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved, 1)
            os.dup2(terminal, 2)
            os.close(saved)
            os.close(terminal)


def _say(descriptor: int, message: str) -> None:
    os.write(descriptor, (message + "\n").encode("utf-8", "replace"))


def device_of(resources: Any) -> str:
    """The torch device of a job: the GPU that its `gpu` resource asks for, else the CPU.

    Raises:
        SpeechmillError: a GPU is asked for and there is none; the CPU never takes its place in silence.
    """
    if not int(resources.get("gpu", 0) or 0):
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise SpeechmillError(
            "this job asks for a GPU (resource gpu) but torch sees none on this node; check nvidia-smi"
        )
    return "cuda"


def stage_timing(benchmarks: Path) -> dict[str, dict[str, float]]:
    """Stage -> number of jobs and their wall-clock seconds in all, from Snakemake's benchmark files."""
    timing: dict[str, dict[str, float]] = {}
    for path in sorted(benchmarks.glob("*/*.tsv")):
        with open(path, encoding="utf-8", newline="") as handle:
            seconds = [float(row["s"]) for row in csv.DictReader(handle, delimiter="\t")]
        stage = timing.setdefault(path.parent.name, {"jobs": 0, "seconds": 0.0})
        stage["jobs"] += len(seconds)
        stage["seconds"] = round(stage["seconds"] + sum(seconds), 3)
    return timing
