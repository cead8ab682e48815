"""How often somebody may call."""

from __future__ import annotations

import time
from collections import OrderedDict

MOST = 10_000  # names that are remembered


class Buckets:
    """A token bucket of each name: `burst` calls at once, then `rate` per second."""

    def __init__(self, rate: float, burst: float):
        self.rate, self.burst = rate, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str, now: float | None = None) -> float:
        """Take one call; 0, or the seconds until there is one."""
        now = time.monotonic() if now is None else now
        left, then = self._left.pop(name, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.rate)
        allowed = left >= 1
        self._left[name] = (left - allowed, now)
        while len(self._left) > MOST:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.rate
