"""The context of every job: its log, its resource usage, and one message for an error."""

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

from speechmill.errors import Failure, SpeechmillError
from speechmill.runlog import joblog
from speechmill.runlog.failures import failure_of
from speechmill.storage.run_folder import run_folder
from speechmill.utils.machine import node_name, slurm_job

RUN_STAGES = ("preflight", "source", "manifest", "dedup", "rank")  # one job each, before the report


@contextmanager
def logged(job: Any) -> Iterator[Callable[..., None]]:
    """Redirect the output of the block, of C libraries and of child processes to the job's log.

    `job` is Snakemake's `snakemake` object. The block calls the yielded function with values such as `device`, `clips`
    and `audio_seconds`. They are written to the end of the log, and from there to the attempt log. An exception ends
    the process with status 1, and its message is printed on the terminal and logged. Unless it is a SpeechmillError,
    the log also has the traceback. The end of a failed job's log has its `Failure`. On Kubernetes the log is then
    archived (`file_away`).
    """
    path = Path(job.log[0]) if job.log else Path(os.devnull)
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        if not joblog.of_attempt(
            joblog.read(path, joblog.TAIL_BYTES), "end"
        ):  # an attempt that was killed, and that Slurm requeued
            file_away(path, failed=True)
    reported: dict[str, Any] = {}
    failure: Failure | None = Failure.KILLED  # unless an exception says more
    begin = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    python = sys.stdout, sys.stderr
    saved, terminal = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, stream = (
        joblog.LogStream(log),
        joblog.LogStream(log),
    )  # two streams, because each buffers its own unfinished lines
    sys.stderr = stream
    try:
        where = job_location()
        about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in where.items())
        stream.record("info", f"{job.rule} begins: {about}", event="begin", stage=job.rule, **where)
        yield reported.update
        failure = None
    except SpeechmillError as error:
        failure = failure_of(error)
        _print_to(terminal, f"speechmill: {error}")
        _end_lines(sys.stdout, sys.stderr)
        stream.record("error", str(error), error_class=type(error).__name__)
        sys.exit(1)
    except Exception as error:
        failure = failure_of(error)
        _print_to(terminal, f"speechmill: {traceback.format_exc(limit=0).strip()} (see {path})")
        _end_lines(sys.stdout, sys.stderr)
        text = traceback.format_exception_only(error)[-1].strip()
        stream.record("error", text, error_class=type(error).__name__, traceback=traceback.format_exc())
        sys.exit(1)
    finally:
        _end_lines(sys.stdout, sys.stderr)
        used = resource_usage(time.monotonic() - begin)
        status = "failed" if failure else "done"
        words = f"{job.rule} {status} in {used['seconds']:.3f} s, {used['peak_mb']:.0f} MB at most"
        why: dict[str, Any] = {"failure": failure} if failure else {}
        stream.record("info", words, event="end", stage=job.rule, status=status, **why, **used, **reported)
        sys.stdout, sys.stderr = python
        os.dup2(saved, 1)
        os.dup2(terminal, 2)
        for descriptor in (saved, terminal, log):
            os.close(descriptor)
        if run_folder().is_shared:  # in a bucket the log is not archived here: the pod uploads it unchanged
            with suppress(OSError):
                file_away(path, failed=failure is not None)


def file_away(log: Path, failed: bool) -> None:
    """Add `logs/{stage}/{batch}.log` to `logs/batches/{batch}.log`, the batch log of all stages and attempts.

    Snakemake removes a job's log before each attempt, so it must be archived. Three logs per batch would also be too
    many files for a large corpus: after a stage succeeds its own log is emptied, and the next stage removes it. Logs of
    jobs for the whole run are not archived.
    """
    story = joblog.batch_log_of(log)
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
    """Remove empty stage logs; their content is in the batch log."""
    for empty in logs.glob(f"*/{name}"):
        with suppress(FileNotFoundError):  # its job may remove it at the same time
            if empty != but and empty.stat().st_size == 0:
                empty.unlink()


def job_location() -> dict[str, Any]:
    """Return node and process id; in a Slurm job also the job id and the allocated GPUs."""
    where: dict[str, Any] = {"node": node_name()}
    if number := slurm_job():
        where |= {"slurm_job": number, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES") or "none"}
    return where | {"process": os.getpid()}


def resource_usage(seconds: float) -> dict[str, float]:
    """Return wall-clock seconds, CPU seconds, peak memory and GPU memory (10^6 bytes); includes child processes."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    used = {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 2),
        "peak_mb": round(max(own.ru_maxrss, children.ru_maxrss) * 1024 / 1e6, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with suppress(RuntimeError):  # the GPU failed
            peaks = [torch.cuda.max_memory_reserved(number) for number in range(torch.cuda.device_count())]
            used["gpu_peak_mb"] = round(max(peaks) / 1e6, 1)
    return used


def _end_lines(*streams: Any) -> None:
    for stream in streams:
        if isinstance(stream, joblog.LogStream):  # a library may have replaced the stream
            stream.end_line()


def _print_to(descriptor: int, message: str) -> None:
    os.write(descriptor, (message + "\n").encode("utf-8", "replace"))


def stage_timing(logs: Path) -> dict[str, dict[str, float]]:
    """Return stage -> number of jobs and their total wall-clock seconds, from the last success in each log.

    Args:
        logs: logs/ of the run, with the logs of the stages before the report, and of the batches in `batches/`.
    """
    timing: dict[str, dict[str, float]] = {}
    of_run = (logs / f"{stage}.log" for stage in RUN_STAGES)
    for path in [*sorted((logs / "batches").glob("*.log")), *(path for path in of_run if path.exists())]:
        data = b"\n".join(line for line in path.read_bytes().splitlines() if b'"end"' in line)
        ends = (line for line in joblog.parse(data) if line.get("event") == "end" and line.get("status") == "done")
        last = {str(line["stage"]): float(line["seconds"]) for line in ends}
        for name, seconds in last.items():
            stage = timing.setdefault(name, {"jobs": 0, "seconds": 0.0})
            stage["jobs"] += 1
            stage["seconds"] = round(stage["seconds"] + seconds, 3)
    return timing
