"""What publishing to the Hub sends, and how long it takes: `python benchmarks/publishing.py [--clips 2000] [--json FILE]`.

The Hub is that of the tests, on loopback, with the real client: in LFS mode, and in Xet mode with hf_xet's own store in
a folder. Beside it `HfApi.upload_folder` of the same finished files, into a repository and a store of its own. Each step
is a process of its own; the client's caches stay from step to step, or with --other-machines are empty at each.
Status 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
from speech_corpus import machine

from speechmill.metrics import ENHANCE_METRICS, GROUP_METRICS, SETS
from speechmill.publish.shards import plan_files
from speechmill.publish.survey import Batch, origin_of, survey
from speechmill.publish.to_folder import HashingSink
from speechmill.publish.to_hub import publish_hub
from speechmill.storage.files import read_json
from speechmill.tables.parquet_io import table_writer, write_table
from speechmill.tables.schemas import ENHANCED, RANKING, with_models

ROOT = Path(__file__).resolve().parents[1]
SPEECH = ROOT / "demo" / "speech"
RATE = 16_000
BATCHES = 4  # of the corpus; one more where it has grown
SHARD_BYTES = 40_000_000
UPLOADS = 2  # at the same time
LOOSE, STRICT = 0.2, 0.208  # thresholds: of closeness spread evenly, 1 % of what the first accepts is below the second
UNCHANGED, CHANGED_SHARE = 0, 0.03  # targets: bytes; share of the first upload's bytes, through Xet
METRICS = sorted({*ENHANCE_METRICS, *(m.name for group in SETS["light"] for m in GROUP_METRICS[group])})
MB = 1_000_000
CONFIG: dict[str, Any] = {
    "dataset": "prompts",
    "keep_enhanced": True,
    "source": {"license": "CC-BY-SA-3.0", "terms": None},
    "enhance": {
        "sampling_rate": RATE,
        "enhancer": "rnnoise",
        "level": "moderate",
        "guard": True,
        "trim": True,
        "loudness_lufs": -23,
        "true_peak_dbtp": -1,
    },
    "publish": {
        "kind": "hub",
        "repo": "lab/speechmill",
        "visibility": "private",
        "uploads": UPLOADS,
        "patience_minutes": 1,
        "shuffle": None,
        "shard_bytes": SHARD_BYTES,
        "seed": 0,
        "pretty_name": None,
        "task_categories": ["automatic-speech-recognition"],
    },
}


# A finished run


def name_of(number: int) -> str:
    return f"prompts-{number:05d}"


def make_batch(folder: Path, number: int, clips: int) -> None:
    """Enhanced shard of one batch, and its ranking by each threshold: prompts in a row, 2 to 12 s, each a bit different."""
    random = np.random.default_rng(number)
    prompts = [line.split("\t") for line in (SPEECH / "prompts.tsv").read_text().splitlines()[1:]]
    spoken = [(soundfile.read(SPEECH / file, dtype="float32")[0], text) for file, _, text in prompts]
    languages = np.array([language for _, language, _ in prompts])
    rankings: list[dict[str, Any]] = []
    paths = folder / "enhanced" / f"{name_of(number)}.parquet", f"{name_of(number)}.parquet"
    schema = with_models(ENHANCED, {"silero-vad/silero_vad.jit": "0" * 64, "rnnoise": "1" * 64})
    with table_writer(schema, paths[0], row_group_size=100, uncompressed=["audio.bytes", "original.bytes"]) as writer:
        for row in range(clips):
            language = random.choice(languages)
            chosen = random.choice(np.flatnonzero(languages == language), random.integers(1, 6), replace=False)
            samples = np.concatenate([spoken[i][0] for i in chosen])[: 12 * RATE]
            gain = random.uniform(-6, 0)
            samples = samples * np.float32(10 ** (gain / 20)) + random.normal(0, 2e-4, len(samples)).astype(np.float32)
            data = io.BytesIO()
            soundfile.write(data, samples, RATE, format="FLAC", subtype="PCM_16")
            digest = hashlib.sha256(data.getvalue()).hexdigest()
            clean = bool(random.random() < 0.5)
            clip = {
                "id": digest[:24],
                "source": "prompts",
                "source_id": f"{language}/{number:05d}/clip_{row:06d}.wav",
                "source_file": f"{language}/{number:05d}/clip_{row:06d}.wav",
                "text": " ".join(spoken[i][1] for i in chosen),
                "language": language,
                "speaker_id": f"s{random.integers(0, 999)}",
                "license": "CC-BY-SA-3.0",
                "duration": len(samples) / RATE,
                "input_duration": len(samples) / RATE + 0.4,
                "variant": "original" if clean else "enhanced",
                "variant_reason": f"{'clean enough: ' * clean}input_snr_db {random.normal(18, 9):.1f}",
            }
            of_audio = {
                "audio": {"bytes": data.getvalue(), "path": f"{digest[:24]}.flac"},
                "text_norm": clip["text"],
                "sampling_rate": RATE,
                "trim_start_s": round(random.uniform(0, 0.3), 3),
                "trim_end_s": round(random.uniform(0, 0.3), 3),
                "gain_db": gain,
                "input_sha256": random.bytes(32).hex(),
                "pcm_sha256": digest,
                "source_revision": "sha256:" + "2" * 64,
                "enhancer": "rnnoise 0.2 moderate",
                "enhancer_sha256": "3" * 64,
                "config_sha256": "4" * 64,
                "code_version": "0.1.0",
            }
            writer.write({field.name: (clip | of_audio).get(field.name) for field in ENHANCED})
            scores = dict(zip(METRICS, random.normal(20, 5, len(METRICS)).tolist(), strict=True))
            rankings.append(clip | scores | {"batch": name_of(number), "closeness": random.random(), "coverage": 1.0})
    of_scores = with_models(pa.schema([*RANKING, *((m, pa.float64()) for m in METRICS)]), {"dnsmos": "5" * 64})
    for threshold in (LOOSE, STRICT):
        rows = [
            ranked | {"state": "accepted" if ranked["closeness"] >= threshold else "rejected", "failed_gates": []}
            for ranked in rankings
        ]
        write_table(pa.Table.from_pylist(rows, schema=of_scores), folder / f"ranking-{threshold}" / paths[1])


@dataclass(frozen=True)
class Version:
    """A run as it is published: its first so many batches, by a threshold."""

    folder: Path
    batches: int
    threshold: float

    def tables(self) -> list[Batch]:
        found = []
        for name in map(name_of, range(self.batches)):
            enhanced = self.folder / "enhanced" / f"{name}.parquet"
            ranking = self.folder / f"ranking-{self.threshold}" / enhanced.name
            found.append(Batch(name, ranking, (enhanced,), origin_of(enhanced), "scores"))
        return found

    @property
    def profile(self) -> dict[str, Any]:
        criteria = {name: {"weight": 0.5, "low": 0, "high": 40} for name in METRICS[:2]}
        return {"name": "asr", "threshold": self.threshold, "criteria": criteria, "gates": []}

    def accepted(self) -> int:
        return self._states()["accepted"]

    def _states(self) -> Counter[str]:
        tables = [pq.read_table(batch.ranking, columns=["state"]) for batch in self.tables()]
        return Counter(state for table in tables for state in table["state"].to_pylist())

    def summary(self) -> dict[str, Any]:
        states = self._states()
        clips = {state: states[state] for state in ("accepted", "rejected", "errored", "duplicate")}
        return {
            "clips": {"input": states.total(), **clips},
            "hours": {"input": 1.0, "accepted": 1.0},
            "rejected_by": {"closeness": states["rejected"]},
            "errored_by": {},
            "batches": self.batches,
            "failed_batches": {},
            "metrics": {name: {"p5": 10.0, "p50": 20.0, "p95": 30.0} for name in METRICS},
            "profile_sha256": "f" * 64,
            "versions": {},
            "timing": {},
        }


# What is measured, each in a process of its own; their seconds do not count its start


def build(version: Version, target: Path) -> float:
    """Every file as it is sent, into a folder, as many at a time as are sent: what is left where sending costs nothing."""
    begin = time.perf_counter()
    plan = plan_files(survey(version.tables()), version.profile, CONFIG)

    def one(planned: Any) -> None:
        file = target / planned.path
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "wb") as handle:
            sink = HashingSink(handle)
            planned.build(sink)
            sink.hexdigest()

    with ThreadPoolExecutor(UPLOADS) as pool:
        list(pool.map(one, plan))
    return time.perf_counter() - begin


def speechmill(version: Version, published: Path) -> float:
    source = {"kind": "folder", "revision": "sha256:abc", "license": "CC-BY-SA-3.0", "attribution": "", "files": []}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        begin = time.perf_counter()
        tables, summary, sentinel = version.tables(), version.summary(), published / "UPLOADED.json"
        publish_hub(tables, version.profile, summary, source, CONFIG, published, sentinel)
        return time.perf_counter() - begin


def upload_folder(finished: Path, repository: str) -> float:
    """What one would write without speechmill, once the files are there."""
    from huggingface_hub import HfApi

    begin = time.perf_counter()
    api = HfApi()
    api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
    gone = ["data/*.parquet", "scores/*.parquet"]  # those that the folder does not have
    api.upload_folder(folder_path=finished, repo_id=repository, repo_type="dataset", delete_patterns=gone)
    return time.perf_counter() - begin


def apart(call: Callable[..., float], *arguments: Any) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


@dataclass(frozen=True)
class Found:
    """Bytes that reached the Hub, and seconds."""

    sent: int
    seconds: float


class Way:
    """One way to publish, in one mode: with caches of its own, and a store of its own in Xet mode."""

    def __init__(self, hub: Any, folder: Path, xet: bool, fresh: bool):
        self.hub, self.home, self.xet, self.fresh = hub, folder / "home", xet, fresh
        self.cas = folder / "cas" if xet else None

    def measure(self, call: Callable[..., float], *arguments: Any) -> Found:
        if self.fresh:
            shutil.rmtree(self.home, ignore_errors=True)
        os.environ |= {"HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": str(int(not self.xet))}
        self.hub.cas = self.cas
        before = self._bytes()
        seconds = apart(call, *arguments)
        return Found(self._bytes() - before, seconds)

    def _bytes(self) -> int:
        """Of large files: received, or in the store's xorbs."""
        if not self.cas:
            return self.hub.received
        return sum(path.stat().st_size for path in self.cas.rglob("*") if "xorb" in str(path) and path.is_file())


def measure(
    versions: dict[str, Version], folder: Path, xet: bool, fresh: bool, hub: Any
) -> dict[str, dict[str, Found]]:
    """way -> step -> what it took."""
    ours, plain = (Way(hub, folder / name, xet, fresh) for name in ("speechmill", "upload_folder"))
    published = folder / "published"
    found: dict[str, dict[str, Found]] = {"speechmill": {}, "upload_folder": {}}
    for step in ("first", "again", "lost", "changed", "grown"):
        version = versions[step if step in versions else "first"]
        if step == "lost":
            for record in [*published.glob("data/*.json"), *published.glob("scores/*.json")]:
                record.unlink()
        found["speechmill"][step] = ours.measure(speechmill, version, published)
        if step != "lost":
            finished = folder.parent / ("finished-" + (step if step in versions else "first"))
            found["upload_folder"][step] = plain.measure(upload_folder, finished, "lab/plain")
            check_same(hub, read_json(published / "UPLOADED.json"))
    return found


def check_same(hub: Any, sentinel: dict[str, Any]) -> None:
    """Both repositories hold the same files: otherwise nothing is compared."""
    from tests.hub.server import entry

    plain = hub.repos["lab/plain"]
    there = {
        path: entry(path, data)["lfs"]["oid"]
        for path, data in plain.commits[plain.main].items()
        if path.endswith(".parquet")
    }
    wanted = {file["path"]: file["sha256"] for file in sentinel["files"] if file["path"].endswith(".parquet")}
    if there != wanted:
        raise SystemExit(f"upload_folder left other files than speechmill: {sorted(there.items() ^ wanted.items())}")


# What is shown

STEPS = {
    "first": "first upload",
    "again": "again, nothing changed",
    "lost": "again, records lost",
    "changed": "1 % of the clips fewer",
    "grown": "one batch more",
}


def show(measured: dict[str, Any], new_bytes: int) -> list[str]:
    """Prints the table; what is missed."""
    missed = []
    print("| | " + " | ".join(f"{way}, {mode}" for mode in ("LFS", "Xet") for way in measured[mode]) + " | target |")
    print("|---|---|---|---|---|---|")
    for step, what in STEPS.items():
        cells, target = [], ""
        for mode in ("LFS", "Xet"):
            for way, steps in measured[mode].items():
                if step not in steps:
                    cells.append("")
                    continue
                sent, seconds = steps[step].sent, steps[step].seconds
                whole = {"changed": steps["first"].sent, "grown": new_bytes}.get(step)
                share = f", {100 * sent / whole:.1f} %" if whole else ""
                cells.append(f"{sent / MB:.1f} MB{share}, {seconds:.1f} s")
                if way != "speechmill":
                    continue
                if step in ("again", "lost"):
                    target = "0 bytes"
                    if sent > UNCHANGED:
                        missed.append(f"{what}, {mode}: {sent} bytes")
                if step == "changed" and mode == "Xet":
                    target = f"Xet {100 * CHANGED_SHARE:g} %"
                    if sent > CHANGED_SHARE * steps["first"].sent:
                        missed.append(f"{what}, {mode}: {100 * sent / steps['first'].sent:.2f} % of the first upload")
        print(f"| {what} | {' | '.join(cells)} | {target} |")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000, help=f"in {BATCHES} batches (default: 2000)")
    parser.add_argument("--other-machines", action="store_true", help="empty the client's caches before each step")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where the temporary files go: 10 times the audio")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    from tests.hub import server, writes

    server.entry = functools.cache(server.entry)  # or it would hash every file at every look at the tree
    measured: dict[str, dict[str, dict[str, Found]]] = {}
    with tempfile.TemporaryDirectory(prefix="speechmill-publishing-", dir=options.directory) as name:
        folder = Path(name)
        with multiprocessing.get_context("spawn").Pool() as pool:
            jobs = [(folder, number, options.clips // BATCHES) for number in range(BATCHES + 1)]
            pool.starmap(make_batch, jobs, chunksize=1)
        first, changed = Version(folder, BATCHES, LOOSE), Version(folder, BATCHES, STRICT)
        versions = {"first": first, "changed": changed, "grown": Version(folder, BATCHES + 1, STRICT)}
        built = {step: apart(build, version, folder / f"finished-{step}") for step, version in versions.items()}
        clips = first.accepted()
        dropped = 1 - changed.accepted() / clips
        files = list((folder / "finished-first").rglob("*.parquet"))
        size = sum(file.stat().st_size for file in files)
        new = sum(file.stat().st_size for file in (folder / "finished-grown").rglob(f"*-{name_of(BATCHES)}-*"))
        audio = sum(
            pc.sum(pq.read_table(f, columns=["duration"])["duration"]).as_py() for f in files if "data" in f.parts
        )
        print(
            f"{clips} clips in {BATCHES} batches, {audio / 3600:.1f} hours, {size / MB:.1f} MB in {len(files)} "
            f"files; building and hashing them without sending {built['first']:.1f} s; the change drops "
            f"{100 * dropped:.2f} % of the clips (build {built['changed']:.1f} s), the new batch is {new / MB:.1f} MB",
            flush=True,
        )
        os.environ |= {"HF_TOKEN": writes.TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        for mode in ("LFS", "Xet"):
            hub = server.Hub()
            hub.page = 1000
            os.environ["HF_ENDPOINT"] = hub.url
            (folder / mode).mkdir()
            measured[mode] = measure(versions, folder / mode, mode == "Xet", options.other_machines, hub)
            hub.close()
    missed = show(measured, new)
    if options.json:
        content = {
            "machine": machine("pyarrow", "huggingface_hub", "hf_xet"),
            "clips": clips,
            "bytes": size,
            "files": len(files),
            "dropped": dropped,
            "new_batch_bytes": new,
            "build_seconds": built,
            "measured": {
                mode: {way: {step: vars(f) for step, f in steps.items()} for way, steps in ways.items()}
                for mode, ways in measured.items()
            },
            "missed": missed,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    for what in missed:
        print(f"MISSED: {what}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
