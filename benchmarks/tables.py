"""Rank, duplicates, advice and report over synthetic scores: `python benchmarks/tables.py --clips 10000000`.

Each part runs in a process of its own, as in the workflow, and its peak memory is its own. Ranking is a map over
batches: the workflow starts a process per batch, here one process ranks them all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechmill.ledger import check_batch, find_duplicates
from speechmill.metrics import all_metrics
from speechmill.ranking.advice import advise
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.profile import FrozenProfile, freeze, load_profile
from speechmill.report.page import make_report
from speechmill.shards import LEDGER, MANIFEST, write_table

ROOT = Path(__file__).resolve().parents[1]
BATCH = 10_000
SHARES = {"passed": 0.93, "rejected": 0.05, "errored": 0.02}


def profile() -> FrozenProfile:
    folder = ROOT / "config" / "ranking"
    return freeze(load_profile(folder / "asr.yaml", folder, all_metrics()), sorted(all_metrics()), None)


def make_batch(folder: Path, number: int, metrics: dict[str, tuple[float, float]]) -> None:
    """Manifest, ledger and scores of one batch: every thousandth clip repeats one of the first batch."""
    random = np.random.default_rng(number)
    ids = [f"{value:012x}{number * BATCH + row:012x}" for row, value in enumerate(random.integers(0, 2**48, BATCH))]
    hashes = [random.bytes(32).hex() for _ in range(BATCH)]
    if number:
        first = np.random.default_rng(0)
        first.integers(0, 2**48, BATCH)
        hashes[::1000] = [first.bytes(32).hex() for _ in range(BATCH)][::1000]
    states = random.choice(list(SHARES), BATCH, p=list(SHARES.values()))
    seconds = random.uniform(1, 15, BATCH)
    identity = {
        "id": ids,
        "source": ["synthetic"] * BATCH,
        "source_file": [f"{number:05d}.parquet"] * BATCH,
        "source_row": np.arange(BATCH),
    }
    described = identity | {
        "text": ["คำพูดของผู้พูด"] * BATCH,
        "speaker_id": [f"s{v}" for v in random.integers(0, 999, BATCH)],
    }
    judged = {
        "state": states,
        "criterion": [("speech_s" if state == "rejected" else None) for state in states],
        "value": [(0.1 if state == "rejected" else None) for state in states],
        "threshold": [(0.25 if state == "rejected" else None) for state in states],
        "error_class": [("truncated" if state == "errored" else None) for state in states],
        "message": [(None if state == "passed" else "as it was found") for state in states],
        "input_duration": seconds,
        "input_sha256": hashes,
        "pcm_sha256": [(value if state == "passed" else None) for value, state in zip(hashes, states, strict=True)],
    }
    passed = states == "passed"
    measured = {
        name: np.round(
            np.clip(random.normal((low + high) / 2, (high - low) / 3, int(passed.sum())), low - 5, high + 5), 4
        )
        for name, (low, high) in metrics.items()
    }
    scores = {
        "id": [value for value, keep in zip(ids, passed, strict=True) if keep],
        "error_class": pa.nulls(int(passed.sum()), pa.string()),
        "message": pa.nulls(int(passed.sum()), pa.string()),
        "duration": seconds[passed],
        "variant": random.choice(["original", "enhanced"], int(passed.sum())),
    }
    name = f"b-{number:06d}.parquet"
    write_table(fill(described, MANIFEST), folder / "manifest" / name)
    write_table(fill(identity | judged, LEDGER), folder / "ledger" / name)
    write_table(pa.table(scores | measured), folder / "scores" / name)


def fill(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(BATCH, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def rank(folder: Path, frozen: FrozenProfile) -> None:
    duplicates = pq.read_table(folder / "duplicates.parquet")
    for path in sorted((folder / "ledger").iterdir()):
        ledger, clips = pq.read_table(path), pq.read_table(folder / "manifest" / path.name)
        ranking = rank_batch(ledger, clips, pq.read_table(folder / "scores" / path.name), duplicates, frozen, path.stem)
        check_batch(clips["id"], ledger, ranking, path.stem)
        write_table(ranking, folder / "ranking" / path.name)


def report(folder: Path, frozen: FrozenProfile, advice: dict[str, Any]) -> None:
    config = {"dataset": "synthetic", "report": {"examples": 0}, "enhance": {}, "score": {}, "rank": {}}
    rankings = sorted((folder / "ranking").iterdir())
    out = [folder / name for name in ("report.html", "summary.json", "all.parquet")]
    make_report(rankings, [], frozen, advice, {}, config, {}, [], {}, *out)


def measured(what: str, function: Callable[..., Any], *arguments: Any) -> float:
    """Run in a process of its own and print seconds and peak memory; returns the seconds."""

    def inside(answers: Any) -> None:
        begin = time.monotonic()
        function(*arguments)
        answers.put((time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=inside, args=(answers,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{what} failed")
    seconds, megabytes = answers.get()
    print(f"{what}: {seconds:.1f} s, {megabytes:.0f} MB", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000, help="(default: 1000000)")
    clips = parser.parse_args().clips
    frozen = profile()
    bounds = {c.metric: (min(c.low, c.high), max(c.low, c.high)) for c in frozen.criteria}
    bounds |= {gate.metric: (0.0, 1.0) for gate in frozen.gates if gate.metric not in (*bounds, "duration")}
    folder = Path(tempfile.mkdtemp(prefix="speechmill-tables-"))
    try:
        for name in ("manifest", "ledger", "scores", "ranking"):
            (folder / name).mkdir()
        with multiprocessing.get_context("fork").Pool() as pool:
            pool.starmap(make_batch, [(folder, number, bounds) for number in range(clips // BATCH)])
        size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        print(f"{clips:,} clips in {clips // BATCH:,} batches, {size / 1e9:.1f} GB")
        ledgers = sorted((folder / "ledger").iterdir())
        rankings = folder / "ranking"
        total = measured("duplicates", lambda: write_table(find_duplicates(ledgers), folder / "duplicates.parquet"))
        total += measured("rank", rank, folder, frozen)
        total += measured("advice", lambda: advise(sorted(rankings.iterdir()), frozen))
        total += measured("report", report, folder, frozen, advise(sorted(rankings.iterdir())[:1], frozen))
        print(f"together: {total:.1f} s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
