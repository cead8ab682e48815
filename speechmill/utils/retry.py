"""Retry a call to a service with growing pauses, up to a timeout."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Result = TypeVar("Result")

PAUSES = (2, 5, 10, 30, 60)  # seconds between attempts; the last one is repeated


def pause_after(failures: int, pauses: Sequence[float]) -> float:
    """Return the seconds to wait after `failures` (1, 2, ...) failures; the last pause is repeated."""
    return pauses[min(failures, len(pauses)) - 1]


def retry(
    call: Callable[[], Result],
    what: str,
    minutes: float,
    wait_for: Callable[[Exception], float],
    timed_out: Callable[[Exception], Exception],
    describe: Callable[[Exception], str],
    progress: Callable[[], int] = lambda: 0,
) -> Result:
    """Return the result of a call that is retried after PAUSES.

    Args:
        what: name of the call in the log.
        minutes: timeout without progress.
        wait_for: returns the minimum seconds to wait; raises if a retry would not help.
        timed_out: returns the exception to raise after the timeout.
        describe: returns a short description of an error for the log.
        progress: returns a number that grows with progress; the timeout then starts again.
    """
    since, reached, failures = time.monotonic(), progress(), 0
    while True:
        try:
            return call()
        except Exception as error:
            least = wait_for(error)
            if progress() > reached:
                since, reached, failures = time.monotonic(), progress(), 0
            failures += 1
            pause = max(least, pause_after(failures, PAUSES))
            if time.monotonic() + pause - since > minutes * 60:
                raise timed_out(error) from error
            print(f"{what}: {describe(error)}; asked again in {pause:.0f} s", flush=True)
            time.sleep(pause)
