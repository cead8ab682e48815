"""One start of Snakemake on a run: take the run lock, log attempts, watch for alerts, end."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from speechmill.cluster.backend import SharedFiles
from speechmill.config import missing_paths
from speechmill.errors import SpeechmillError
from speechmill.monitor.watch import Watch, watch_run
from speechmill.publish.target import target_of
from speechmill.ranking.index import damaged_tables
from speechmill.runlog import run_lock
from speechmill.runlog.attempts import AttemptLog
from speechmill.runlog.snakemake_events import Start
from speechmill.runs import inputs

NAMED = 5  # batches that a warning names
_current: Session | None = None


class Session:
    """What the Snakefile knows of this start. Nothing happens before `begin`, so a dry run leaves no trace."""

    def __init__(
        self, config: dict[str, Any], run_dir: Path, config_dir: Path, backend: SharedFiles, logger: logging.Logger
    ):
        self.config, self.run_dir, self.config_dir = config, run_dir, config_dir
        self.backend, self.logger = backend, logger
        self.refused: list[str] = []  # what a hub refused while the DAG was built: the run then does not start
        self.start: Start | None = None
        self._announced: set[str] = set()
        self._attempts: AttemptLog | None = None
        self._watch: Watch | None = None

    @functools.cached_property
    def ranking_profile(self) -> dict[str, Any]:
        """The content of the ranking profile, read once."""
        return inputs.ranking_profile(self.config, self.config_dir)

    @functools.cached_property
    def source_fingerprint(self) -> str:
        """Changes when the source does; asked for once, while the DAG is built. What a hub refuses is in `refused`."""
        goal = target_of(self.config).goal
        found, refusal = inputs.source_fingerprint(self.config, self.run_dir, goal, self.logger.warning)
        self.refused += [refusal] if refusal else []
        return found

    @functools.cached_property
    def damaged_tables(self) -> list[str]:
        """Batches whose ranking table is missing or was changed; warns the user of them."""
        damaged = damaged_tables(self.run_dir / "ranking")
        if damaged:
            names = ", ".join(damaged[:NAMED]) + (", ..." if len(damaged) > NAMED else "")
            self.announce([f"ranking again: {len(damaged)} ranking tables are missing or were changed: {names}"])
        return damaged

    def begin(self, retries: Mapping[str, int], goal: str) -> None:
        """Before the first job, but neither in a dry run nor for --lint.

        Args:
            retries: rule -> attempts after the first.
            goal: the file of the run that its last job makes.

        Raises:
            SpeechmillError: the run cannot start, for every reason at once; or another process works on it.
        """
        problems = missing_paths(self.config) + inputs.ranking_problems(self.config, self.config_dir)
        problems += self.refused + self.backend.problems()
        if problems:
            raise SpeechmillError("the run cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))
        run_lock.claim(self.run_dir)
        if run_lock.SUPERVISOR not in os.environ:  # speechmill run sends alerts itself
            self._watch = watch_run(self.run_dir, lambda: self.config, self.logger.warning)
        withholds = bool(self.config["without_batches"]) and self.config["failed_batches"] == "withhold"
        self.start = Start(self.run_dir, self.config["dataset"], retries, goal=goal, withholds=withholds)
        self._attempts = AttemptLog(self.start)
        self.logger.addHandler(self._attempts)
        global _current
        _current = self

    def end(self, outcome: str) -> None:
        """When Snakemake has ended: `succeeded` or `failed`. Does nothing where the run did not start."""
        if self.start and self._attempts:
            self.start.end(outcome)
            self._attempts.end()
        run_lock.release(self.run_dir)
        if self.start and self._watch:
            self._watch.stop({"succeeded": "finished", "failed": "failed"}.get(str(self.start.outcome), "stopped"))

    def announce(self, sentences: Iterable[str]) -> None:
        """Warn the user of what is not announced yet: the DAG is built several times."""
        for sentence in sentences:
            if sentence not in self._announced:
                self._announced.add(sentence)
                self.logger.warning(sentence)


def current_start() -> Start | None:
    """The start that this process is; None before the first job, and in a dry run."""
    return _current.start if _current else None
