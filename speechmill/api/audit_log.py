"""Who asked for what change, from where, with what outcome: `audit.jsonl` of the state directory."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
from pathlib import Path
from typing import Any

from speechmill.times import utc_now

BYTES, FILES = 10_000_000, 5


def open_log(path: Path) -> logging.Logger:
    """For one process, and all its threads."""
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    log = logging.Logger("speechmill.audit")
    log.addHandler(logging.handlers.RotatingFileHandler(path, maxBytes=BYTES, backupCount=FILES, encoding="ascii"))
    return log


def note(log: logging.Logger, who: str | None, origin: str | None, what: str, **about: Any) -> None:
    line = {"time": utc_now(), "who": who, "from": origin, "what": _cut(what)}
    line |= {name: _cut(value) if isinstance(value, str) else value for name, value in about.items()}
    log.info(json.dumps(line))  # ASCII: a line stays a line, and shows what it holds


def _cut(text: str) -> str:
    """Short also where every character of it takes six to be written."""
    return text[: 300 if text.isascii() and text.isprintable() else 50]
