"""How many seconds of audio a device takes at a time, and what happens where its memory does not suffice.

Faults are told apart. Memory ran out: the batch is halved and the job goes on. Others hold the GPU's memory: the
job waits, then fails and is repeated, wherever Slurm puts it. The GPU is lost: the job fails at once, because nothing
works any more in a process whose CUDA context is broken. The CPU never takes a GPU's place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from speechmill.devices import node_name
from speechmill.errors import ClipError, SpeechmillError
from speechmill.faults import is_device_fault, is_out_of_device_memory, is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

CPU_SECONDS = 120.0  # more gains nothing there
GPU_SECONDS = 2000.0  # the same
GPU_SHARE = 0.6  # of what is free, for the batches at work; the rest is the models', in calls of a size of their own
LARGE_GPU = 30e9  # bytes; smaller ones get smaller calls of the models
GROW_AFTER = 8  # batches without trouble before the next is tried twice as large
OWN_OVERHEAD = 1.5e9  # bytes that a process takes beside its tensors: CUDA's context and libraries
OTHERS_PATIENCE = 120.0  # seconds
POLL = 5.0


class DeviceError(SpeechmillError):
    """The job's GPU is lost, or others hold its memory: another process, perhaps on another node, may have more luck."""


class Budget:
    """Padded audio seconds of one device batch: halved when memory runs out, doubled again when all is well.

    Used from several threads. Results never depend on it (docs/architecture.md, promise 2).
    """

    def __init__(self, seconds: float):
        self.most = self.seconds = seconds
        self.worked = False  # for any batch, ever
        self.refused = 0  # clips for which memory did not suffice, alone
        self._lock = threading.Lock()
        self._well = 0
        self._at_work = 0
        self._free = threading.Condition()

    def halve(self, failed: float) -> None:
        """After a batch of that many seconds failed: once, however many batches of that size fail together."""
        with self._lock:
            if self.seconds < failed:
                return
            self.seconds = max(1.0, self.seconds / 2)
            self._well = 0
        print(f"memory ran out: device batches of {self.seconds:g} s from here on", flush=True)

    def went_well(self) -> None:
        """After a batch as it was cut; its parts prove nothing about its size."""
        with self._lock:
            self.worked = True
            self._well += 1
            if self._well >= GROW_AFTER and self.seconds < self.most:
                self.seconds = min(self.most, 2 * self.seconds)
                self._well = 0

    def refuse(self) -> None:
        with self._lock:
            self.refused += 1

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """Around a batch's work."""
        with self._free:
            self._at_work += 1
        try:
            yield
        finally:
            with self._free:
                self._at_work -= 1
                self._free.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around work for which no other batch of this job may hold memory; others wait to begin."""
        with self._free:
            self._free.wait_for(lambda: not self._at_work)
            yield


def is_large(device: str) -> bool:
    """Whether models may be called with much at a time. By the GPU's size, not by what is free: sizes of calls show in
    the last bits of results, and two runs on the same hardware give the same ones."""
    return device.startswith("cuda") and torch.cuda.get_device_properties(device).total_memory >= LARGE_GPU


def device_kind(device: str) -> str:
    """What of a device shows in the last bits of results."""
    return f"{torch.device(device).type}{', large' if is_large(device) else ''}"


def first_budget(device: str, configured: float | None, attempt: int, bytes_per_second: float, at_once: int) -> Budget:
    """The budget that a job begins with.

    configured: seconds, None to find them. attempt: 1, 2, ...; later ones begin with less. bytes_per_second: device
    memory that a second of audio takes. at_once: batches on the device at a time.
    """
    seconds = configured if configured is not None else CPU_SECONDS
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        if configured is None:
            seconds = min(GPU_SECONDS, GPU_SHARE * free / bytes_per_second / at_once)
        name = torch.cuda.get_device_name(device)
        print(f"{name}: {free / 1e9:.1f} GB of {total / 1e9:.1f} GB are free", flush=True)
    budget = Budget(max(1.0, seconds / attempt))
    print(f"device batches of {budget.seconds:g} s", flush=True)
    return budget


def within_memory(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], budget: Budget, device: str
) -> list[Result | ClipError]:
    """`function` over a batch; where memory runs out, over its halves, down to one clip with the device to itself.

    Raises:
        DeviceError: the GPU is lost, or other processes hold so much of its memory that one clip does not fit.
        MemoryError and what else the machine fails with: one clip is too much for the main memory.
    """
    seconds = budget.seconds
    with budget.beside_others():
        failed = _attempt(function, items, device)
    if not isinstance(failed, BaseException):
        budget.went_well()
        return list(failed)
    if len(items) > 1:
        budget.halve(seconds)
    return _halves(function, items, budget, device)


def _halves(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], budget: Budget, device: str
) -> list[Result | ClipError]:
    if len(items) == 1:
        return _alone(function, items, budget, device)
    middle = len(items) // 2
    first, second = (_half(function, half, budget, device) for half in (items[:middle], items[middle:]))
    return [*first, *second]


def _half(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], budget: Budget, device: str
) -> list[Result | ClipError]:
    with budget.beside_others():
        found = _attempt(function, items, device)
    if isinstance(found, BaseException):
        return _halves(function, items, budget, device)
    budget.worked = True
    return list(found)


def _alone(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], budget: Budget, device: str
) -> list[Result | ClipError]:
    """One clip, while no other batch of the job is on the device; `within_memory` says what is raised."""
    with budget.alone():
        found = _attempt(function, items, device)
        deadline = time.monotonic() + OTHERS_PATIENCE
        while isinstance(found, BaseException):
            if not (device.startswith("cuda") and is_out_of_device_memory(found)):
                raise found
            others = held_by_others(device)
            if others == 0 or time.monotonic() > deadline:
                break
            time.sleep(POLL)
            found = _attempt(function, items, device)
    if not isinstance(found, BaseException):
        budget.worked = True
        return list(found)
    if others > 0:
        raise DeviceError(
            f"other processes hold {others / 1e9:.1f} GB of {_name(device)}, too little is left for one clip: see "
            "nvidia-smi there; a job needs a GPU of its own"
        )
    budget.refuse()
    return [
        ClipError(
            "device_memory",
            f"the clip alone needs more memory than {_name(device)} has: lower enhance.max_seconds, or take a larger GPU",
        )
    ]


def check_device(budget: Budget, device: str) -> None:
    """Whether the device has memory for any clip: if not, it is no clip's fault.

    Raises:
        DeviceError: it has not.
    """
    if budget.refused and not budget.worked:
        raise DeviceError(
            f"{_name(device)} had too little memory for every one of {budget.refused} clips, each alone: take a larger "
            "one, or lower enhance.max_seconds"
        )


def _attempt(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], device: str
) -> list[Result] | BaseException:
    """The results, or the error where memory ran out; what a job cannot mend is raised."""
    try:
        return function(items)
    except Exception as error:
        if is_out_of_memory(error):
            failed = error.with_traceback(None)  # whose frames hold the batch's tensors
        elif device.startswith("cuda") and is_device_fault(error):
            first = str(error).strip().partition("\n")[0]
            raise DeviceError(
                f"{_name(device)} failed ({first}): the job ends and is repeated in a new process. If it fails on that "
                "node again, see nvidia-smi and the kernel's log (Xid) there, and keep jobs away from the node"
            ) from error
        else:
            raise
    failed.__context__ = failed.__cause__ = None
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return failed


def held_by_others(device: str) -> float:
    """Bytes of the GPU's memory that other processes hold; 0 where it is not worth mentioning."""
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device) - OWN_OVERHEAD
    return float(others) if others > 0.02 * total else 0.0


def _name(device: str) -> str:
    return f"the GPU {torch.cuda.get_device_name(device)} of node {node_name()}"
