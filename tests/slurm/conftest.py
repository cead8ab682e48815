"""Runs of speechmill on a real Slurm cluster, started once for all tests here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from speechmill.cluster import slurm
from speechmill.runlog.attempts import read_attempts

from ..panoptes import Panoptes
from ..patience import seconds
from ..runs import ROOT, Finished, Run, make_corpus, wait_for
from . import cluster

CLUSTER = {"memory_per_worker": "2G", "hours": 0.5, "retry_delay_seconds": 1}


@dataclass(frozen=True)
class Row:
    """One job as sacct tells it; requeued ones have several rows."""

    id: str
    state: str
    node: str
    start: str
    end: str
    work: str
    tres: str


class SlurmRun(Run):
    """A run under `speechmill run`, with waits that fit tests: polls of 2 s instead of 15 to 180."""

    process: subprocess.Popen[bytes]
    panoptes: str | None = None

    @property
    def prefix(self) -> str:
        return slurm.run_prefix("demo", self.results)

    def environment(self) -> dict[str, str]:
        """Account and partitions come from the environment, as on a user's cluster; and where Panoptes is."""
        names = {"ACCOUNT": cluster.ACCOUNT, "CPU_PARTITION": "cpu", "GPU_PARTITION": "gpu"}
        slurm_names = {f"SPEECHMILL_SLURM_{key}": value for key, value in names.items()}
        return super().environment() | slurm_names | ({"SPEECHMILL_PANOPTES": self.panoptes} if self.panoptes else {})

    def options(self, *more: str) -> list[str]:
        return [
            *("--configfile", str(self.directory / "config.yaml"), "--latency-wait", "10"),
            *("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"),
            *("--set-threads", "enhance=1", "score=1", *more),
        ]

    def plain(self, *arguments: str, check: bool = True) -> Finished:
        """One start of `snakemake` by itself, with a token in its environment."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        done = subprocess.run(
            [*command, "--profile", str(ROOT / "profiles" / "slurm"), *self.options(*arguments)],
            cwd=self.directory,
            env=self.environment() | {"HF_TOKEN": "a-secret-token"},
            capture_output=True,
            text=True,
            timeout=seconds(1800),
            check=False,
        )
        assert done.returncode == 0 or not check, (done.stdout + done.stderr)[-6000:]
        return Finished(done.returncode, done.stdout + done.stderr)

    def begin(self, *more: str, stall: float = 60) -> None:
        """Start `speechmill run` and go on."""
        self.speechmill_popen(
            *("run", "demo", "--directory", str(self.directory), "--poll-seconds", "2", "--stall-seconds", str(stall)),
            *("--", *self.options(*more)),
        )

    def speechmill_popen(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "speechmill", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=self.directory,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def speechmill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "speechmill", *arguments]
        environment = self.environment()
        return subprocess.run(
            command,
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds(900),
            check=False,
        )

    def end(self, status: int = 0, seconds: float = 1200) -> str:
        """Wait until it ends, with this exit status; its output."""
        got = self.process.wait(timeout=seconds)
        output = self.output()
        assert got == status, output[-6000:]
        return output

    def output(self) -> str:
        log = self.results / "logs" / "run.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def destroy(self) -> None:
        """Nothing of the run is left at work, however its test ended."""
        process = getattr(self, "process", None)
        for pid in [*self.processes("snakemake"), *([process.pid] if process else [])]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if process:
            process.wait()
        slurm.cancel([job for job in slurm.jobs(self.prefix) if job.state in slurm.WAITING | slurm.RUNNING])

    def processes(self, needle: str) -> dict[int, str]:
        """Processes of this run whose command line has the needle, with the Slurm job that they belong to."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if needle in command and os.readlink(entry / "cwd") == str(self.directory):
                    lines = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                    job = [line.partition("=")[2] for line in lines if line.startswith("SLURM_JOB_ID=")]
                    found[int(entry.name)] = job[0] if job else ""
            except (OSError, ValueError):
                continue
        return found

    def freeze(self, stage: str, number: int) -> dict[str, int]:
        """Stop the workers of a stage as they appear, until there are so many: batch -> process id."""
        frozen: dict[int, str] = {}

        def enough() -> bool:
            for pid, job in self.processes(f".{stage}.py").items():
                if job and pid not in frozen:
                    os.kill(pid, signal.SIGSTOP)
                    frozen[pid] = job
            return len(frozen) >= number

        wait_for(enough)
        works = {job.id: job.work for job in slurm.jobs(self.prefix)}
        return {works[job].partition(" ")[2]: pid for pid, job in frozen.items()}

    def job(self, stage: str, batch: str | None = None, states: frozenset[str] = slurm.RUNNING) -> slurm.Job:
        """The job of a stage that is in one of these states."""
        work = f"{stage} {batch}" if batch else stage
        return wait_for(
            lambda: next((j for j in slurm.jobs(self.prefix) if j.work == work and j.state in states), None)
        )

    def attempts(self, event: str = "submitted") -> list[dict[str, Any]]:
        return [line for line in read_attempts(self.results) if line["event"] == event]

    def accounted(self) -> list[Row]:
        """What sacct has of this run's jobs, repetitions by Slurm included."""
        shown = slurm.call(
            *("sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", "--starttime=now-2hours"),
            "--format=JobIDRaw,State,NodeList,Start,End,Comment,AllocTRES,JobName%200",
        )
        rows = [line.split("|") for line in shown.splitlines()]
        return [
            Row(*row[:5], row[5].removeprefix("rule_").replace("_wildcards_", " "), row[6])
            for row in rows
            if row[7].startswith(self.prefix)
        ]

    def states(self, work: str) -> list[str]:
        """States of all attempts at a piece of work, in order, without sacct's "by 0"."""
        return [row.state.split(" ")[0] for row in self.accounted() if row.work == work]


@pytest.fixture(scope="session", autouse=True)
def slurm_cluster() -> Iterator[None]:
    problem = cluster.missing()
    if problem:
        pytest.skip(problem)
    cluster.start()
    yield
    cluster.stop()


@pytest.fixture(scope="session")
def listed(tmp_path_factory: pytest.TempPathFactory) -> SlurmRun:
    """A run with its manifest made, on which jobs can fail; not to be changed: copy it."""
    run = SlurmRun(tmp_path_factory.mktemp("slurm") / "listed", device="cpu", cluster=CLUSTER)
    make_corpus(run.directory / "corpus")
    run.start("--until", "manifest")
    return run


@pytest.fixture(scope="session")
def panoptes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Panoptes]:
    server = Panoptes(tmp_path_factory.mktemp("panoptes"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory, panoptes: Panoptes) -> SlurmRun:
    """From nothing to the sentinel, by `snakemake --profile profiles/slurm` alone; not to be changed: copy it."""
    run = SlurmRun(tmp_path_factory.mktemp("profile") / "run", device="cpu", cluster=CLUSTER)
    run.panoptes = panoptes.address
    make_corpus(run.directory / "corpus")
    run.first = run.plain()
    return run


@pytest.fixture
def run(listed: SlurmRun, tmp_path: Path) -> Iterator[SlurmRun]:
    """A run of this test's own that begins with the enhance jobs."""
    copy = listed.copy(tmp_path / "run")
    yield copy
    copy.destroy()
