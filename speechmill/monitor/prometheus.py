"""Runs as Prometheus metrics: their records (`speechmill.monitor.record`), over HTTP, in a file, or printed once.

Every series has the labels `dataset` and `run` (the folder, since two runs may be of the same data set); besides only
`stage`, `state`, `status` and `version`: as many series as the workflow has stages, however many batches there are.
Counters are sums over the account of attempts, to which lines are only added, so they go on where a new start begins.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from speechmill.errors import SpeechmillError
from speechmill.monitor.record import STAGES, RunReader
from speechmill.utils.text import encodable
from speechmill.utils.times import unix

KEEP_SECONDS = 15.0  # how old a reading may be: many who ask are one reader of a shared file system
RUN_STATES = ("running", "finished", "failed", "stopped", "interrupted")
ENDS = ("finished", "failed", "lost")
NAMED = ("dataset", "run")
COUNTED = (*STAGES, "rank")  # stages whose jobs count clips
Sample = tuple[str, tuple[str, ...], float]  # name without prefix, values of its own labels, value
Read = Callable[[Path], tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]  # of a run its record and its jobs


class Family(NamedTuple):
    """A metric: its type, its labels besides data set and run, and what it means."""

    type: str
    labels: tuple[str, ...]
    meaning: str


FAMILIES = {
    "run_readable": Family("gauge", (), "1 where the folder of the run could be read, else 0 and nothing else is told"),
    "run_info": Family("gauge", ("version",), "1; the version of speechmill that the last start of the run has"),
    "run_state": Family("gauge", ("state",), "1 for the state that the run is in, 0 for the others"),
    "run_starts_total": Family("counter", (), "Starts of Snakemake on the run"),
    "run_started_timestamp_seconds": Family("gauge", (), "When the run was started first"),
    "last_finished_timestamp_seconds": Family("gauge", (), "When a job of the run was finished last"),
    "time_left_seconds": Family("gauge", (), "How long the run will take about, while it is at work"),
    "manifest_clips": Family("gauge", (), "Clips that the manifest lists"),
    "clips": Family("gauge", ("stage", "state"), "Clips that the finished batches of a stage have by state, each once"),
    "audio_seconds": Family(
        "gauge", ("stage", "state"), "Length of the clips that the finished batches of a stage have by state"
    ),
    "batches_planned": Family("gauge", ("stage",), "Batches that the stage has to do; 1 for a job of the whole run"),
    "batches_done": Family("gauge", ("stage",), "Batches that the stage has done"),
    "queue_readable": Family("gauge", (), "0 where Slurm did not say which jobs run and wait, else 1"),
    "jobs": Family("gauge", ("stage", "state"), "Jobs that are running or waiting now"),
    "jobs_given_up": Family("gauge", ("stage",), "Jobs that failed for good and have not been finished since"),
    "jobs_submitted_total": Family("counter", ("stage",), "Attempts of jobs that began or were given to Slurm"),
    "jobs_ended_total": Family(
        "counter", ("stage", "status"), "Attempts that finished, failed, or were lost with their Snakemake"
    ),
    "jobs_run_seconds_total": Family("counter", ("stage",), "Seconds that ended attempts worked"),
    "jobs_queue_seconds_total": Family("counter", ("stage",), "Seconds that ended attempts waited before they began"),
    "processed_clips_total": Family("counter", ("stage",), "Clips of finished jobs, again where a batch is repeated"),
    "processed_audio_seconds_total": Family(
        "counter", ("stage",), "Length of the clips of finished jobs, again where a batch is repeated"
    ),
    "clips_per_second": Family("gauge", ("stage",), "Clips per second of the clock, lately, while the run is at work"),
    "audio_seconds_per_second": Family(
        "gauge", ("stage",), "Seconds of audio per second of the clock, lately, while the run is at work"
    ),
    "job_memory_peak_bytes": Family("gauge", ("stage",), "The most memory that an attempt of the stage has used"),
    "job_gpu_memory_peak_bytes": Family(
        "gauge", ("stage",), "The most GPU memory that an attempt of the stage has used"
    ),
    "disk_free_bytes": Family("gauge", (), "Free on the file system of the run"),
    "panoptes_untold_events": Family("gauge", (), "Events of the last start that Panoptes was not told"),
    "alerts_open": Family("gauge", (), "Causes that people were told of and that have not ended"),
    "alerts_undelivered": Family("gauge", (), "Messages that no channel has taken yet"),
}


class RunCollector:
    """Reads the runs when it is asked, at most every `keep_seconds`. One that cannot be read never fails a scrape."""

    def __init__(self, runs: Iterable[Path], keep_seconds: float = KEEP_SECONDS, read: Read | None = None):
        self.read = read or self._read_run
        self.readers: dict[Path, RunReader] = {}
        self.runs = list(dict.fromkeys(Path(os.path.realpath(run)) for run in runs))
        self.keep_seconds = keep_seconds
        self.states: dict[Path, str] = {}  # as last seen, of those that are there
        self.troubles: dict[Path, str] = {}
        self._kept: list[Metric] = []
        self._read_at = -float("inf")
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at >= self.keep_seconds:
                self._kept = self._read()
                self._read_at = time.monotonic()
            return iter(self._kept)

    @property
    def at_work(self) -> bool:
        """Whether a run was at work when it was last seen, and has not vanished since."""
        return "running" in self.states.values()

    def _read(self) -> list[Metric]:
        families: dict[str, Metric] = {}
        for run in self.runs:
            for name, labels, value in self._samples(run):
                family = families.setdefault(name, _family(name))
                shown = (run.name, str(run), *labels)
                family.add_metric([encodable(text) for text in shown], value)  # type: ignore[attr-defined]
        return list(families.values())

    def _samples(self, run: Path) -> list[Sample]:
        try:
            found, jobs = self.read(run)
            samples = [*_of_record(found), *_of_account(found, jobs)]
        except Exception as error:  # whatever stands in its files, the other runs are to be seen
            text = str(error) if isinstance(error, SpeechmillError) else f"{run}: {type(error).__name__}: {error}"
            if self.troubles.get(run) != text:
                print(f"speechmill: {encodable(text)}", file=sys.stderr, flush=True)
            self.troubles[run] = text
            if not run.is_dir():
                self.states.pop(run, None)
            return [("run_readable", (), 0)]
        self.troubles.pop(run, None)
        self.states[run] = found["state"]
        return [("run_readable", (), 1), *samples]

    def _read_run(self, run: Path) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        return self.readers.setdefault(run, RunReader(run)).read()


def exposition(collector: RunCollector) -> str:
    """The metrics as text, in the format that Prometheus reads."""
    return prometheus_client.generate_latest(_registry(collector)).decode()


def write_textfile(collector: RunCollector, path: Path, every: float | None = None) -> None:
    """Write the metrics for node_exporter; with `every` again and again until no run is at work any more.

    Raises:
        SpeechmillError: the file cannot be written.
    """
    registry = _registry(collector)
    while True:
        try:
            prometheus_client.write_to_textfile(str(path), registry)
        except OSError as error:
            raise SpeechmillError(
                f"{path} cannot be written: {error.strerror}; name a file in a folder of yours"
            ) from error
        if every is None or not collector.at_work:
            return
        time.sleep(every)


def serve(collector: RunCollector, address: str, port: int) -> None:
    """Answer scrapes over HTTP until interrupted.

    Raises:
        SpeechmillError: the port is taken, or the address is not this machine's.
    """
    try:
        server, thread = prometheus_client.start_http_server(port, address, _registry(collector))
    except (OSError, OverflowError) as error:
        raise SpeechmillError(f"cannot listen on {address}, port {port}: {error}") from error
    shown = f"[{address}]" if ":" in address else address
    print(f"metrics of {len(collector.runs)} runs: http://{shown}:{server.server_port}/metrics", flush=True)
    if not _is_loopback(address):
        print("whoever reaches this address can read them: there is no password", file=sys.stderr, flush=True)
    try:
        thread.join()
    finally:
        server.shutdown()
        server.server_close()


def listen_address(text: str) -> tuple[str, int]:
    """Address and port of [ADDRESS:]PORT; without an address, this machine alone.

    Raises:
        SpeechmillError: it is not of this form.
    """
    address, colon, port = text.rpartition(":")
    if bool(address) != bool(colon) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SpeechmillError(f"--listen {text}: give PORT or ADDRESS:PORT, such as 9510 or 0.0.0.0:9510")
    return address.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _of_record(found: Mapping[str, Any]) -> Iterator[Sample]:
    at_work = found["state"] == "running"
    yield from (("run_state", (state,), state == found["state"]) for state in RUN_STATES)
    yield "disk_free_bytes", (), found["disk_free_bytes"]
    yield "queue_readable", (), found["slurm_error"] is None
    for name, time_of in (("run_started", "started"), ("last_finished", "last_finished")):
        if found[time_of]:
            yield f"{name}_timestamp_seconds", (), unix(found[time_of])
    if found["clips"] is not None:
        yield "manifest_clips", (), found["clips"]
    if at_work and found["seconds_left"] is not None:
        yield "time_left_seconds", (), found["seconds_left"]
    given_up = {stage["stage"]: 0 for stage in found["stages"]} | Counter(line["stage"] for line in found["given_up"])
    yield from (("jobs_given_up", (stage,), count) for stage, count in given_up.items())
    for stage in found["stages"]:
        yield from _of_stage(stage, at_work, found["slurm_error"] is None)
    if panoptes := found["panoptes"]:
        yield "panoptes_untold_events", (), panoptes["untold"]
    if alerts := found.get("alerts"):
        yield "alerts_open", (), len(alerts["open"])
        yield "alerts_undelivered", (), alerts["undelivered"]


def _of_stage(stage: Mapping[str, Any], at_work: bool, queue_known: bool) -> Iterator[Sample]:
    name = stage["stage"]
    yield "batches_done", (name,), stage["done"]
    if stage["total"] is not None:
        yield "batches_planned", (name,), stage["total"]
    yield from (("clips", (name, state), count) for state, count in stage["clips"].items())
    yield from (("audio_seconds", (name, state), round(hours * 3600, 2)) for state, hours in stage["hours"].items())
    if queue_known:
        yield from (("jobs", (name, state), stage[state]) for state in ("running", "waiting"))
    if at_work and stage["clips_per_hour"] is not None:
        yield "clips_per_second", (name,), stage["clips_per_hour"] / 3600
        yield "audio_seconds_per_second", (name,), stage["audio_hours_per_hour"]


def _of_account(found: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> Iterator[Sample]:
    """Sums over the account. None of them falls when a line is added."""
    yield "run_starts_total", (), found["starts"]
    if found["version"]:
        yield "run_info", (found["version"],), 1
    sums: defaultdict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    peaks: defaultdict[tuple[str, str], float] = defaultdict(float)
    for job in jobs:
        stage = job["stage"]
        sums["jobs_submitted_total", (stage,)] += 1
        for status in ENDS:
            sums["jobs_ended_total", (stage, status)] += job["status"] == status
        sums["jobs_run_seconds_total", (stage,)] += job.get("seconds") or 0
        for told in ("clips", "audio_seconds"):
            states = (job.get(told) if job["status"] == "finished" else None) or {}
            if stage in COUNTED or states:  # from 0 on: what a series begins with is no increase to Prometheus
                sums[f"processed_{told}_total", (stage,)] += sum(states.values())
        if job.get("began"):  # clocks of two machines may differ
            sums["jobs_queue_seconds_total", (stage,)] += max(unix(job["began"]) - unix(job["submitted"]), 0)
        for name, peak in (("job_memory_peak_bytes", "peak_mb"), ("job_gpu_memory_peak_bytes", "gpu_peak_mb")):
            if job.get(peak):
                peaks[name, stage] = max(job[peak] * 1e6, peaks[name, stage])
    yield from ((name, labels, value) for (name, labels), value in sums.items())
    yield from ((name, (stage,), value) for (name, stage), value in peaks.items())


def _family(name: str) -> Metric:
    kind = CounterMetricFamily if FAMILIES[name].type == "counter" else GaugeMetricFamily
    labels: Sequence[str] = (*NAMED, *FAMILIES[name].labels)
    return kind(f"speechmill_{name}", FAMILIES[name].meaning, labels=labels)


def _registry(collector: RunCollector) -> prometheus_client.CollectorRegistry:
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)
    return registry


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(address) if ":" not in address else address).is_loopback
    except (OSError, ValueError):
        return False
