"""The engine of the heavy jobs: batches of clips of similar length, on a device, while other clips are read and written.

A batch is padded to its longest clip; every function that gets one also gets the true lengths and masks by
them, so a clip's result does not depend on its batch-mates.

What is held at a time is a few windows: one that is being read, those that are being computed (two at most, where the
end of one and the beginning of the next are), and one that is being written. A window is WINDOW_BATCHES device batches,
or less where that many take longer than WINDOW_SECONDS: a killed job loses the windows in work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch

from speechmill.errors import ClipError
from speechmill.faults import is_machine_fault
from speechmill.memory import Budget, check_device, within_memory
from speechmill.parallel import bounded_map, read_ahead

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW_BATCHES = 8  # enough to find clips of similar length
WINDOW_CLIPS = 8192
WINDOW_SECONDS = 10.0  # of work
SMALLEST_WINDOW = 30.0  # seconds of audio
MOST_REFUSED = 16  # clips that may be too large for a GPU that has not computed any yet

_exact_lock = threading.Lock()
_exact_depth = 0
_exact_before: tuple[bool, bool, bool] | None = None


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Around convolutions on a GPU: no TF32 and no algorithm whose result changes from call to call.

    The flags are the process's: `torch.backends.cudnn.flags` in one thread would take them from another.
    """
    global _exact_depth, _exact_before
    cudnn = torch.backends.cudnn
    with _exact_lock:
        if _exact_depth == 0:
            _exact_before = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
            cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
        _exact_depth += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_depth -= 1
            if _exact_depth == 0 and _exact_before is not None:
                cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = _exact_before


def batches_at_once(device: str) -> int:
    """Batches that are on the device at a time: on a GPU one computes while another is copied, resampled, encoded."""
    return 3 if device.startswith("cuda") else 1


def length_batches(lengths: Sequence[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Indices grouped so that a group's padded size (longest x count) stays within `budget` samples.

    Longest first, ties by index, so the same lengths always give the same groups. A clip longer than the
    budget is a group of its own. `multiple` rounds the padded length up.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    room = 0
    for index in order:
        if not groups or room < 1:
            longest = -(-max(lengths[index], 1) // multiple) * multiple
            room = max(1, budget // longest)
            groups.append([])
        groups[-1].append(index)
        room -= 1
    return groups


def pad(clips: Sequence[np.ndarray], device: str, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (n_i,) float32 -> batch (B, S) float32 padded with zeros, lengths (B,) int64; S a multiple of `multiple`.

    To a GPU it is copied from pinned memory, without waiting.
    """
    lengths = [len(clip) for clip in clips]
    size = -(-max(lengths, default=1) // multiple) * multiple
    on_gpu = device.startswith("cuda")
    batch = torch.empty((len(clips), max(size, multiple)), pin_memory=on_gpu)
    for row, clip in zip(batch.numpy(), clips, strict=True):
        row[: len(clip)] = clip
        row[len(clip) :] = 0
    return batch.to(device, non_blocking=on_gpu), torch.tensor(lengths, dtype=torch.int64, device=device)


def isolate(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], error_class: str
) -> list[Result | ClipError]:
    """`function` over a batch; where it raises, over one clip at a time, so that one bad clip costs only itself.

    An error of the machine (memory, a dead device) is not a clip's fault and is raised.
    """
    try:
        return list(function(items))
    except Exception as error:
        if is_machine_fault(error) or not items:
            raise
        if isinstance(error, ClipError) and len(items) == 1:
            return [error]
        if len(items) == 1:
            return [
                ClipError(error_class, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            ]
    return [result for item in items for result in isolate(function, [item], error_class)]


@dataclass
class Window(Generic[Item, Result]):
    """Consecutive items and what became of them; None where there was nothing to compute."""

    items: list[Item]
    results: list[Result | ClipError | None] = field(init=False)
    reading: float = 0.0  # seconds that it took to read it
    groups: int = 0  # that are not yet computed
    begin: float = 0.0

    def __post_init__(self) -> None:
        self.results = [None] * len(self.items)

    def pairs(self) -> Iterator[tuple[Item, Result | ClipError | None]]:
        """Each item with what became of it."""
        return zip(self.items, self.results, strict=True)


@dataclass
class Engine(Generic[Item, Result]):
    """Computes a stream of items in device batches; the results come in the items' order, window by window.

    length: samples of an item at `rate`; 0 for one that is not computed. compute: a device batch -> a result for each;
    called by `batches_at_once` threads. error_class: of a clip at which it raises.
    """

    length: Callable[[Item], int]
    compute: Callable[[Sequence[Item]], list[Result]]
    error_class: str
    budget: Budget
    device: str
    rate: int
    multiple: int

    def run(self, items: Iterable[Item]) -> Iterator[Window[Item, Result]]:
        """The windows, each once all of it is computed. Items are read in a thread of its own.

        Raises:
            DeviceError: the GPU is lost, or has memory for no clip. Windows wait until one clip has been computed, or
                until MOST_REFUSED have been refused.
        """
        at_once = batches_at_once(self.device)
        self._seconds = self.budget.seconds
        done: list[Window[Item, Result]] = []
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(at_once) as workers:
            groups = self._groups(read_ahead(reader, self._windows(items)))
            try:
                for window in bounded_map(workers, self._group, groups, ahead=at_once + 1):
                    window.groups -= 1
                    if window.groups == 0:
                        self._pace(window)
                        done.append(window)
                    if self.budget.worked or not self.budget.refused:
                        yield from done
                        done.clear()
                    elif self.budget.refused >= MOST_REFUSED:
                        break
            except BaseException:
                workers.shutdown(wait=False, cancel_futures=True)
                raise
        check_device(self.budget, self.device)
        yield from done

    def _windows(self, items: Iterable[Item]) -> Iterator[Window[Item, Result]]:
        held: list[Item] = []
        samples = 0
        begin = time.monotonic()
        for item in items:
            held.append(item)
            samples += self.length(item)
            if samples >= self._seconds * self.rate or len(held) >= WINDOW_CLIPS:
                yield Window(held, time.monotonic() - begin)
                held, samples = [], 0
                begin = time.monotonic()
        if held:
            yield Window(held, time.monotonic() - begin)

    def _groups(self, windows: Iterable[Window[Item, Result]]) -> Iterator[tuple[Window[Item, Result], list[int]]]:
        for window in windows:
            present = [i for i, item in enumerate(window.items) if self.length(item)]
            lengths = [self.length(window.items[i]) for i in present]
            groups = length_batches(lengths, int(self.budget.seconds * self.rate), self.multiple) or [[]]
            window.groups, window.begin = len(groups), time.monotonic()
            for group in groups:
                yield window, [present[i] for i in group]

    def _group(self, work: tuple[Window[Item, Result], list[int]]) -> Window[Item, Result]:
        window, indices = work
        members = [window.items[i] for i in indices]
        if members:
            results = within_memory(self._isolated, members, self.budget, self.device)
            for i, result in zip(indices, results, strict=True):
                window.results[i] = result
        return window

    def _isolated(self, members: Sequence[Item]) -> list[Result | ClipError]:
        return isolate(self.compute, members, self.error_class)

    def _pace(self, window: Window[Item, Result]) -> None:
        """Make the next window as large as WINDOW_SECONDS of work, but no larger than WINDOW_BATCHES batches."""
        took = max(time.monotonic() - window.begin, window.reading, 1e-3)
        seconds = sum(self.length(item) for item in window.items) / self.rate * WINDOW_SECONDS / took
        most = WINDOW_BATCHES * self.budget.seconds
        self._seconds = min(most, max(seconds, SMALLEST_WINDOW))
