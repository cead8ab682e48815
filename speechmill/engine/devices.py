"""Choice of a job's device: an exclusive GPU if the job requests one, else the CPU."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO

from speechmill.errors import SpeechmillError
from speechmill.utils.machine import node_name, slurm_job

PER_WORKER = "SPEECHMILL_GPUS"
_held: list[IO[str]] = []  # locks of this process; the kernel releases them when it ends


def visible_gpus() -> int:
    """Return the number of NVIDIA GPUs that a process may use here, without calling the driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def announce_gpus(count: int) -> None:
    """Pass the number of GPUs per worker to the jobs that this Snakemake starts."""
    os.environ[PER_WORKER] = str(count)


def announced_gpus() -> int:
    """Return the number of GPUs per worker that `announce_gpus` set; 0 if none."""
    return int(os.environ.get(PER_WORKER, "0"))


def device_of(gpus: int, setting: str = "auto") -> str:
    """Return the torch device of a job that requests `gpus` GPUs (0 or 1): "cpu" or "cuda:N".

    In a Slurm job this is the allocated GPU. Elsewhere all jobs see all GPUs: each job locks a free one, and waits if
    none is free.

    Raises:
        SpeechmillError: a GPU is requested, but torch sees none. There is no silent fallback to the CPU.
    """
    if not gpus or setting == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise SpeechmillError(
            f"this job has a GPU, but torch {torch.__version__} sees none on {node_name()}: compare nvidia-smi's CUDA "
            f"version with torch's ({torch.version.cuda}); to compute on the CPU, run with --config device=cpu"
        )
    if slurm_job():  # GPU numbers start at 0 in each Slurm job, so they are not unique
        return "cuda:0"
    number = take_one(torch.cuda.device_count(), Path(tempfile.gettempdir()) / f"speechmill-gpus-{os.getuid()}")
    return f"cuda:{number}"


def describe(device: str) -> str:
    """Return "CPU", or the model name of the GPU."""
    if device == "cpu":
        return "CPU"
    import torch

    return str(torch.cuda.get_device_name(device))


def take_one(count: int, folder: Path, poll_seconds: float = 1) -> int:
    """Lock a free device until this process ends, and return its number (0 to `count` - 1).

    The lock files are named after CUDA_VISIBLE_DEVICES, so that jobs with different visible devices use the same locks.
    """
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        for number in range(count):
            name = names[number] if number < len(names) else str(number)
            handle = open(folder / f"{name.replace('/', '-')}.lock", "w")  # noqa: SIM115 - held until the process ends
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.close()
                continue
            _held.append(handle)
            return number
        time.sleep(poll_seconds)
