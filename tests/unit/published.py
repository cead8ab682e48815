"""A run of made-up batches, published to a folder: what the tests of publishing, card, removal and export begin with."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from speechmill.publish.survey import Batch
from speechmill.publish.to_folder import publish_folder
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate, _hash
from speechmill.storage.files import sha256_file
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import ENHANCED, RANKING, with_models

RATE = 16000
METRICS = ["snr_db", "dnsmos_p808", "input_snr_db"]
EVIL = (
    'เสียง\t| <script>alert(1)</script> [x](javascript:alert(1)) `rm` ![i](http://e.vil/i)\n---\n# Owned "q" \u202e *b*'
)


def flac(seed: int, seconds: float) -> bytes:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def make_profile(threshold: float) -> FrozenProfile:
    body = {
        "name": "asr",
        "version": 1,
        "description": EVIL,
        "threshold": threshold,
        "min_coverage": 0.8,
        "gates": (Gate("snr_db", 0.0, None, EVIL),),
        "criteria": (
            Criterion("snr_db", "noise", 0.0, 40.0, "benefit", 0.7),
            Criterion("dnsmos_p808", "quality", 1.0, 5.0, "target", 0.3, (3.0, 5.0)),
        ),
        "dropped_criteria": (),
        "dropped_gates": (),
    }
    return FrozenProfile(**body, sha256=_hash(FrozenProfile(**body, sha256="")))


class Run:
    """Results of a run: batches of clips of which every fourth is not accepted."""

    def __init__(self, directory: Path, clips: int = 60, batches: int = 3, row_group: int = 7, threshold: float = 0.2):
        self.directory = directory
        self.target = directory / "published"
        self.sentinel = directory / "UPLOADED.json"
        self.states: Counter[str] = Counter()
        self.batches: list[tuple[str, Path, Path]] = []
        self.truth: dict[str, dict] = {}
        self.source = {
            "kind": "folder",
            "revision": "sha256:abc",
            "license": "CC-BY-SA-3.0",
            "attribution": EVIL,
            "files": [],
        }
        self.config = {
            "dataset": "demo",
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
                "kind": "folder",
                "shuffle": None,
                "shard_bytes": 35_000,  # of speech; of the noise here half as much again
                "seed": 0,
                "pretty_name": EVIL,
                "task_categories": ["automatic-speech-recognition"],
            },
        }
        self.profile = make_profile(threshold).to_json()
        for b in range(batches):
            self._batch(f"b{b}", range(b * clips // batches, (b + 1) * clips // batches), threshold, row_group)
        self.summary = {
            "clips": {"input": clips, **{s: self.states[s] for s in ("accepted", "rejected", "errored", "duplicate")}},
            "hours": {"input": 1.5, "accepted": 0.9},
            "rejected_by": {"closeness": self.states["rejected"]},
            "errored_by": {EVIL: self.states["errored"]},
            "batches": len(self.batches),
            "failed_batches": {},
            "metrics": {m: {"p5": 1.0, "p50": 2.5, "p95": None} for m in METRICS},
            "profile_sha256": "f" * 64,
            "versions": {"speechmill": "0.1.0", "numpy": "2"},
            "timing": {"seconds": os.getpid()},
        }

    def _batch(self, name: str, numbers: range, threshold: float, row_group: int) -> None:
        enhanced, ranking = [], []
        for n in numbers:
            clip_id = hashlib.sha256(str(n).encode()).hexdigest()[:24]
            closeness = ((n * 37) % 100) / 100
            state = {3: "errored", 7: "duplicate"}.get(n % 8, "accepted" if closeness >= threshold else "rejected")
            self.states[state] += 1
            seconds = 0.1 + (n % 5) / 10
            row = {
                "id": clip_id,
                "source": "demo",
                "source_id": f"clip {n}",
                "source_split": ["train", "dev", "test", None][n % 4] if name == "b0" else None,
                "source_file": f"ก/{n}.wav",
                "text": "สวัสดีครับ ทดสอบน้ำ",
                "language": ["th-TH", "en", "und", EVIL][n // 2 % 4],
                "speaker_id": None,
                "license": ["CC-BY-SA-3.0", "CC0-1.0"][n % 2],
                "duration": seconds,
                "variant": "enhanced",
                "variant_reason": f"noisy {n}",
                "input_duration": seconds + 0.5,
            }
            scored = {"state": state, "closeness": closeness, "batch": name, "failed_gates": [], **row}
            if state == "rejected":
                scored |= {"criterion": "closeness", "value": closeness, "threshold": threshold}
            elif state == "errored":
                scored |= {"error_class": EVIL, "closeness": None}
            ranking.append({**scored, "snr_db": float(n), "dnsmos_p808": 3.5, "input_snr_db": None})
            if state == "errored":
                continue
            audio = {"bytes": flac(n, seconds), "path": "../../evil.flac"}
            extra = {"gain_db": -1.5, "source_revision": "abc", "code_version": "0.1.0", "sampling_rate": RATE}
            enhanced.append({**row, **extra, "audio": audio, "input_sha256": "0" * 64})
            if state == "accepted":
                self.truth[clip_id] = {
                    "bytes": audio["bytes"],
                    "n": n,
                    "batch": name,
                    "closeness": closeness,
                    "seconds": seconds,
                }
        schema = with_models(pa.schema([*RANKING, *((m, pa.float64()) for m in METRICS)]), {"speechmos/x.onnx": name})
        paths = self.directory / f"enhanced-{name}.parquet", self.directory / f"ranking-{name}.parquet"
        uncompressed = ["audio.bytes", "original.bytes"]
        write_table(
            pa.Table.from_pylist(enhanced, schema=with_models(ENHANCED, {"silero-vad/y.jit": "0" * 64})),
            paths[0],
            row_group_size=row_group,
            uncompressed=uncompressed,
        )
        write_table(pa.Table.from_pylist(ranking, schema=schema), paths[1])
        self.batches.append((name, *paths))

    def publish(self, **overrides) -> dict:
        arguments = {
            "batches": self.batches,
            "profile": self.profile,
            "summary": self.summary,
            "source": self.source,
            "config": self.config,
            "target": self.target,
            "sentinel": self.sentinel,
        }
        arguments |= overrides
        arguments["batches"] = [Batch(name, ranking, (enhanced,)) for name, enhanced, ranking in arguments["batches"]]
        return publish_folder(**arguments)

    def published(self) -> pa.Table:
        return pa.concat_tables(pq.read_table(p) for p in sorted((self.target / "data").glob("*-of-*.parquet")))

    def hashes(self) -> dict[str, str]:
        return hashes_of(self.target)


def hashes_of(target: Path) -> dict[str, str]:
    files = sorted(p for p in target.rglob("*") if p.is_file())
    return {p.relative_to(target).as_posix(): sha256_file(p) for p in files}
