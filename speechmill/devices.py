"""Which device a job computes on: one GPU of its own where it asks for one, the CPU where it does not."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO

from speechmill.errors import SpeechmillError

PER_WORKER = "SPEECHMILL_GPUS"
_held: list[IO[str]] = []  # locks of this process; the kernel drops them when it ends, however it ends


def visible_gpus() -> int:
    """Number of NVIDIA GPUs that a process on this machine may use, without asking the driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def announce_gpus(count: int) -> None:
    """Tell the jobs that this Snakemake starts, wherever they run, how many GPUs each worker has."""
    os.environ[PER_WORKER] = str(count)


def announced_gpus() -> int:
    """What the Snakemake that started this job announced."""
    return int(os.environ.get(PER_WORKER, "0"))


def device_of(gpus: int, setting: str = "auto") -> str:
    """The torch device of a job that asks for `gpus` GPUs (0 or 1): "cpu" or "cuda:N".

    On a cluster the job sees the GPU it was given. On one machine all jobs see all GPUs: each takes one that no
    other job of this machine holds, and waits for one where all are taken.

    Raises:
        SpeechmillError: a GPU is asked for and torch sees none; the CPU never takes its place in silence.
    """
    if not gpus or setting == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise SpeechmillError(
            f"this job holds a GPU but torch {torch.__version__} sees none on {node_name()}: compare nvidia-smi's CUDA "
            f"version with torch's ({torch.version.cuda}); to compute on the CPU say --config device=cpu"
        )
    if "SLURM_JOB_ID" in os.environ:  # names of GPUs begin at 0 in each job there, and mean different ones
        return "cuda:0"
    number = take_one(torch.cuda.device_count(), Path(tempfile.gettempdir()) / f"speechmill-gpus-{os.getuid()}")
    return f"cuda:{number}"


def describe(device: str) -> str:
    """A torch device for a person: "CPU", or the model of the GPU."""
    if device == "cpu":
        return "CPU"
    import torch

    return str(torch.cuda.get_device_name(device))


def take_one(count: int, folder: Path, poll_seconds: float = 1) -> int:
    """Number of a device below `count` that no other process holds, held until this process ends.

    Devices are locked under their names in CUDA_VISIBLE_DEVICES, so that jobs that see different ones agree.
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


def node_name() -> str:
    """This machine, as Slurm calls it where it runs the job."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename
