"""What every job of the workflow does around its work: a log, what it took, and errors as one message."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from speechmill import bucket, joblog
from speechmill.devices import node_name
from speechmill.errors import SpeechmillError


@contextmanager
def logged(job: Any) -> Iterator[Callable[..., None]]:
    """Send what the block prints (C libraries and child processes too) to the job's log.

    `job` is Snakemake's `snakemake` object. What the block tells the function that it gets (`device`, `clips`,
    `audio_seconds`) goes to the end of the log, and from there into the account of the run. A SpeechmillError ends the
    process with status 1 and its message, on the terminal and in the log; of any other exception the traceback is in
    the log. Then `file_away`.
    """
    path = Path(job.log[0]) if job.log else Path(os.devnull)
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        if not joblog.of_attempt(joblog.read(path, joblog.TAIL_BYTES), "end"):  # killed, and put back by Slurm
            file_away(path, failed=True)
    told: dict[str, Any] = {}
    failed = True
    begin = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    python = sys.stdout, sys.stderr
    saved, terminal = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, stream = joblog.LogStream(log), joblog.LogStream(log)  # two: each ends its own lines
    sys.stderr = stream
    try:
        where = where_it_runs()
        about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in where.items())
        stream.record("info", f"{job.rule} begins: {about}", event="begin", stage=job.rule, **where)
        yield told.update
        failed = False
    except SpeechmillError as error:
        _say(terminal, f"speechmill: {error}")
        _end_lines(sys.stdout, sys.stderr)
        stream.record("error", str(error), error_class=type(error).__name__)
        sys.exit(1)
    except Exception as error:
        _say(terminal, f"speechmill: {traceback.format_exc(limit=0).strip()} (see {path})")
        _end_lines(sys.stdout, sys.stderr)
        text = traceback.format_exception_only(error)[-1].strip()
        stream.record("error", text, error_class=type(error).__name__, traceback=traceback.format_exc())
        sys.exit(1)
    finally:
        _end_lines(sys.stdout, sys.stderr)
        used = what_it_used(time.monotonic() - begin)
        words = (
            f"{job.rule} {'failed' if failed else 'done'} in {used['seconds']:.3f} s, {used['peak_mb']:.0f} MB at most"
        )
        stream.record("info", words, event="end", stage=job.rule, status="failed" if failed else "done", **used, **told)
        sys.stdout, sys.stderr = python
        os.dup2(saved, 1)
        os.dup2(terminal, 2)
        for descriptor in (saved, terminal, log):
            os.close(descriptor)
        if bucket.RUN not in os.environ:  # a pod has no other logs: this one goes to the bucket as it is
            with suppress(OSError):
                file_away(path, failed)


def file_away(log: Path, failed: bool) -> None:
    """Add `logs/{stage}/{batch}.log` to `logs/batches/{batch}.log`, the story of a batch over all stages and attempts.

    Snakemake removes a job's log before each attempt, and three logs per batch are too many files for a large corpus:
    once a stage has succeeded its own log is empty, and the next stage removes it. Logs of whole runs stay as they are.
    """
    story = joblog.story_of(log)
    if story is None:
        return
    if lines := joblog.read(log):
        story.parent.mkdir(exist_ok=True)
        with open(story, "ab") as file:
            file.write(b"".join(joblog.encode(line) for line in lines))
    if not failed:
        os.truncate(log, 0)
        remove_empty_logs(log.parent.parent, log.name, but=log)


def remove_empty_logs(logs: Path, name: str = "*.log", but: Path | None = None) -> None:
    """Remove the empty logs of stages whose content is in the story of their batch."""
    for empty in logs.glob(f"*/{name}"):
        with suppress(FileNotFoundError):  # its job removes it, too
            if empty != but and empty.stat().st_size == 0:
                empty.unlink()


def where_it_runs() -> dict[str, Any]:
    """Node and process; in a Slurm job also its number and the GPUs that it was given."""
    where: dict[str, Any] = {"node": node_name()}
    if "SLURM_JOB_ID" in os.environ:
        where |= {
            "slurm_job": os.environ["SLURM_JOB_ID"],
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES") or "none",
        }
    return where | {"process": os.getpid()}


def what_it_used(seconds: float) -> dict[str, float]:
    """Of this process and its children: wall-clock and CPU seconds, the most memory, and that of the GPU (10^6 bytes)."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 2),
        "peak_mb": round(max(own.ru_maxrss, children.ru_maxrss) * 1024 / 1e6, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with suppress(RuntimeError):  # a lost GPU
            peaks = [torch.cuda.max_memory_reserved(number) for number in range(torch.cuda.device_count())]
            used["gpu_peak_mb"] = round(max(peaks) / 1e6, 1)
    return used


def _end_lines(*streams: Any) -> None:
    for stream in streams:
        if isinstance(stream, joblog.LogStream):  # a library may have put its own there
            stream.end_line()


def _say(descriptor: int, message: str) -> None:
    os.write(descriptor, (message + "\n").encode("utf-8", "replace"))


def stage_timing(logs: Path) -> dict[str, dict[str, float]]:
    """Stage -> number of batches and their wall-clock seconds in all, from the last success in each batch's log."""
    timing: dict[str, dict[str, float]] = {}
    for path in sorted(logs.glob("*.log")):
        data = b"\n".join(line for line in path.read_bytes().splitlines() if b'"end"' in line)
        ends = (line for line in joblog.parse(data) if line.get("event") == "end" and line.get("status") == "done")
        last = {str(line["stage"]): float(line["seconds"]) for line in ends}
        for name, seconds in last.items():
            stage = timing.setdefault(name, {"jobs": 0, "seconds": 0.0})
            stage["jobs"] += 1
            stage["seconds"] = round(stage["seconds"] + seconds, 3)
    return timing
