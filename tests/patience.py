"""How long tests wait before they fail: every deadline, times PATIENCE of the environment (default 1)."""

import os

PATIENCE = float(os.environ.get("PATIENCE", "1"))


def seconds(number: float) -> float:
    """A deadline of a test. It only bounds how long a failing test takes: it says nothing about speed."""
    return number * PATIENCE
