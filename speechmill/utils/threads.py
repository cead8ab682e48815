"""Ordered work in threads with a bounded number of items in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def bounded_map(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 64
) -> Iterator[Result]:
    """Map over a pool in the order of the items; at most `ahead` items are read before their results are consumed."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_ahead(pool: ThreadPoolExecutor, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the same items; a thread of `pool` reads the next item while the caller processes the current one."""
    iterator = iter(items)
    end = object()
    future: Future[Any] = pool.submit(next, iterator, end)
    while (item := future.result()) is not end:
        future = pool.submit(next, iterator, end)
        yield item


class BackgroundWriter:
    """Runs calls in one background thread, in order, one at a time. `call` waits for the previous call.

    As a context manager it waits for the last call. An exception in a call is raised by the next `call`, or at the end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        self._wait()
        self._last = self._pool.submit(function, *arguments)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._pool.shutdown()
