"""A made-up corpus with rankings and shards, and hostile names: what the tests of the report begin with."""

import hashlib

import numpy as np
import pyarrow as pa

from speechmill.audio.encode import encode_flac
from speechmill.ranking.profile import Criterion, FrozenProfile, Gate, _hash
from speechmill.report.page import make_report
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import ENHANCED, RANKING

RATE = 16_000
EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&\x00"
METRICS = ["snr_db", "input_snr_db", "input_clip_ratio", "denoise_removed_db", "a_new_metric"]


def make_profile(threshold: float = 0.5) -> FrozenProfile:
    body = {
        "name": "asr",
        "version": 1,
        "description": EVIL,
        "threshold": threshold,
        "min_coverage": 0.8,
        "gates": (Gate("input_snr_db", 0.0, None, EVIL), Gate("duration", None, 30.0, "too long")),
        "criteria": (
            Criterion("input_snr_db", "noise", -5.0, 35.0, "benefit", 0.7),
            Criterion("input_clip_ratio", "level", 1e-5, 1e-2, "cost", 0.2, None, "log10"),
            Criterion("snr_db", "noise", 0.0, 40.0, "target", 0.1, (10.0, 30.0)),
        ),
        "dropped_criteria": ("distillmos",),
        "dropped_gates": (),
    }
    return FrozenProfile(**body, sha256=_hash(FrozenProfile(**body, sha256="")))


ADVICE = {
    "rows": 40,
    "criteria": {"input_snr_db": {"profile": 0.7, "entropy": 0.4, "critic": None, "at_low": 0.0, "at_high": 0.31}},
    "correlation": {"snr_db": {"input_snr_db": 0.93}, "input_snr_db": {"snr_db": 0.93, "input_clip_ratio": None}},
    "warnings": [f"input_snr_db: 31% {EVIL}"],
}
SOURCE = {
    "kind": "folder",
    "path": EVIL,
    "revision": "sha256:00ff",
    "license": "CC-BY-SA-3.0",
    "attribution": EVIL,
    "bytes": 1234,
    "files": [{"path": EVIL, "size": 1234, "sha256": "0" * 64}],
}
CONFIG = {"dataset": "demo", "report": {"examples": 2, "rejected_examples": 1, "audit": 3}, "source": {"path": EVIL}}
VERSIONS = {"numpy": "2.0", "dnsmos_p808": "ab" * 32}
SKIPPED = [{"name": "squim", "reason": EVIL}]
TIMING = {"enhance": {"jobs": 2, "seconds": 12.5}}


class Corpus:
    """Ranking tables and enhanced shards of two batches, drawn from a seed, with every state in them."""

    def __init__(self, directory, clips=60, threshold=0.5, seconds=0.4, states=None, seed=1):
        random = np.random.default_rng(seed)
        self.directory, self.rows, self.audio = directory, [], {}
        self.ranking, self.enhanced = [], []
        self.profile = make_profile(threshold)
        cut = min(clips, max(1, clips // 3))
        for batch, members in (("b0", range(cut)), ("b1", range(cut, clips))):
            ranking, enhanced = [], []
            for n in members:
                row, shard = self.clip(n, batch, states[n % len(states)] if states else n % 8, random, seconds)
                ranking.append(row)
                if shard:
                    enhanced.append(shard)
            schema = pa.schema([*RANKING, *(pa.field(m, pa.float64()) for m in METRICS)])
            self.rows += ranking
            self.ranking.append(directory / "ranking" / f"{batch}.parquet")
            self.enhanced.append(directory / "enhanced" / f"{batch}.parquet")
            write_table(pa.Table.from_pylist(ranking, schema=schema), self.ranking[-1])
            write_table(pa.Table.from_pylist(enhanced, schema=ENHANCED), self.enhanced[-1], row_group_size=7)

    def clip(self, n, batch, kind, random, seconds):
        clip_id = hashlib.sha256(str(n).encode()).hexdigest()[:24]
        row = dict.fromkeys([*RANKING.names, *METRICS])
        row |= {
            "id": clip_id,
            "batch": batch,
            "source_file": f"ก/{EVIL}{n}.wav",
            "input_duration": seconds + 0.25,
        }
        if kind == 0:
            return row | {"state": "errored", "error_class": ["unreadable", EVIL][n % 2], "message": EVIL}, None
        if kind == 1:
            reason = {"criterion": "speech_s", "value": 0.0, "threshold": 0.25, "message": f"no speech {n}"}
            return row | {"state": "rejected", **reason}, None
        # Few distinct values, so that there are ties.
        closeness = round(float(random.uniform()), 2)
        measured = {m: float(random.normal(10, 5)) for m in METRICS} | {"input_clip_ratio": float(n % 3) / 1000}
        variant = "enhanced" if n % 2 else "original"
        row |= {
            "text": ["สวัสดีครับ", EVIL, None][n % 3],
            "language": ["th", '"><b>', None][n % 3],
            "speaker_id": EVIL,
            "duration": seconds,
            "variant": variant,
            "closeness": closeness,
            "coverage": 1.0,
            "failed_gates": [],
            **measured,
        }
        if n % 5 == 0:
            row["a_new_metric"] = None
        if kind == 2:
            row |= {"state": "duplicate", "duplicate_of": "0" * 24}
        elif kind == 3:
            row |= {"state": "rejected", "criterion": "input_snr_db", "value": -1.0, "threshold": 0.0}
            row |= {"failed_gates": ["input_snr_db", "duration"], "message": EVIL}
        elif closeness < self.profile.threshold:
            row |= {"state": "rejected", "criterion": "closeness", "value": closeness, "message": "too far"}
            row["threshold"] = self.profile.threshold
        else:
            row["state"] = "accepted"
        samples = 0.3 * np.sin(np.arange(int(seconds * RATE)) * (0.05 + 0.01 * (n % 9))).astype(np.float32)
        audio = {"bytes": encode_flac(samples, RATE), "path": f"{clip_id}.flac"}
        noise = random.normal(0, 0.01, len(samples)).astype(np.float32)
        original = {"bytes": encode_flac(samples + noise, RATE), "path": "x.flac"} if variant == "enhanced" else None
        self.audio[clip_id] = (audio["bytes"], original and original["bytes"])
        return row, {"id": clip_id, "audio": audio, "original": original, "duration": seconds, "variant": variant}

    def report(self, examples=2):
        out = self.directory / "report"
        self.page, self.summary, self.table = out / "report.html", out / "summary.json", out / "ranking.parquet"
        self.plots = out / "plots"
        return make_report(
            self.ranking,
            self.enhanced,
            self.profile,
            ADVICE,
            SOURCE,
            CONFIG | {"report": CONFIG["report"] | {"examples": examples}},
            VERSIONS,
            SKIPPED,
            TIMING,
            self.page,
            self.summary,
            self.table,
            self.plots,
        )


def ranked(corpus):
    return [row for row in corpus.rows if row["closeness"] is not None and row["state"] != "duplicate"]
