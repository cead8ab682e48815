"""Size of device batches in seconds of audio, and the handling of memory and device errors.

If memory runs out, the batch is halved and the job continues. If other processes use the GPU's memory, the job waits,
then fails and is retried, perhaps on another node. If the GPU fails, the job fails at once, because a process with a
broken CUDA context cannot continue. There is no fallback to the CPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from speechmill.engine.device_errors import is_device_error, is_out_of_device_memory, is_out_of_memory
from speechmill.errors import ClipError, Failure, SpeechmillError
from speechmill.utils.machine import node_name

Item = TypeVar("Item")
Result = TypeVar("Result")

CPU_SECONDS = 120.0  # more is not faster
GPU_SECONDS = 2000.0  # the same
GPU_SHARE = 0.6  # share of the free memory for batches; models need the rest
LARGE_GPU = 30e9  # bytes; on smaller GPUs the models are called with fewer windows
GROW_AFTER = 8  # successful batches before the size is doubled
OWN_OVERHEAD = 1.5e9  # bytes of CUDA's context and libraries in each process
MEMORY_TIMEOUT = 120.0  # seconds
POLL = 5.0


class DeviceError(SpeechmillError):
    """The job's GPU failed. A retry in a new process, perhaps on another node, may succeed."""

    failure = Failure.DEVICE_LOST


class DeviceMemoryError(DeviceError):
    """The GPU has too little memory for any clip, or other processes hold it."""

    failure = Failure.OUT_OF_MEMORY


class Budget:
    """Padded audio seconds of a device batch: halved when memory runs out, doubled again after successful batches.

    Thread-safe. Results never depend on it (docs/architecture.md, promise 2).
    """

    def __init__(self, seconds: float):
        self.most = self.seconds = seconds
        self.worked = False  # whether any batch has succeeded
        self.refused = 0  # clips that did not fit alone
        self._lock = threading.Lock()
        self._well = 0
        self._at_work = 0
        self._free = threading.Condition()

    def halve(self, failed: float) -> None:
        """Halve the size after a batch of `failed` seconds ran out of memory.

        Once if several such batches fail together.
        """
        with self._lock:
            if self.seconds < failed:
                return
            self.seconds = max(1.0, self.seconds / 2)
            self._well = 0
        print(f"memory ran out: device batches of {self.seconds:g} s from here on", flush=True)

    def went_well(self) -> None:
        """Count a whole batch that succeeded. Do not call it for halves."""
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
    def shared(self) -> Iterator[None]:
        """Hold the device together with other batches."""
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
        """Hold the device exclusively: wait for the running batches, and block new ones."""
        with self._free:
            self._free.wait_for(lambda: not self._at_work)
            yield


def is_large(device: str) -> bool:
    """Whether models may be called with many windows at once.

    It depends on the GPU's total memory, not on the free memory. Call sizes affect the last bits of results, and two
    runs on the same hardware must give the same results.
    """
    return device.startswith("cuda") and torch.cuda.get_device_properties(device).total_memory >= LARGE_GPU


def device_kind(device: str) -> str:
    """Return the device properties that affect bitwise results."""
    return f"{torch.device(device).type}{', large' if is_large(device) else ''}"


def first_budget(device: str, configured: float | None, attempt: int, bytes_per_second: float, at_once: int) -> Budget:
    """Return the initial budget of a job.

    configured: seconds, None to derive them from the free memory. attempt: 1, 2, ...; later attempts start smaller.
    bytes_per_second: device memory per second of audio. at_once: number of concurrent batches.
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
    """Call `function` with a batch. If memory runs out, call it with the halves, down to one clip alone on the device.

    Raises:
        DeviceError: the GPU failed, or other processes use so much of its memory that one clip does not fit.
        MemoryError: one clip does not fit into the main memory. Libraries may raise other types.
    """
    seconds = budget.seconds
    with budget.shared():
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
    with budget.shared():
        found = _attempt(function, items, device)
    if isinstance(found, BaseException):
        return _halves(function, items, budget, device)
    budget.worked = True
    return list(found)


def _alone(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], budget: Budget, device: str
) -> list[Result | ClipError]:
    """Compute one clip while no other batch of the job is on the device. Raises as `within_memory`."""
    with budget.alone():
        found = _attempt(function, items, device)
        deadline = time.monotonic() + MEMORY_TIMEOUT
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
        raise DeviceMemoryError(
            f"other processes hold {others / 1e9:.1f} GB of {_name(device)}, too little is left for one clip: see "
            "nvidia-smi there; a job needs a GPU of its own"
        )
    budget.refuse()
    return [
        ClipError(
            "device_memory",
            f"the clip alone needs more memory than {_name(device)} has: "
            "lower enhance.max_seconds, or take a larger GPU",
        )
    ]


def check_device(budget: Budget, device: str) -> None:
    """Check that at least one clip fit into the device's memory.

    Raises:
        DeviceMemoryError: no clip fit, so the device is too small or in use.
    """
    if budget.refused and not budget.worked:
        raise DeviceMemoryError(
            f"{_name(device)} had too little memory for every one of {budget.refused} clips, each alone: take a larger "
            "one, or lower enhance.max_seconds"
        )


def _attempt(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], device: str
) -> list[Result] | BaseException:
    """Return the results, or the out-of-memory error; raise all other errors."""
    try:
        return function(items)
    except Exception as error:
        if is_out_of_memory(error):
            failed = error.with_traceback(None)  # the frames of the traceback reference the batch's tensors
        elif device.startswith("cuda") and is_device_error(error):
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
    """Return the bytes of GPU memory that other processes use; 0 if below 2 % of the total."""
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device) - OWN_OVERHEAD
    return float(others) if others > 0.02 * total else 0.0


def _name(device: str) -> str:
    return f"the GPU {torch.cuda.get_device_name(device)} of node {node_name()}"
