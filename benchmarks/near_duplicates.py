"""Copies that are found and clips that are taken for copies: `python benchmarks/near_duplicates.py [--clips 200000]`.

On the demo's prompts, each copied in many ways: recall by kind of copy, pairs of different prompts that are taken for
copies (clean, and in noise), and how much faster than real time a fingerprint is made. On so many synthetic
fingerprints: seconds and peak memory of find_near_duplicates in a process of its own, recall and false pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import multiprocessing
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr

from speechmill.dedup.fingerprint import BYTES, RATE, WORDS, fingerprint
from speechmill.dedup.near import find_near_duplicates

ROOT = Path(__file__).resolve().parents[1]
LEDGER = pa.schema(
    [
        ("id", pa.string()),
        ("state", pa.string()),
        ("pcm_sha256", pa.string()),
        ("source_split", pa.string()),
        ("fingerprint", pa.binary()),
        ("input_duration", pa.float64()),
    ]
)
BATCH = 20_000
COPIES = 0.05  # of the synthetic clips
BIT_ERRORS = 0.07  # of a synthetic copy
FLIPS = 0.16  # of the bits from one word to the next, as in real prompts

Copy = Callable[[np.ndarray], np.ndarray]


def coded(rate: int, kind: str, subtype: str, level: float) -> Copy:
    """A lossy copy: resampled to a rate, encoded, decoded, resampled back. Higher levels are fewer bits."""

    def copy(samples: np.ndarray) -> np.ndarray:
        data = io.BytesIO()
        wide = soxr.resample(samples, RATE, rate)
        options = {"bitrate_mode": "CONSTANT"} if kind == "MP3" else {}
        with soundfile.SoundFile(data, "w", rate, 1, subtype, format=kind, compression_level=level, **options) as file:
            for start in range(0, len(wide), rate):  # libsndfile's Vorbis encoder does not outlive a minute at once
                file.write(wide[start : start + rate])
        data.seek(0)
        return soxr.resample(soundfile.read(data, dtype="float32")[0], rate, RATE)

    return copy


def resampled(rate: int) -> Copy:
    return lambda samples: sixteen_bits(soxr.resample(soxr.resample(samples, RATE, rate), rate, RATE))


def sixteen_bits(samples: np.ndarray) -> np.ndarray:
    return (np.rint(np.clip(samples, -1, 1) * 32767) / 32767).astype(np.float32)


COPIES_OF: dict[str, Copy] = {
    "MP3 44.1 kHz, 32 kbit/s": coded(44_100, "MP3", "MPEG_LAYER_III", 0.99),
    "MP3 44.1 kHz, 56 kbit/s": coded(44_100, "MP3", "MPEG_LAYER_III", 0.9),
    "MP3 44.1 kHz, 160 kbit/s": coded(44_100, "MP3", "MPEG_LAYER_III", 0.6),
    "MP3 16 kHz, 24 kbit/s": coded(16_000, "MP3", "MPEG_LAYER_III", 0.9),
    "Ogg Vorbis 48 kHz, 45 kbit/s": coded(48_000, "OGG", "VORBIS", 0.9),
    "Ogg Vorbis 16 kHz, 40 kbit/s": coded(16_000, "OGG", "VORBIS", 0.6),
    "Opus 46 kbit/s": coded(48_000, "OGG", "OPUS", 0.85),
    "Opus 9 kbit/s": coded(48_000, "OGG", "OPUS", 0.99),
    "8 kHz": resampled(8_000),
    "22.05 kHz": resampled(22_050),
    "44.1 kHz": resampled(44_100),
    "48 kHz": resampled(48_000),
    "-12 dB": lambda samples: sixteen_bits(samples * 0.25),
    "100 ms added at the start": lambda samples: np.pad(samples, (1600, 0)),
    "37 and 90 ms added": lambda samples: np.pad(samples, (592, 1440)),
    "50 ms cut off the start": lambda samples: samples[800:],
    "100 ms cut off the start": lambda samples: samples[1600:],
    "100 ms cut off start and end": lambda samples: samples[1600:-1600],
    "MP3 of a quiet 8 kHz copy, 49 ms added": lambda samples: coded(44_100, "MP3", "MPEG_LAYER_III", 0.9)(
        np.pad(resampled(8_000)(samples) * 0.3, (777, 0)).astype(np.float32)
    ),
}


def clip(name: str, samples: np.ndarray, split: str | None = None) -> dict:
    """A ledger's row of a clip: float32 (n,) at 16 kHz."""
    samples = np.asarray(samples, np.float32)
    return {
        "id": name,
        "state": "passed",
        "pcm_sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
        "source_split": split,
        "fingerprint": fingerprint(samples),
        "input_duration": len(samples) / RATE,
    }


def found(folder: Path, rows: list[dict], others: list[dict] | None = None) -> dict[str, str]:
    """id -> the id that it repeats."""
    for name, part in (("own", rows), ("others", others or [])):
        pq.write_table(pa.Table.from_pylist(part, schema=LEDGER), folder / f"{name}.parquet")
    find_near_duplicates([folder / "own.parquet"], [folder / "others.parquet"], folder / "near.parquet")
    table = pq.read_table(folder / "near.parquet")
    return dict(zip(table["id"].to_pylist(), table["near_duplicate_of"].to_pylist(), strict=True))


def demo(folder: Path) -> None:
    """Recall by kind of copy, each kind alone with its originals; false pairs; speed."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "demo" / "build.py")
    sys.modules["build"] = build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    loaded = build.load_prompts()
    prompts = [(prompt.file, prompt.samples.astype(np.float32)) for prompt in loaded]
    fingerprint(prompts[0][1])
    begin = time.perf_counter()
    originals = [fingerprint(samples) for _, samples in prompts]
    seconds = time.perf_counter() - begin
    length = sum(len(samples) for _, samples in prompts) / RATE
    print(
        f"{len(originals)} prompts, {length:.0f} s: fingerprints are {length / seconds:.0f} times as fast as real time"
    )
    others = [clip(name, samples) for name, samples in prompts]
    print(f"false pairs of different prompts: {len(found(folder, others))} of {len(prompts) * (len(prompts) - 1) // 2}")
    print("| copy | found | false |\n|---|---|---|")
    everything = []
    for kind, copy in COPIES_OF.items():
        rows = [clip(f"{kind}|{name}", copy(samples)) for name, samples in prompts]
        everything += rows
        report(kind, folder, rows, others)
    report("all of these at once", folder, everything, others)
    generator = np.random.default_rng(0)
    for snr in (20, 10, 5, 0, -5):
        noisy = []
        for noise in build.NOISES:
            for prompt in loaded[::3]:
                sound = build.make_noise(noise, len(prompt.samples), generator, loaded[:12])
                noisy.append(clip(f"{noise}|{prompt.file}", build.mix(prompt.samples, sound, snr).astype(np.float32)))
        report(f"in noise of {snr} dB SNR, another recording condition", folder, noisy, others)


def report(kind: str, folder: Path, rows: list[dict], others: list[dict]) -> None:
    same = {row["pcm_sha256"] for row in others}
    rows = [row for row in rows if row["pcm_sha256"] not in same]
    if not rows:
        print(f"| {kind} | (bit by bit the same) | |")
        return
    pairs = found(folder, rows, others)
    right = sum(name.split("|")[-1] == original.split("|")[-1] for name, original in pairs.items())
    print(f"| {kind} | {right / len(rows):.3f} of {len(rows)} | {len(pairs) - right} |", flush=True)


def synthetic(folder: Path, clips: int) -> tuple[list[Path], dict[str, str]]:
    """Ledgers of synthetic fingerprints, and which of their clips repeats which."""
    paths, truth = [], {}
    for number, start in enumerate(range(0, clips, BATCH)):
        random = np.random.default_rng(number)
        rows = min(BATCH, clips - start)
        steps = random.random((rows, WORDS, 32), np.float32) < FLIPS
        steps[:, 0] = random.random((rows, 32)) < 0.5
        bits = np.logical_xor.accumulate(steps, axis=1)
        seconds = np.round(random.uniform(1, 15, rows), 3)
        repeats = np.flatnonzero(random.random(rows) < COPIES)
        repeats = repeats[repeats >= rows // 2]  # of the second half: what they repeat stands
        of = random.integers(0, rows // 2, len(repeats))
        bits[repeats] = bits[of] ^ (random.random((len(repeats), WORDS, 32), np.float32) < BIT_ERRORS)
        seconds[repeats] = seconds[of] + 0.026
        words = np.packbits(bits, axis=2, bitorder="little").reshape(rows, BYTES)
        ids = [hashlib.sha256(f"{start + row}".encode()).hexdigest()[:24] for row in range(rows)]
        truth |= {ids[row]: ids[original] for row, original in zip(repeats, of, strict=True)}
        table = {
            "id": ids,
            "state": ["passed"] * rows,
            "pcm_sha256": [hashlib.sha256(name.encode()).hexdigest() for name in ids],
            "source_split": ["train"] * rows,
            "fingerprint": [row.tobytes() for row in words],
            "input_duration": seconds,
        }
        paths.append(folder / f"{number:05d}.parquet")
        pq.write_table(pa.table(table, schema=LEDGER), paths[-1])
    return paths, truth


def cost(paths: list[Path], out: Path) -> tuple[float, float]:
    """Seconds, and peak memory of this process in MiB: getrusage would count its parent's as well."""
    begin = time.perf_counter()
    find_near_duplicates(paths, [], out)
    seconds = time.perf_counter() - begin
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return seconds, int(peak) / 1024


def scale(folder: Path, clips: int) -> None:
    paths, truth = synthetic(folder, clips)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, megabytes = pool.apply(cost, (paths, folder / "near.parquet"))
    table = pq.read_table(folder / "near.parquet")
    pairs = Counter(
        truth.get(name, name) == truth.get(original, original)
        for name, original in zip(table["id"].to_pylist(), table["near_duplicate_of"].to_pylist(), strict=True)
    )
    print(f"{clips} synthetic clips: {seconds:.1f} s, {megabytes:.0f} MB, ", end="")
    print(f"{pairs[True]} of {len(truth)} copies found, {pairs[False]} false pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200_000, help="synthetic clips; 0 for none")
    parser.add_argument("--only-scale", action="store_true", help="leave out the demo's prompts")
    parser.add_argument("--folder", type=Path, help="where temporary files are made: about 1 kB per clip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if not options.only_scale:
            demo(Path(folder))
        if options.clips:
            scale(Path(folder), options.clips)


if __name__ == "__main__":
    main()
