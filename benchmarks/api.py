"""The API under load: `python benchmarks/api.py [--clients 50] [--minutes 10] [--batches 1000] [--check] [--json FILE]`.

The real server, as a process of its own, over a run that is known by its folder alone: batches, the account of its
attempts, progress of jobs at work. The account grows while it is measured, as that of a run at work does, so that it is
nearly finished, and longest, at the end. Each client polls the run's status every 2 s, half of them hold a stream of its
events besides, and from its beginning, as a dashboard does. The limit beside it is /healthz, polled by the same clients
at the same times, which is what HTTP costs on that server, and before that alone. Clients, and whoever writes the
account, share the machine with the server. With --check, a target that is missed ends it with status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil
from cost import Table
from speech_corpus import machine, said

from speechmill.api.auth import new_token
from speechmill.api.service import result_file
from speechmill.api.settings import Settings, make_state_dir
from speechmill.api.store import Run, Store, new_id
from speechmill.engine.checkpoint import checkpoint_folder
from speechmill.monitor.record import HEAVY
from speechmill.runlog.run_lock import RunLock
from speechmill.storage.files import write_json
from speechmill.utils.times import unix

ROOT = Path(__file__).resolve().parents[1]
EVERY_SECONDS = 2.0  # between two polls of a client, give or take a quarter
AT_WORK = 16  # jobs
STEPS_PER_SECOND = 2.0  # a job ends and another one begins: two lines of the account
NEXT = {"enhance": "score", "score": "rank", "rank": None}
FAILING = 0.02  # share of attempts
CLIPS = 10_000  # of a batch
EARLIER_SECONDS = 6 * 3600.0  # since the run began
CATCHING_UP_SECONDS = 10.0  # in which the streams are told what was before
SETTLE_SECONDS = 4.0  # longer than the server keeps a reading, and waits between two looks for events
P99_MS, GROWTH = 200, 0.10  # targets; growth of memory after the first minute
MB = 2**20


# The run


class Work:
    """A run at work, told by its account, its files and progress.json alone; this process is its Snakemake."""

    def __init__(self, run_dir: Path, batches: int):
        from tests.unit.runs_account import Account

        self.account = Account(run_dir, batches, CLIPS)
        self.account.zero = time.time() - EARLIER_SECONDS
        self.account.begin()
        self.account.own()
        self.random = random.Random(0)
        self.next_batch, self.batches = 0, batches
        self.jobs: deque[tuple[str, str, int]] = deque()  # stage, batch, attempt
        self.finished: Counter[str] = Counter()
        self.lines = 0  # about jobs
        for _ in range(AT_WORK):
            self._begin_batch(0)

    def run_until(self, batches: int) -> None:
        """What was before: so many batches are enhanced."""
        seconds = EARLIER_SECONDS / (3.1 * batches + 1)  # of a step
        at = 0.0
        while self.finished["enhance"] < batches:
            at = min(at + seconds, EARLIER_SECONDS)
            self._step(at)
        for job in self.jobs:
            self._tell(job, 0.5)

    def feed(self, over: threading.Event) -> None:
        """Go on as time does."""
        while not over.wait(1 / STEPS_PER_SECOND):
            if not self.jobs:
                raise SystemExit("the run came to its end while it was measured")
            self._step(time.time() - self.account.zero, is_live=True)

    def _step(self, at: float, is_live: bool = False) -> None:
        stage, batch, attempt = self.jobs.popleft()
        if self.random.random() < FAILING:
            lines = [f"line {number} of what the job said before it ended" for number in range(15)]
            self.account.fail(at, stage, batch, attempt, lines=lines)
            self._submit(at, stage, batch, attempt + 1)
        else:
            self.account.finish(at, stage, batch, attempt, **self._about(at))
            self.finished[stage] += 1
            if after := NEXT[stage]:
                self._submit(at, after, batch)
            else:
                self._begin_batch(at)
        self.lines += 1
        if stage in HEAVY:
            shutil.rmtree(self._parts(stage, batch), ignore_errors=True)
        if is_live and self.jobs:
            self._tell(self.jobs[-1], 0.0)
            self._tell(self.jobs[len(self.jobs) // 2], 0.5)

    def _begin_batch(self, at: float) -> None:
        if self.next_batch < self.batches:
            self._submit(at, "enhance", f"b{self.next_batch}")
            self.next_batch += 1

    def _submit(self, at: float, stage: str, batch: str, attempt: int = 1) -> None:
        self.account.submit(at, stage, batch, attempt)
        self.jobs.append((stage, batch, attempt))
        self.lines += 1

    def _about(self, at: float) -> dict[str, Any]:
        """What a finished job's log tells."""
        seconds = round(self.random.uniform(300, 600), 3)
        share = self.random.uniform(0.9, 1)
        clips = {"passed": round(share * CLIPS), "rejected": CLIPS - round(share * CLIPS)}
        return {
            "gpus": None,
            "began": self.account.time(at - seconds),
            "seconds": seconds,
            "cpu_seconds": 2 * seconds,
            "peak_mb": 1100.0,
            "device": "cpu",
            "clips": clips,
            "audio_seconds": {state: 5.0 * number for state, number in clips.items()},
        }

    def _tell(self, job: tuple[str, str, int], share: float) -> None:
        stage, batch, _ = job
        if stage not in HEAVY:
            return
        rows = {"rows": round(share * CLIPS), "total": CLIPS, "resumed": 0}
        rate = {"rows_per_second": 25.0, "seconds_left": round((1 - share) * CLIPS / 25), "time": time.time()}
        write_json(self._parts(stage, batch) / "progress.json", rows | rate)

    def _parts(self, stage: str, batch: str) -> Path:
        return checkpoint_folder(self.account.run_dir / HEAVY[stage] / f"{batch}.parquet")


def register(work: Work, state_dir: Path) -> Run:
    """The run in the server's data base, in the hands of this process: a living supervisor, so the server starts none."""
    store = Store(state_dir)
    run_dir = work.account.run_dir
    run = Run(new_id(), run_dir.name, str(run_dir), config="{}", plan="{}", caller="load", created=work.account.time(0))
    store.create(run)
    RunLock(run_dir, str(result_file(run))).take()
    store.claim(run.id, "load", None, 0)
    store.move(run.id, "load", "running")
    return run


# The server


@contextmanager
def server(state_dir: Path, directory: Path) -> Iterator[tuple[psutil.Process, str]]:
    """`speechmill serve`, and its address."""
    command = [sys.executable, "-m", "speechmill", "serve", "--state-dir", str(state_dir), "--profile", "local"]
    command += ["--directory", str(directory), "--port", "0", "--requests-per-second", "1e6"]
    log = state_dir / "server.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=output, stderr=output
        )
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"API: (\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield psutil.Process(process.pid), found[1]
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# The clients


@dataclass
class Polls:
    """Of one path, by all clients."""

    begin: float = 0.0
    took: list[tuple[float, float]] = field(default_factory=list)  # sent, in seconds since `begin`; seconds
    late: list[float] = field(
        default_factory=list
    )  # seconds that the clients were too late to send: their own slowness
    errors: Counter[str] = field(default_factory=Counter)

    def seconds(self, since: float = 0.0, until: float = math.inf) -> list[float]:
        return [took for sent, took in self.took if since <= sent < until]

    async def poll(self, client: httpx.AsyncClient, path: str, seconds: float, chance: random.Random) -> None:
        due = self.begin + chance.uniform(0, EVERY_SECONDS)
        while due < self.begin + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            try:
                answer = await client.get(path)
                if answer.status_code != 200:
                    self.errors[f"{path}: status {answer.status_code}"] += 1
            except httpx.HTTPError as error:
                self.errors[f"{path}: {type(error).__name__}"] += 1
            self.took.append((sent - self.begin, time.monotonic() - sent))
            self.late.append(sent - due)
            due += EVERY_SECONDS * chance.uniform(0.75, 1.25)


@dataclass
class Stream:
    """What one listener heard. `before`: lines that were there when it began; of later ones the delay is taken."""

    before: int
    jobs: int = 0
    delays: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    async def listen(self, client: httpx.AsyncClient, path: str, wait: float) -> None:
        await asyncio.sleep(wait)
        try:
            async with client.stream("GET", path, timeout=60) as answer:
                answer.raise_for_status()
                rest = b""
                async for data in answer.aiter_raw():
                    now = time.time()
                    *events, rest = (rest + data).split(b"\n\n")
                    for event in events:
                        if b"event: job\n" in event:
                            self._hear(event, now)
            self.errors["events: ended before the run did"] += 1
        except httpx.HTTPError as error:
            self.errors[f"events: {type(error).__name__}"] += 1

    def _hear(self, event: bytes, now: float) -> None:
        self.jobs += 1
        if self.jobs > self.before:
            line = json.loads(event.partition(b"data: ")[2])
            self.delays.append(now - unix(line["time"]))


@dataclass(frozen=True)
class Measured:
    alone: Polls  # /healthz, nothing else asked
    health: Polls
    status: Polls
    streams: list[Stream]
    rss: list[tuple[float, float]]  # seconds since the beginning, MiB of the server
    cpu: float  # seconds of the server
    seconds: float
    lines: tuple[int, int]  # about jobs in the account, at the beginning and at the end
    answer_bytes: int  # of the status

    @property
    def errors(self) -> Counter[str]:
        counts = [each.errors for each in (self.alone, self.health, self.status)]
        return sum([*counts, *(stream.errors for stream in self.streams)], Counter())

    def marks(self) -> list[float]:
        """Memory at the end of each minute: the median of its last ten seconds."""
        ends = range(60, int(self.seconds) + 1, 60)
        return [median([rss for at, rss in self.rss if end - 10 <= at <= end]) for end in ends]


async def measure(
    work: Work, run: Run, process: psutil.Process, url: str, token: str, clients: int, seconds: float
) -> Measured:
    chance = random.Random(1)
    trust = httpx.create_ssl_context()  # made once: it takes longer than a request
    over = threading.Event()
    status_path, events_path = f"/pipeline/status/{run.id}", f"/pipeline/runs/{run.id}/events"
    headers = {"Authorization": f"Bearer {token}"}
    async with AsyncExitStack() as stack:
        callers = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, headers=headers, timeout=30, verify=trust, trust_env=False)
            )
            for _ in range(clients)
        ]
        alone = Polls(time.monotonic())
        await asyncio.gather(
            *(alone.poll(each, "/healthz", max(seconds / 20, EVERY_SECONDS), chance) for each in callers)
        )

        before = work.lines
        streams = [Stream(before) for _ in range((clients + 1) // 2)]
        rss: list[tuple[float, float]] = []
        health, status = Polls(time.monotonic()), Polls(time.monotonic())

        async def sample() -> None:
            while True:
                rss.append((time.monotonic() - status.begin, process.memory_info().rss / MB))
                await asyncio.sleep(1)

        spent = process.cpu_times()
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(asyncio.to_thread(work.feed, over))
            besides = [group.create_task(sample())]
            for stream, caller in zip(streams, callers, strict=False):
                wait = chance.uniform(0, EVERY_SECONDS)
                besides.append(group.create_task(stream.listen(caller, events_path, wait)))
            try:
                await asyncio.gather(
                    *(status.poll(each, status_path, seconds, chance) for each in callers),
                    *(health.poll(each, "/healthz", seconds, chance) for each in callers),
                )
                took = time.monotonic() - status.begin
                now = process.cpu_times()
            finally:
                over.set()  # or nobody would end the thread
            await feeding
            await asyncio.sleep(SETTLE_SECONDS)
            for task in besides:
                task.cancel()
        answer = await callers[0].get(status_path)
    check(work, answer)
    cpu = now.user + now.system - spent.user - spent.system
    return Measured(alone, health, status, streams, rss, cpu, took, (before, work.lines), len(answer.content))


def check(work: Work, answer: httpx.Response) -> None:
    """The status tells what stands in the folder: otherwise nothing is measured."""
    found = answer.json()
    done = {stage["stage"]: stage["done"] for stage in found.get("stages", []) if stage["stage"] in NEXT}
    if found.get("state") != "running" or done != dict(work.finished):
        raise SystemExit(f"not the status of this run, of which {dict(work.finished)} are done:\n{answer.text[:3000]}")


# What is shown


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    if not seconds:
        return {}
    values = np.percentile(seconds, [50, 95, 99, 100]) * 1000
    return {name: round(float(value), 1) for name, value in zip(("p50", "p95", "p99", "max"), values, strict=True)}


def in_words(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" if value >= 100 else f"{name} {value:.1f}" for name, value in found.items())


def show(found: Measured, clients: int) -> tuple[dict[str, Any], list[str]]:
    """Prints the table; figures, and what is missed."""
    table = Table()
    alone, health, status = (percentiles(each.seconds()) for each in (found.alone, found.health, found.status))
    early = percentiles(found.status.seconds(until=CATCHING_UP_SECONDS))
    late = percentiles(found.status.late + found.health.late)
    delays = percentiles([delay for stream in found.streams for delay in stream.delays])
    ratio = {name: round(status[name] / health[name], 1) for name in ("p50", "p99")}
    whole = sum(stream.jobs == found.lines[1] for stream in found.streams)
    asked = len(found.status.took) + len(found.health.took)
    errors = found.errors
    marks = found.marks()
    growth = marks[-1] / marks[0] - 1 if len(marks) > 1 else None

    table.row(f"/healthz alone, {clients} clients, ms", in_words(alone))
    table.row("/healthz beside all else, ms", in_words(health))
    table.row(
        f"status, {found.answer_bytes / 1000:.1f} kB, ms", in_words(status), f"p99 {P99_MS}", status["p99"] < P99_MS
    )
    table.row("status, times /healthz beside it", in_words(ratio))
    table.row(f"status while the streams are told {found.lines[0]} earlier lines, ms", in_words(early))
    table.row("clients' own delay before they ask, ms", in_words(late))
    shown = f"{asked / found.seconds:.1f}, {errors.total()} errors"
    table.row("requests per second", shown, "0 errors", not errors)
    table.row("line in the account until a stream tells it, ms", in_words(delays))
    table.row(
        f"streams that were told each of {found.lines[1]} lines once",
        f"{whole} of {len(found.streams)}",
        "all",
        whole == len(found.streams),
    )
    if growth is not None:
        shown = f"{marks[0]:.0f} and {marks[-1]:.0f} MB, {100 * growth:+.1f} %"
        table.row(f"server's memory after minutes 1 and {len(marks)}", shown, f"{100 * GROWTH:g} %", growth < GROWTH)
    table.row("server's CPU", f"{found.cpu:.1f} s in {found.seconds:.0f} s")
    figures = {
        "seconds": round(found.seconds, 1),
        "lines": found.lines,
        "status_bytes": found.answer_bytes,
        "health_alone_ms": alone,
        "health_ms": health,
        "status_ms": status,
        "status_early_ms": early,
        "ratio": ratio,
        "client_late_ms": late,
        "requests": asked,
        "errors": errors,
        "event_delay_ms": delays,
        "streams": len(found.streams),
        "streams_told_all": whole,
        "status_ms_by_minute": [
            percentiles(found.status.seconds(minute * 60, minute * 60 + 60))
            for minute in range(math.ceil(found.seconds / 60))
        ],
        "memory_mb_by_minute": [round(mark, 1) for mark in marks],
        "memory_growth": growth,
        "cpu_seconds": round(found.cpu, 2),
    }
    return figures, table.missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--check", action="store_true", help="status 1 where a target is missed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    seconds = options.minutes * 60
    earlier = options.batches - AT_WORK - math.ceil(STEPS_PER_SECOND * (seconds + 30) / len(NEXT))
    if earlier < 1:
        parser.error(f"{options.batches} batches would be done before {options.minutes:g} minutes: name more --batches")
    about = machine("uvicorn", "fastapi", "httpx")
    print(
        f"{said(about)}\n{options.clients} clients, {options.minutes:g} minutes, {options.batches} batches\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="speechmill-api-") as name:
        folder = Path(name)
        work = Work(folder / "results" / "corpus", options.batches)
        work.run_until(earlier)
        settings = Settings(folder / "state", folder)
        make_state_dir(settings.state_dir)
        token = new_token(settings.tokens, "load", "read")
        run = register(work, settings.state_dir)
        with server(settings.state_dir, folder) as (process, url):
            found = asyncio.run(measure(work, run, process, url, token, options.clients, seconds))
    figures, missed = show(found, options.clients)
    if options.json:
        given = {"machine": about, "clients": options.clients, "minutes": options.minutes, "batches": options.batches}
        options.json.write_text(json.dumps(given | figures | {"missed": missed}, indent=2) + "\n")
    for error, count in found.errors.most_common(10):
        print(f"{count} x {error}", file=sys.stderr)
    for what in missed:
        print(f"MISSED: {what}", file=sys.stderr)
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
