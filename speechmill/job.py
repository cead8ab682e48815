"""What every job of the workflow does around its work: a log file, and errors as one message."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from speechmill.devices import node_name
from speechmill.errors import SpeechmillError

DONE = re.compile(r"^(\w+) done in (\d+\.\d+) s", re.MULTILINE)


@contextmanager
def logged(job: Any) -> Iterator[None]:
    """Send what the block prints (C libraries and child processes too) to the job's log file.

    `job` is Snakemake's `snakemake` object. A SpeechmillError ends the process with status 1 and its message, on the
    terminal and in the log; any other exception leaves its traceback in the log. Then `file_away`.
    """
    path = Path(job.log[0]) if job.log else Path(os.devnull)
    path.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    begin = time.monotonic()
    failed = True
    with open(path, "w", encoding="utf-8") as handle:
        saved = os.dup(1)
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
        try:
            print(f"== {job.rule}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {where_it_runs()}", flush=True)
            yield
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{job.rule} done in {time.monotonic() - begin:.3f} s, {peak:.0f} MB at most")
            failed = False
        except SpeechmillError as error:
            _say(terminal, f"speechmill: {error}")
            with suppress(OSError):  # a full disk costs lines of a log, not the message
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        except Exception:
            _say(terminal, f"speechmill: {traceback.format_exc(limit=0).strip()} (see {path})")
            with suppress(OSError):
                traceback.print_exc()
            sys.exit(1)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os.dup2(saved, 1)
            os.dup2(terminal, 2)
            os.close(saved)
            os.close(terminal)
            with suppress(OSError):
                file_away(path, failed)


def file_away(log: Path, failed: bool) -> None:
    """Add `logs/{stage}/{batch}.log` to `logs/batches/{batch}.log`, the story of a batch over all stages and attempts.

    Snakemake removes a job's log before each attempt, and three logs per batch are too many files for a large corpus:
    once a stage has succeeded its own log is empty, and the next stage removes it. Logs of whole runs stay as they are.
    """
    if log.parent.parent.name != "logs":
        return
    story = log.parent.parent / "batches" / log.name
    story.parent.mkdir(exist_ok=True)
    with open(story, "ab") as file:
        file.write(log.read_bytes())
    if not failed:
        os.truncate(log, 0)
        remove_empty_logs(log.parent.parent, log.name, but=log)


def remove_empty_logs(logs: Path, name: str = "*.log", but: Path | None = None) -> None:
    """Remove the empty logs of stages whose content is in the story of their batch."""
    for empty in logs.glob(f"*/{name}"):
        if empty != but and empty.stat().st_size == 0:
            empty.unlink(missing_ok=True)


def where_it_runs() -> str:
    """Node, Slurm job and the GPUs that the job was given."""
    parts = [f"node {node_name()}"]
    if "SLURM_JOB_ID" in os.environ:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        parts += [f"Slurm job {os.environ['SLURM_JOB_ID']}", f"GPU {gpus}" if gpus else "no GPU"]
    return ", ".join([*parts, f"process {os.getpid()}"])


def _say(descriptor: int, message: str) -> None:
    os.write(descriptor, (message + "\n").encode("utf-8", "replace"))


def stage_timing(logs: Path) -> dict[str, dict[str, float]]:
    """Stage -> number of batches and their wall-clock seconds in all, from the last success in each batch's log."""
    timing: dict[str, dict[str, float]] = {}
    for path in sorted(logs.glob("*.log")):
        text = path.read_text(encoding="utf-8", errors="replace")
        last = {found[1]: float(found[2]) for found in DONE.finditer(text)}
        for name, seconds in last.items():
            stage = timing.setdefault(name, {"jobs": 0, "seconds": 0.0})
            stage["jobs"] += 1
            stage["seconds"] = round(stage["seconds"] + seconds, 3)
    return timing
