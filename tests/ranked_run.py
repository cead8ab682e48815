"""A run as the workflow leaves it after ranking, with thousands of made-up clips: one batch of them can be heard.

Ledgers and scores are drawn from a seed; what follows from them (ranking, advice, report) is made by speechmill itself.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from speechmill.audio.encode import encode_flac
from speechmill.metrics import all_metrics
from speechmill.ranking.advice import advise
from speechmill.ranking.decide import rank_batch
from speechmill.ranking.profile import FrozenProfile, freeze, load_profile
from speechmill.report.page import make_report
from speechmill.storage.files import write_json
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import ENHANCED, LEDGER

ROOT = Path(__file__).parents[1]
PROFILES = ROOT / "config" / "ranking"
CONFIG: dict[str, Any] = {
    "dataset": "made-up",
    "outdir": "results",
    "report": {"examples": 4, "rejected_examples": 2, "audit": 12},
    "source": {"kind": "folder", "path": "/data/made-up"},
}
# metric: at the worst, at the best clip, and how much it scatters beside
MEASURED = {
    "input_snr_db": (-4, 38, 4.0),
    "snr_db": (4, 42, 4.0),
    "denoise_removed_db": (11, 0, 1.5),
    "dnsmos_p808": (2.0, 4.0, 0.25),
    "input_reverb_decay_db_s": (90, 480, 60.0),
    "speech_ratio": (0.3, 0.95, 0.12),
    "longest_pause_s": (3.0, 0.2, 0.4),
    "input_clip_ratio": (4e-3, 0.0, 4e-4),
    "input_bandwidth_hz": (3000, 8000, 800.0),
    "input_loudness_lufs": (-42, -20, 4.0),
    "loudness_lufs": (-23, -23, 0.2),
}
NON_NEGATIVE = {"denoise_removed_db", "longest_pause_s", "input_clip_ratio", "speech_ratio"}


class RankedRun:
    """`clips` made-up clips in `directory`/results/made-up, of which the first `heard` have audio in their shard."""

    def __init__(
        self,
        directory: Path,
        clips: int = 6000,
        heard: int = 60,
        seed: int = 7,
        text: str = "",
        threshold: float = 0.6,
        weights: dict[str, float] | None = None,
    ) -> None:
        self.folder = directory / CONFIG["outdir"] / CONFIG["dataset"]
        self.text = text
        random = np.random.default_rng(seed)
        self.batches = {"b0": range(heard), "b1": range(heard, clips)}
        self.ledgers: dict[str, pa.Table] = {}
        self.scores: dict[str, pa.Table] = {}
        for batch, members in self.batches.items():
            rows = [self._clip(n, float(random.beta(2.2, 1.6)), random) for n in members]
            self.ledgers[batch] = pa.Table.from_pylist([ledger for ledger, _ in rows], schema=LEDGER)
            scores = [score for _, score in rows if score]
            self.scores[batch] = pa.Table.from_pylist(scores, schema=_scores_schema())
            write_table(self.ledgers[batch], self.folder / "ledger" / f"{batch}.enhance.parquet")
            write_table(self.scores[batch], self.folder / "scores" / f"{batch}.parquet")
        passed = [
            row["id"] for ledger in self.ledgers.values() for row in ledger.to_pylist() if row["state"] == "passed"
        ]
        pairs = {"id": passed[3:600:40], "duplicate_of": passed[2:599:40]}
        self.duplicates = pa.table(pairs, schema=pa.schema([("id", pa.string()), ("duplicate_of", pa.string())]))
        self._write_audio()
        write_json(self.folder / "preflight.json", {"metrics": sorted(MEASURED)})
        self.setting = {"profile": "asr", "threshold": threshold, "weights": weights or {}}
        self.profile = self.frozen(threshold, weights)
        self.rank(self.profile)

    def frozen(self, threshold: float | None, weights: dict[str, float] | None = None) -> FrozenProfile:
        """The profile `asr` fitted to these metrics."""
        written = load_profile("asr", PROFILES, all_metrics())
        return freeze(written, MEASURED, threshold, weights)

    def rank(self, profile: FrozenProfile) -> dict[str, pa.Table]:
        """Rank all batches by a profile, as the workflow does, and write what it writes."""
        found = {}
        for batch, ledger in self.ledgers.items():
            found[batch] = rank_batch(ledger, ledger, self.scores[batch], self.duplicates, profile, batch)
            write_table(found[batch], self.ranking(batch))
        write_json(self.folder / "ranking" / "profile.json", profile.to_json())
        return found

    def ranking(self, batch: str) -> Path:
        return self.folder / "ranking" / f"{batch}.parquet"

    def report(self, **changes: Any) -> dict[str, Any]:
        """Make the report; `changes` are of the section `report`. Returns the summary."""
        self.page = self.folder / "report" / "report.html"
        rankings = [self.ranking(batch) for batch in self.batches]
        advice = advise(rankings, self.profile)
        write_json(self.folder / "ranking" / "advice.json", advice)
        return make_report(
            rankings,
            [self.folder / "enhanced" / "b0.parquet"],
            self.profile,
            advice,
            {"kind": "folder", "path": "/data/made-up", "revision": "sha256:00ff", "license": "CC0-1.0"},
            CONFIG | {"rank": self.setting, "report": CONFIG["report"] | changes},
            {"numpy": "2"},
            [],
            {"enhance": {"jobs": 2, "seconds": 61.5}, "score": {"jobs": 2, "seconds": 30.25}},
            self.page,
            self.folder / "report" / "summary.json",
            self.folder / "report" / "ranking.parquet",
            self.folder / "report" / "plots",
        )

    def _clip(
        self, n: int, quality: float, random: np.random.Generator
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        clip_id = hashlib.sha256(f"clip {n}".encode()).hexdigest()[:24]
        speaker = int(random.integers(40))
        ledger: dict[str, Any] = dict.fromkeys(LEDGER.names)
        ledger |= {
            "id": clip_id,
            "source": "made-up",
            "source_file": f"part-{n % 3}.parquet",
            "source_row": n,
            "source_split": ("train", "train", "dev")[n % 3],
            "speaker_id": f"speaker-{speaker:02d}",
            "language": ("th", "en")[speaker % 2],
            "text": self.text if self.text and n % 7 == 0 else f"sentence number {n}",
            "input_duration": round(float(random.gamma(3, 1.6)) + 0.4, 3),
        }
        kind = random.uniform()
        if kind < 0.02:
            error = {"state": "errored", "error_class": "truncated", "message": "the file ends before its audio"}
            return ledger | error, None
        if kind < 0.05:
            silent = {"criterion": "speech_s", "value": 0.1, "threshold": 0.25, "message": "0.1 s of speech"}
            return ledger | {"state": "rejected", **silent}, None
        ledger["state"] = "passed"
        score: dict[str, Any] = {"id": clip_id, "error_class": None, "message": None}
        score |= {
            "duration": ledger["input_duration"],
            "variant": ("original", "enhanced")[n % 2],
            "variant_reason": None,
        }
        for name, (worst, best, scatter) in MEASURED.items():
            value = worst + (best - worst) * quality + float(random.normal(0, scatter))
            score[name] = max(0.0, value) if name in NON_NEGATIVE else value
        if random.uniform() < 0.04:
            score["input_reverb_decay_db_s"] = None
        if random.uniform() < 0.01:
            score |= {"input_snr_db": None, "dnsmos_p808": None}
        return ledger, score

    def _write_audio(self) -> None:
        prompts = sorted((ROOT / "demo" / "speech").rglob("*.flac"))
        random = np.random.default_rng(1)
        rows = []
        for n, score in enumerate(self.scores["b0"].to_pylist()):
            samples, rate = soundfile.read(prompts[n % len(prompts)], dtype="float32")
            noisy = np.clip(samples + random.normal(0, 0.02, len(samples)), -1, 1).astype(np.float32)
            enhanced = score["variant"] == "enhanced"
            audio = {"bytes": encode_flac(samples, rate), "path": f"{score['id']}.flac"}
            before = {"bytes": encode_flac(noisy, rate), "path": "before.flac"} if enhanced else None
            rows.append({"id": score["id"], "audio": audio, "original": before, "variant": score["variant"]})
        write_table(pa.Table.from_pylist(rows, schema=ENHANCED), self.folder / "enhanced" / "b0.parquet")


def _scores_schema() -> pa.Schema:
    texts = ("id", "error_class", "message", "variant", "variant_reason")
    numbers = ("duration", *MEASURED)
    return pa.schema([*((name, pa.string()) for name in texts), *((name, pa.float64()) for name in numbers)])
