"""What a run's folder knows of the API: `{run}/api.jsonl`, appended to. The data base can be made again from it.

One line per event: `created` (the whole request and plan), `taken` (by which runner), `ended` (how), `resumed`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechmill.api.store import ENDED, Run
from speechmill.times import utc_now

FILE = "api.jsonl"
OF_CREATED = ("dataset", "run_dir", "config", "plan", "caller", "created", "hours", "key", "body")
NOT_ENDED: dict[str, Any] = {"ended": None, "last_error": None, "final": None}


def note(run_dir: Path, event: str, run_id: str, /, **about: Any) -> None:
    """Append a line that is on disk when this returns."""
    run_dir.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": utc_now(), "event": event, "id": run_id, **about}).encode() + b"\n"
    descriptor = os.open(run_dir / FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (b"\n" if torn else b"") + line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def note_created(run: Run) -> None:
    note(Path(run.run_dir), "created", run.id, **{name: getattr(run, name) for name in OF_CREATED})


def runs_of(run_dir: Path) -> list[Run]:
    """The runs that a folder tells of, as they were last."""
    found: dict[str, Run] = {}
    for line in _lines(run_dir / FILE):
        if line["event"] == "created":
            # A folder may have been moved: where it is now counts.
            values: dict[str, Any] = {name: line.get(name) for name in OF_CREATED} | {"run_dir": str(run_dir.resolve())}
            found[line["id"]] = Run(id=line["id"], **values)
        elif line["id"] in found:
            run = found[line["id"]]
            if line["event"] == "taken":
                started = run.started or line["time"]
                run = replace(run, state="lost", runner=line["runner"], started=started, **NOT_ENDED)
            elif line["event"] == "ended" and line.get("state") in ENDED:
                final = json.dumps(line.get("final") or {})
                run = replace(
                    run, state=line["state"], ended=line["time"], runner=None, last_error=line.get("error"), final=final
                )
            elif line["event"] == "resumed":
                run = replace(run, state="queued", runner=None, started=None, **NOT_ENDED)
            found[run.id] = run
    return list(found.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for raw in path.read_bytes().splitlines():
        try:
            line = json.loads(raw)
        except ValueError:  # cut short by a crash
            continue
        if isinstance(line, dict) and {"time", "event", "id"} <= line.keys():
            yield line
