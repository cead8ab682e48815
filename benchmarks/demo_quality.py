"""How good the demo's results are, judged by the truth that the workflow never saw.

python benchmarks/demo_quality.py --results results/demo --truth demo/truth.tsv [--json FILE]

Exit status 1 and a message where a target is missed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import scipy.stats
import soundfile
import soxr

RATE = 16_000
SEARCH = RATE // 50  # samples: a codec may delay a clip by up to 20 ms
TARGETS = {
    "spearman_closeness_true_snr": 0.8,
    "si_sdr_gain_db_below_15_db": 4.0,
    "clean_kept_share": 0.95,
}
CLEAN_SI_SDR_DB = 25.0


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, eq. 4), both (n,) and zero-mean."""
    reference, estimate = reference - reference.mean(), estimate - estimate.mean()
    target = reference * (estimate @ reference) / (reference @ reference)
    distortion = estimate - target
    return float(10 * np.log10((target @ target + 1e-20) / (distortion @ distortion + 1e-20)))


def aligned_si_sdr(clean: np.ndarray, heard: np.ndarray, start: int) -> float:
    """SI-SDR of `heard`, whose first sample is near clean[start], after the best shift within 20 ms."""
    best = -np.inf
    padded = np.pad(clean, (SEARCH + len(heard), SEARCH + len(heard)))
    at = start + SEARCH + len(heard)
    window = padded[at - SEARCH : at + SEARCH + len(heard)]
    correlation = np.correlate(window, heard, "valid")
    for shift in {int(np.argmax(np.abs(correlation))), SEARCH}:
        reference = window[shift : shift + len(heard)]
        best = max(best, si_sdr(reference, heard)) if reference @ reference > 0 else best
    return best


def mono_16k(samples: np.ndarray, rate: int) -> np.ndarray:
    """Any decoded audio -> float (n,) at 16 kHz."""
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    return mono if rate == RATE else soxr.resample(mono, rate, RATE, "VHQ")


def load(results: Path, truth: Path) -> list[dict]:
    """Truth rows with the ranking row of each (`ranked`) and, where there is one, its shard row (`shard`)."""
    ranked = {row["source_file"]: row for row in pq.read_table(results / "report" / "ranking.parquet").to_pylist()}
    shards: dict[str, dict] = {}
    columns = ["id", "audio", "variant", "trim_start_s"]
    for path in sorted((results / "enhanced").glob("*.parquet")):
        shards |= {row["id"]: row for row in pq.read_table(path, columns=columns).to_pylist()}
    with open(truth, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    for row in rows:
        row["ranked"] = ranked.get(row["path"])
        row["shard"] = shards.get(row["ranked"]["id"]) if row["ranked"] else None
    return rows


def measure(row: dict, corpus: Path, speech: Path) -> tuple[float, float]:
    """SI-SDR in dB of the input and of the published variant against the clean recording, over the same span."""
    clean = soundfile.read(speech / row["original"])[0]
    published = mono_16k(*soundfile.read(io.BytesIO(row["shard"]["audio"]["bytes"])))
    trim = round(row["shard"]["trim_start_s"] * RATE)
    heard = mono_16k(*soundfile.read(corpus / row["path"]))[trim : trim + len(published)]
    start = trim - round(float(row["offset_s"]) * RATE)
    return aligned_si_sdr(clean, heard, start), aligned_si_sdr(clean, published, start)


def evaluate(results: Path, truth: Path) -> dict:
    """All figures. `problems` lists what is wrong, in words; empty means that every target is met."""
    rows = load(results, truth)
    corpus, speech = truth.parent / "corpus", truth.parent / "speech"
    problems = [f"{row['path']}: in no table" for row in rows if row["ranked"] is None]
    counts = defaultdict(int)
    for row in rows:
        counts[row["ranked"]["state"] if row["ranked"] else "lost"] += 1
    summary = json.loads((results / "report" / "summary.json").read_text())["clips"]
    if dict(counts) | {"input": len(rows)} != {k: v for k, v in summary.items() if v or k == "input"}:
        problems.append(f"the states do not balance: {dict(counts)} of {len(rows)} files, summary {summary}")

    noisy = [row for row in rows if row["kind"] == "noisy" and row["ranked"]["closeness"] is not None]
    rho = scipy.stats.spearmanr(
        [float(row["snr_db"]) for row in noisy], [row["ranked"]["closeness"] for row in noisy]
    ).statistic
    gains = defaultdict(list)
    for row in (row for row in noisy if row["shard"]):
        before, after = measure(row, corpus, speech)
        row["gain"] = after - before
        gains[row["noise"], snr_bucket(float(row["snr_db"]))].append(row["gain"])
    wanted = [row["gain"] for row in noisy if row["noise"] != "babble" and float(row["snr_db"]) < 15]
    clean = [row for row in rows if row["kind"] == "clean" and row["shard"]]
    kept = [
        row["shard"]["variant"] == "original" or measure(row, corpus, speech)[1] >= CLEAN_SI_SDR_DB for row in clean
    ]
    figures = {
        "spearman_closeness_true_snr": float(rho),
        "si_sdr_gain_db_below_15_db": float(np.mean(wanted)),
        "clean_kept_share": float(np.mean(kept)),
    }
    for name, target in TARGETS.items():
        if not figures[name] >= target:
            problems.append(f"{name} is {figures[name]:.3f}, the target is {target}")
    problems += wrong_ends(rows)
    return {
        **figures,
        "targets": TARGETS,
        "clips": dict(counts) | {"input": len(rows)},
        "ranked_noisy_clips": len(noisy),
        "clips_of_the_gain": len(wanted),
        "clean_clips": len(clean),
        "gain_db": {f"{noise} {bucket}": round(float(np.mean(v)), 2) for (noise, bucket), v in sorted(gains.items())},
        "enhanced_share": {
            bucket: round(
                float(
                    np.mean(
                        [
                            r["shard"]["variant"] == "enhanced"
                            for r in noisy
                            if r["shard"] and snr_bucket(float(r["snr_db"])) == bucket
                        ]
                    )
                ),
                2,
            )
            for bucket in sorted({snr_bucket(float(r["snr_db"])) for r in noisy})
        },
        "problems": problems,
    }


def snr_bucket(snr_db: float) -> str:
    """The column of the table that an SNR belongs to."""
    for name, limit in (("a: below 0 dB", 0), ("b: 0 to 7 dB", 7.5), ("c: 7 to 15 dB", 15), ("d: 15 to 25 dB", 25)):
        if snr_db < limit:
            return name
    return "e: 25 dB and more"


def wrong_ends(rows: list[dict]) -> list[str]:
    """Broken clips that ended in another state or for another reason, and duplicates that were not found or invented."""
    problems = []
    by_path = {row["path"]: row for row in rows}
    for row in rows:
        ranked = row["ranked"]
        if ranked is None:
            continue
        end = f"{ranked['state']}:{ranked['error_class'] or ranked['criterion']}"
        if row["kind"] == "broken" and end not in row["expected"].split("|"):
            problems.append(f"{row['path']}: {end}, expected {row['expected']}")
        if row["duplicate_of"]:
            other = by_path[row["duplicate_of"]]["ranked"]
            if not (ranked["duplicate_of"] == other["id"] or other["duplicate_of"] == ranked["id"]):
                problems.append(f"{row['path']}: repeats {row['duplicate_of']}, which was not found")
        elif ranked["state"] == "duplicate" and not any(r["duplicate_of"] == row["path"] for r in rows):
            problems.append(f"{row['path']}: called a duplicate, but it is none")
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/demo"))
    parser.add_argument("--truth", type=Path, default=Path("demo/truth.tsv"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    found = evaluate(options.results, options.truth)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    for name, target in TARGETS.items():
        print(f"{name:<32}{found[name]:8.3f}   target {target}")
    print("mean SI-SDR gain in dB of what is published:")
    for name, gain in found["gain_db"].items():
        print(f"  {name:<24}{gain:8.2f}")
    print("share enhanced:", ", ".join(f"{k[3:]} {v}" for k, v in found["enhanced_share"].items()))
    for problem in found["problems"]:
        print(f"MISSED: {problem}", file=sys.stderr)
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
