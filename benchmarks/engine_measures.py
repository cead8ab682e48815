"""What benchmarks/engine.py measures: jobs, steps, limits, models. Each function here runs in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from speech_corpus import RATE, ROOT, Cost, cores, cost

from speechmill.audio.decode import decode
from speechmill.audio.encode import encode_flac
from speechmill.audio.loudness import integrated_loudness, true_peak_dbtp
from speechmill.audio.resample import resample
from speechmill.audio.vad import CHUNK, SileroVad, VadOptions, speech_segments
from speechmill.config import validate_config
from speechmill.engine.batches import length_batches
from speechmill.engine.memory import CPU_SECONDS, GPU_SECONDS
from speechmill.engine.tensors import exact_convolutions, pad
from speechmill.enhance.enhance_batch import enhance_batch
from speechmill.enhance.guard import measure_evidence
from speechmill.enhance.processor import Clip, Processor
from speechmill.metrics import ClipBatch, load_groups, measure_input_signal
from speechmill.metrics.score_batch import score_batch
from speechmill.preflight import preflight
from speechmill.sources import open_source
from speechmill.sources.manifest import build_manifest, describe_source
from speechmill.tables.batches import read_batches

MOS_GROUPS = ("dnsmos_p808", "dnsmos_p835", "distillmos")
ENHANCER_RATE = 48_000  # Hz of both enhancers
REPLAYED = 16  # calls of each model that are repeated with nothing beside them
BUSY_MS = 200  # between two looks at the GPU


@dataclass(frozen=True)
class Job:
    """Settings of a job over a corpus. enhance: what differs from the defaults."""

    corpus: Path
    device: str
    threads: int
    metrics: str = "light"
    batch_seconds: float | None = None
    enhance: dict[str, Any] = field(default_factory=dict)

    def prepared(self, work: Path) -> tuple[dict[str, Any], Any, dict[str, Any], Path]:
        """Configuration, source, what preflight found, and the manifest of the only batch."""
        config = validate_config(
            {
                "dataset": "bench",
                "source": {"kind": "folder", "path": str(self.corpus)},
                "enhance": {"batch_seconds": self.batch_seconds, **self.enhance},
                "score": {"batch_seconds": self.batch_seconds, "metrics": self.metrics},
            },
            ROOT / "config",
        )
        source = open_source(config)
        build_manifest(source, describe_source(source, config), config, work / "manifest")
        (batch,) = read_batches(work / "manifest" / "batches.tsv")
        return config, source, preflight(config, work), work / "manifest" / f"{batch['batch']}.json"


@dataclass(frozen=True)
class Ran(Cost):
    """A job's cost. clips: that came out. busy: share of the samples in which the GPU computed; None where unknown."""

    clips: int = 0
    busy: float | None = None


def enhanced(job: Job, work: Path) -> Ran:
    """The enhance job; leaves its shard in `work`."""
    with silence():
        config, source, found, batch = job.prepared(work)
        return ran(
            lambda: enhance_batch(
                batch,
                source,
                None,
                config,
                found,
                job.device,
                job.threads,
                work / "shard.parquet",
                work / "ledger.parquet",
            )["passed"],
            job.device,
        )


def scored(job: Job, work: Path) -> Ran:
    """The score job over the shard in `work`."""
    with silence():
        config, _, found, _ = job.prepared(work)
        out = work / f"scores-{job.metrics}.parquet"
        return ran(
            lambda: score_batch(work / "shard.parquet", config, found, job.device, job.threads, out)["scored"],
            job.device,
        )


def ran(call: Callable[[], int], device: str) -> Ran:
    counted: list[int] = []
    with gpu_busy(device) as busy:
        measured = cost(lambda: counted.append(call()))
    return Ran(**vars(measured), clips=counted[0], busy=float(np.mean(busy)) / 100 if busy else None)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what the jobs say of their progress."""
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        yield


@contextlib.contextmanager
def gpu_busy(device: str) -> Iterator[list[float]]:
    """Percent of time in which the GPU computed, every BUSY_MS, as nvidia-smi says; empty where there is none."""
    seen: list[float] = []
    if not device.startswith("cuda"):
        yield seen
        return
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", "-i", identity, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        watcher = subprocess.Popen([*command, f"-lms={BUSY_MS}"], stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield seen
        return
    assert watcher.stdout is not None
    reader = threading.Thread(target=lambda: seen.extend(float(x) for x in watcher.stdout if x.strip().isdigit()))
    reader.start()
    try:
        yield seen
    finally:
        watcher.terminate()
        reader.join()
        watcher.wait()


def limits(folder: Path, device: str) -> dict[str, Cost]:
    """What no job can beat: decoding the corpus, writing and reading its 16 kHz FLAC, copying it to the GPU."""
    paths = sorted(folder.iterdir())
    with ThreadPoolExecutor(cores()) as pool:
        found = {"decode": cost(lambda: list(pool.map(soundfile.read, paths)))}
        clips = list(pool.map(at_rate, paths))
        written: list[bytes] = []
        found["encode FLAC"] = cost(lambda: written.extend(pool.map(lambda x: encode_flac(x, RATE), clips)))
        buffers = [io.BytesIO(data) for data in written]
        found["decode FLAC"] = cost(lambda: list(pool.map(soundfile.read, buffers)))
    if device.startswith("cuda"):
        pinned = torch.from_numpy(np.concatenate(clips)).pin_memory()
        copy(pinned, device)
        found["copy to the GPU"] = cost(lambda: copy(pinned, device))
    return found


def copy(pinned: torch.Tensor, device: str) -> None:
    pinned.to(device, non_blocking=True)
    torch.cuda.synchronize(device)


def at_rate(path: Path) -> np.ndarray:
    """float32 (n,) at RATE."""
    samples, rate = soundfile.read(path, dtype="float32")
    return resample(samples, rate, RATE)


def steps(folder: Path, device: str, work: Path) -> dict[str, Cost]:
    """Each step of the jobs alone, over all clips, as the jobs call it."""
    job = Job(folder, device, cores(), "full")
    with silence():
        config, _, found, _ = job.prepared(work)
    torch.set_num_threads(cores())
    with ThreadPoolExecutor(cores()) as pool:
        return Steps(Processor(config, found, device, pool), config, found, sorted(folder.iterdir())).measured()


class Steps:
    """The corpus in memory, in the batches of a job."""

    def __init__(self, processor: Processor, config: dict[str, Any], found: dict[str, Any], paths: list[Path]):
        self.processor, self.device, self.pool = processor, processor.device, processor.pool
        self.gate = Processor(config, found | {"enhancer": "spectral_gate"}, self.device, self.pool).enhancer
        self.paths = paths
        self.rows: list[tuple[dict[str, Any], Path]] = [({}, path) for path in paths]
        loaded = self.pool.map(processor.load, self.rows)
        self.clips = [clip.model for _, clip in loaded if isinstance(clip, Clip)]
        seconds = GPU_SECONDS if self.device.startswith("cuda") else CPU_SECONDS
        groups = length_batches([len(clip) for clip in self.clips], int(seconds * RATE), CHUNK)
        self.batches = [pad([self.clips[i] for i in group], self.device, CHUNK) for group in groups]
        self.natives = [pad(self._natives(group), self.device, CHUNK) for group in groups]
        self.heard = [processor.vad.probabilities(*batch) for batch in self.batches]
        self.costs: dict[str, Cost] = {}

    def _natives(self, group: list[int]) -> list[np.ndarray]:
        return list(self.pool.map(lambda i: resample(self.clips[i], RATE, ENHANCER_RATE), group))

    def measured(self) -> dict[str, Cost]:
        vad, enhancer, gate = self.processor.vad, self.processor.enhancer, self.gate
        assert enhancer is not None
        assert gate is not None
        self._threads("decode, resample", self._decoded, self.paths)
        self._threads("the same with hashes, clipping and fingerprint", self.processor.load, self.rows)
        self._batches("VAD", vad.probabilities, self.batches)
        self._threads("VAD: segments", self._segments, [row for heard in self.heard for row in heard.cpu().numpy()])
        clips = [(ClipBatch(*batch, heard),) for batch, heard in zip(self.batches, self.heard, strict=True)]
        self._batches("signal metrics of the input", measure_input_signal, clips)
        self._batches(f"{enhancer.name}, 48 kHz", enhancer, self.natives)
        self._batches(f"{gate.name}, 48 kHz", gate, self.natives)
        self._batches("guard: VAD of the result, evidence", self._evidence, clips)
        self._threads("loudness, true peak", loudness_and_peak, self.clips)
        self._threads("FLAC", lambda samples: encode_flac(samples, RATE), self.clips)
        for group in load_groups(MOS_GROUPS, self.device)[0]:
            self._batches(group.name, group.measure, clips)
        return self.costs

    def _threads(self, step: str, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        """A step that the job does clip by clip in threads."""
        self.costs[step] = cost(lambda: list(self.pool.map(function, items)))

    def _batches(self, step: str, function: Callable[..., Any], batches: Sequence[tuple[Any, ...]]) -> None:
        """A step that the job does in device batches; called once before, with the batch of the shortest clips."""

        def all_of(batches: Sequence[tuple[Any, ...]]) -> None:
            for batch in batches:
                function(*batch)
            if self.device.startswith("cuda"):
                torch.cuda.synchronize(self.device)

        all_of(batches[-1:])
        self.costs[step] = cost(lambda: all_of(batches))

    def _decoded(self, path: Path) -> np.ndarray:
        decoded = decode(path, self.processor.limits)
        return resample(decoded.samples, decoded.sampling_rate, RATE)

    def _segments(self, heard: np.ndarray) -> list[tuple[int, int]]:
        return speech_segments(heard, len(heard) * CHUNK, self.processor.vad_options)

    def _evidence(self, clips: ClipBatch) -> None:
        again = self.processor.vad.probabilities(clips.samples, clips.lengths)
        snr = np.zeros(len(clips.samples))
        measure_evidence(clips.samples, clips.samples, clips.lengths, clips.speech_probabilities, again, snr)


def loudness_and_peak(samples: np.ndarray) -> None:
    batch, lengths = pad([samples], "cpu")
    integrated_loudness(batch, lengths, RATE)
    true_peak_dbtp(batch, lengths, RATE)


# What of the job `full` is not its models


@dataclass
class Calls:
    """Calls of one model in a job: when each began and ended, and the first few, to be repeated."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    kept: list[Callable[[], Any]] = field(default_factory=list)

    def alone(self, device: str) -> float:
        """Seconds that all calls take where nothing runs beside them, by repeating those kept."""
        begin = time.perf_counter()
        with torch.inference_mode(), exact_convolutions():
            for call in self.kept:
                call()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / len(self.kept) * len(self.spans)


def watch(owner: type, method: str, name: Callable[[Any], str], seen: dict[str, Calls]) -> None:
    """Replace a model's method by one that notes what it takes. name: of the model, by the method's last argument."""
    original = getattr(owner, method)

    def watched(self: Any, *arguments: Any) -> Any:
        calls = seen.setdefault(name(arguments[-1]), Calls())
        begin = time.perf_counter()
        result = original(self, *arguments)
        calls.spans.append((begin, time.perf_counter()))
        if len(calls.kept) < REPLAYED:
            calls.kept.append(lambda: original(self, *arguments))
        return result

    setattr(owner, method, watched)


def watch_models(device: str) -> dict[str, Calls]:
    """The networks of `full` from here on; on a CPU those of DNSMOS are onnxruntime's, on a GPU torch's."""
    import onnxruntime
    from distillmos.sqa import ConvTransformerSQAModel

    seen: dict[str, Calls] = {}
    watch(SileroVad, "probabilities", lambda _: "Silero VAD", seen)
    watch(ConvTransformerSQAModel, "forward", lambda _: "Distill-MOS", seen)
    if device.startswith("cuda"):
        from speechmill.metrics.dnsmos_networks import P808Network, P835Network

        watch(P808Network, "forward", lambda _: "P.808", seen)
        watch(P835Network, "forward", lambda _: "P.835", seen)
    else:
        watch(onnxruntime.InferenceSession, "run", lambda fed: dnsmos_name(fed["input_1"]), seen)
    return seen


def dnsmos_name(fed: np.ndarray) -> str:
    """P.808 takes log-mel frames, P.835 samples."""
    return "P.808" if fed.ndim == 3 else "P.835"


def share_of_models(job: Job, work: Path) -> dict[str, Any]:
    """A job `full` with its models' calls noted."""
    seen = watch_models(job.device)
    measured = scored(job, work)
    models = {
        name: {
            "calls": len(calls.spans),
            "in_calls": covered(calls.spans),
            "alone": calls.alone(job.device) if job.device.startswith("cuda") else None,
        }
        for name, calls in seen.items()
    }
    in_calls = covered([span for calls in seen.values() for span in calls.spans])
    return {"wall": measured.seconds, "in_calls": in_calls, "models": models}


def covered(spans: list[tuple[float, float]]) -> float:
    """Seconds in which at least one call was at work: several threads call DNSMOS at the same time."""
    total, end = 0.0, 0.0
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


# Silero VAD


class Recorded:
    """The package's model that keeps its probabilities."""

    def __init__(self, model: Any):
        self.model = model
        self.heard: list[float] = []

    def __call__(self, chunk: torch.Tensor, rate: int) -> torch.Tensor:
        probability = self.model(chunk, rate)
        self.heard.append(float(probability))
        return probability

    def reset_states(self) -> None:
        self.model.reset_states()


def vad_on_one_core(folder: Path) -> dict[str, Any]:
    """Ours in batches, the package's clip by clip, in turns, on one core; seconds are CPU seconds."""
    import silero_vad

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    clips = [at_rate(path) for path in sorted(folder.iterdir())]
    ours, theirs, options = SileroVad("cpu"), Recorded(silero_vad.load_silero_vad()), VadOptions()
    silero_vad.get_speech_timestamps(torch.from_numpy(clips[0]), theirs)
    ours.probabilities(*pad(clips[:2], "cpu", CHUNK))
    found = {"ours": 0.0, "package": 0.0, "equal": 0, "difference": 0.0}
    for group in length_batches([len(clip) for clip in clips], int(CPU_SECONDS * RATE), CHUNK):
        begin = time.process_time()
        heard = ours.probabilities(*pad([clips[i] for i in group], "cpu", CHUNK)).numpy()
        spoken = [
            speech_segments(row[: -(-len(clips[i]) // CHUNK)], len(clips[i]), options)
            for i, row in zip(group, heard, strict=True)
        ]
        found["ours"] += time.process_time() - begin
        for i, row, segments in zip(group, heard, spoken, strict=True):
            theirs.heard.clear()
            begin = time.process_time()
            expected = silero_vad.get_speech_timestamps(torch.from_numpy(clips[i]), theirs)
            found["package"] += time.process_time() - begin
            found["equal"] += segments == [(one["start"], one["end"]) for one in expected]
            difference = np.abs(row[: len(theirs.heard)] - np.array(theirs.heard)).max()
            found["difference"] = max(found["difference"], float(difference))
    return found | {"clips": len(clips), "seconds": sum(map(len, clips)) / RATE}
