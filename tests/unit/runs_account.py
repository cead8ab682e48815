"""Runs for tests as their account, manifest and batches tell them, without any job."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from speechmill.runlog import run_lock
from speechmill.runlog.attempts import FILE

OUTPUT = {"enhance": "ledger/{}.enhance.parquet", "score": "scores/{}.parquet", "rank": "ranking/ranked.tsv"}
OUTPUT |= {"report": "report/summary.json", "publish": "published/UPLOADED.json"}


class Account:
    """Writes the account of a run line by line; `at` is in seconds after the beginning, 2026-01-01 00:00 UTC."""

    zero = datetime(2026, 1, 1, tzinfo=UTC).timestamp()

    def __init__(self, run_dir: Path, batches: int = 0, clips: int = 100):
        self.run_dir = run_dir
        self.start = ""
        (run_dir / "logs").mkdir(parents=True)
        if batches:
            (run_dir / "manifest").mkdir()
            rows = "".join(f"b{number}\t{clips}\t1.0\t\n" for number in range(batches))
            (run_dir / "manifest" / "batches.tsv").write_text("batch\tclips\tseconds\tsource_file\n" + rows)

    def begin(self, at: float = 0, **about: Any) -> None:
        self.start = self.time(at)
        self.line(at, "began", "run", None, **({"goal": "published/UPLOADED.json", "versions": {}} | about))

    def end(self, at: float, outcome: str) -> None:
        self.line(at, "ended", "run", None, outcome=outcome)

    def submit(self, at: float, stage: str, batch: str | None = None, attempt: int = 1, **about: Any) -> None:
        self.line(at, "submitted", stage, batch, attempt, asked={"threads": 2, "mem_mb": 4000}, **about)

    def finish(self, at: float, stage: str, batch: str | None = None, attempt: int = 1, **about: Any) -> None:
        """`about` may have seconds, clips, audio_seconds, peak_mb; its file is there."""
        path = self.run_dir / OUTPUT[stage].format(batch)
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        self.line(at, "finished", stage, batch, attempt, node="n1", **about)

    def fail(self, at: float, stage: str, batch: str | None = None, attempt: int = 1, **about: Any) -> None:
        self.line(at, "failed", stage, batch, attempt, **({"reason": "no memory", "lines": ["a", "b"]} | about))

    def line(self, at: float, event: str, stage: str, batch: str | None, attempt: int = 1, **about: Any) -> None:
        values = {"time": self.time(at), "start": self.start, "event": event, "stage": stage, "batch": batch}
        values |= {"attempt": attempt, "slurm_job": None} | about
        with open(self.run_dir / FILE, "a") as file:
            file.write(json.dumps(values) + "\n")

    def own(self, alive: bool = True) -> None:
        """As if this process, or a dead one, were its Snakemake."""
        run_lock.claim(self.run_dir)
        if not alive:
            path = self.run_dir / run_lock.FILE
            path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 1'))

    def time(self, at: float) -> str:
        return datetime.fromtimestamp(self.zero + at, UTC).isoformat(timespec="milliseconds")
