"""The engine: computes device batches of clips of similar length while other clips are read and written.

A device batch is padded to its longest clip. Each function also gets the true lengths and masks the padding, so a
clip's result does not depend on the other clips of its batch.

Only a few windows are in memory: one that is read, at most two that are computed, and one that is written. A window has
up to WINDOW_BATCHES device batches, fewer if they take longer than WINDOW_SECONDS. A killed job loses these windows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from speechmill.engine.device_errors import is_machine_error
from speechmill.engine.memory import Budget, check_device, within_memory
from speechmill.errors import ClipError
from speechmill.utils.threads import bounded_map, read_ahead

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW_BATCHES = 8  # enough to find clips of similar length
WINDOW_CLIPS = 8192
WINDOW_SECONDS = 10.0  # of work
SMALLEST_WINDOW = 30.0  # seconds of audio
MOST_REFUSED = 16  # clips that may fail for lack of GPU memory before any clip has succeeded


def batches_at_once(device: str) -> int:
    """Return the number of concurrent batches.

    On a GPU one is computed while others are copied, resampled or encoded.
    """
    return 3 if device.startswith("cuda") else 1


def length_batches(lengths: Sequence[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Group indices so that a group's padded size (longest x count) is at most `budget` samples.

    Longest first, ties by index, so equal lengths always give equal groups. A clip longer than the budget is a group
    of its own. Padded lengths are rounded up to a multiple of `multiple`.
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


def isolate(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], error_class: str
) -> list[Result | ClipError]:
    """Call `function` with a batch. If it raises, call it with each clip alone, so that only the bad clip fails.

    An error of the machine (out of memory, device failure) is raised.
    """
    try:
        return list(function(items))
    except Exception as error:
        if is_machine_error(error) or not items:
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
    """Consecutive items and their results; None if there was nothing to compute."""

    items: list[Item]
    results: list[Result | ClipError | None] = field(init=False)
    reading: float = 0.0  # seconds to read the window
    groups: int = 0  # device batches that are not yet computed
    begin: float = 0.0

    def __post_init__(self) -> None:
        self.results = [None] * len(self.items)

    def pairs(self) -> Iterator[tuple[Item, Result | ClipError | None]]:
        """Return pairs of item and result."""
        return zip(self.items, self.results, strict=True)


@dataclass
class Engine(Generic[Item, Result]):
    """Computes a stream of items in device batches. Results are in the order of the items, window by window.

    length: samples of an item at `rate` (Hz); 0 to skip it. compute: device batch -> one result per item; called by
    `batches_at_once` threads. error_class: error class of a clip for which `compute` raises.
    """

    length: Callable[[Item], int]
    compute: Callable[[Sequence[Item]], list[Result]]
    error_class: str
    budget: Budget
    device: str
    rate: int
    multiple: int

    def run(self, items: Iterable[Item]) -> Iterator[Window[Item, Result]]:
        """Yield each window when it is completely computed. A separate thread reads the items.

        If clips exceed the memory, windows are held back until one clip succeeds or MOST_REFUSED clips have failed.

        Raises:
            DeviceError: the GPU failed, or no clip fits into its memory.
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
