"""How good enhanced clips are: `python benchmarks/enhancement.py [--clips 16] [--quick] [--json FILE]`.

SI-SDR in dB, wide-band PESQ and STOI of noisy speech whose clean original is known, by enhancer and level, unguarded and
as the guard chooses, beside the noisy input and noisereduce. Speech is the demo's Spanish prompts, joined by threes: the
guard was tuned on the English ones. Noises are those of demo/build.py, at 0, 5 and 15 dB. Status 1 where a target is
missed: what is published by default is to be no worse than the input and than noisereduce, by each measure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_quality import si_sdr
from speech_corpus import RATE, cores, demo_builder, machine, need, said

from speechmill.audio.resample import resample
from speechmill.audio.vad import CHUNK, SileroVad
from speechmill.engine.tensors import pad
from speechmill.enhance import LEVELS_DB, limit_attenuation, load_enhancer
from speechmill.enhance.guard import GuardThresholds, choose_variant, measure_evidence
from speechmill.metrics import ClipBatch, measure_input_signal

LANGUAGE = "es"
JOINED = 3  # prompts in a clip
SNRS = (0, 5, 15)  # dB
ENHANCERS = ("rnnoise", "spectral_gate")
LEVELS = tuple(level for level in LEVELS_DB if level != "none")
NOISY, PUBLISHED = "noisy input", "rnnoise, moderate, guarded"
REDUCED = ("noisereduce", "noisereduce, stationary")
MEASURES = ("si_sdr", "pesq", "stoi")
HARM_DB = 0.5  # of SI-SDR
PACKAGES = ("torch", "numpy", "pyrnnoise", "noisereduce", "pesq", "pystoi")

Mixture = tuple[int, str, float, int]  # clip, noise, SNR in dB, seed
Row = dict[str, Any]


# One mixture, in a process with one thread


class Denoisers:
    """Models, loaded once per process."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.enhancers = {name: load_enhancer(name) for name in ENHANCERS}
        self.vad = SileroVad("cpu")
        prompts = [prompt for prompt in demo_builder().load_prompts() if prompt.language == LANGUAGE]
        self.prompts = sorted(prompts, key=lambda prompt: prompt.file)


@cache
def denoisers() -> Denoisers:
    return Denoisers()


class Timed:
    """CPU seconds of the calls so far."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        begin = time.process_time()
        result = call(*arguments)
        self.seconds += time.process_time() - begin
        return result


def mixed(mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Clean and noisy clip, float32 (n,) at RATE."""
    clip, noise, snr_db, seed = mixture
    build, prompts = demo_builder(), denoisers().prompts
    random = np.random.default_rng([seed, clip, build.NOISES.index(noise), round(snr_db)])
    chosen = np.random.default_rng([seed, clip]).choice(len(prompts), JOINED, replace=False)
    clean = np.concatenate([prompts[i].samples for i in chosen])
    noisy = build.mix(clean, build.make_noise(noise, len(clean), random, prompts), snr_db)
    return clean.astype(np.float32), noisy.astype(np.float32)


def judged(mixture: Mixture) -> list[Row]:
    """A row for each way to treat a mixture: its measures, and CPU seconds that it took."""
    clean, noisy = mixed(mixture)
    before = measures(clean, noisy)
    rows = [{"way": NOISY, **before}]
    rows += [{"way": way, **measures(clean, out), "cpu": cpu} for way, out, cpu in reduced(noisy)]
    evidence = Evidence(noisy)
    for name in ENHANCERS:
        for level, out, cpu in denoised(name, noisy):
            after = measures(clean, out)
            rows.append({"way": f"{name}, {level}", **after, "cpu": cpu})
            if level != "no limit":
                chosen = evidence.chooses(out, level)
                found = after if chosen else before
                rows.append({"way": f"{name}, {level}, guarded", **found, "enhanced": chosen})
    clip, noise, snr_db, _ = mixture
    about = {"clip": clip, "noise": noise, "snr_db": snr_db, "seconds": len(clean) / RATE}
    return [about | row | {"gain": row["si_sdr"] - before["si_sdr"]} for row in rows]


def measures(clean: np.ndarray, heard: np.ndarray) -> dict[str, float]:
    """NaN where PESQ finds no speech."""
    from pesq import PesqError, pesq
    from pystoi import stoi

    quality = pesq(RATE, clean, heard, "wb", on_error=PesqError.RETURN_VALUES)
    return {
        "si_sdr": si_sdr(clean.astype(float), heard.astype(float)),
        "pesq": float(quality) if quality > 0 else float("nan"),
        "stoi": float(stoi(clean, heard, RATE)),
    }


def reduced(noisy: np.ndarray) -> list[tuple[str, np.ndarray, float]]:
    """noisereduce at its defaults, and its stationary variant: name, samples, CPU seconds."""
    import noisereduce

    found = []
    for way, stationary in zip(REDUCED, (False, True), strict=True):
        timed = Timed()
        out = timed(lambda stationary=stationary: noisereduce.reduce_noise(y=noisy, sr=RATE, stationary=stationary))
        found.append((way, out.astype(np.float32), timed.seconds))
    return found


def denoised(name: str, noisy: np.ndarray) -> list[tuple[str, np.ndarray, float]]:
    """The levels of an enhancer and its output without a limit: name, samples at RATE, CPU seconds with resampling."""
    enhancer = denoisers().enhancers[name]
    assert enhancer is not None
    rate, whole = enhancer.native_rate, Timed()
    native, lengths = pad([whole(resample, noisy, RATE, rate)], "cpu", CHUNK)
    full = whole(enhancer, native, lengths)
    found = []
    for level in (*LEVELS, "no limit"):
        own = Timed()
        limited = full if level == "no limit" else own(limit_attenuation, native, full, level)
        back = own(resample, limited[0, : int(lengths[0])].numpy(), rate, RATE)[: len(noisy)]
        found.append((level, np.pad(back, (0, len(noisy) - len(back))), whole.seconds + own.seconds))
    return found


class Evidence:
    """What the guard knows of a noisy clip."""

    def __init__(self, noisy: np.ndarray):
        self.vad = denoisers().vad
        self.batch, self.lengths = pad([noisy], "cpu", CHUNK)
        self.heard = self.vad.probabilities(self.batch, self.lengths)
        measured = measure_input_signal(ClipBatch(self.batch, self.lengths, self.heard))
        self.snr_db = measured["input_snr_db"]

    def chooses(self, out: np.ndarray, level: str) -> bool:
        """Whether the guard publishes the denoised clip."""
        batch, lengths = pad([out], "cpu", CHUNK)
        again = self.vad.probabilities(batch, lengths)
        (evidence,) = measure_evidence(self.batch, batch, self.lengths, self.heard, again, self.snr_db)
        return choose_variant(evidence, GuardThresholds.for_level(level)).variant == "enhanced"


# What is shown


def summary(rows: list[Row]) -> dict[str, Row]:
    """By way: means, shares, x real time per core, and SI-SDR gain by noise and by SNR."""
    ways: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        ways[row["way"]].append(row)
    return {way: summed(of_way) for way, of_way in ways.items()}


def summed(rows: list[Row]) -> Row:
    cpu = sum(row.get("cpu", 0) for row in rows)
    gains = {
        key: {value: mean([row["gain"] for row in rows if row[key] == value]) for value in values}
        for key, values in (("noise", demo_builder().NOISES), ("snr_db", SNRS))
    }
    return {
        **{name: mean([row[name] for row in rows]) for name in MEASURES},
        "harmed": mean([row["gain"] < -HARM_DB for row in rows]),
        "enhanced": mean([row["enhanced"] for row in rows]) if "enhanced" in rows[0] else None,
        "x_real_time_per_core": sum(row["seconds"] for row in rows) / cpu if cpu else None,
        "gain": gains,
    }


def mean(values: Sequence[float]) -> float:
    """Of those that are no NaN."""
    return float(np.nanmean(values))


def show(found: dict[str, Row]) -> None:
    print(
        "| | SI-SDR | PESQ | STOI | lose over 0.5 dB | enhanced | x real time per core |\n|---|---|---|---|---|---|---|"
    )
    for way, one in found.items():
        enhanced = "" if one["enhanced"] is None else f"{100 * one['enhanced']:.0f} %"
        speed = "" if one["x_real_time_per_core"] is None else f"{one['x_real_time_per_core']:.0f}"
        quality = f"{one['si_sdr']:.2f} | {one['pesq']:.3f} | {one['stoi']:.3f}"
        print(f"| {way} | {quality} | {100 * one['harmed']:.0f} % | {enhanced} | {speed} |")
    names = [f"{snr} dB" for snr in SNRS] + list(demo_builder().NOISES)
    print("\nMean gain of SI-SDR in dB, by SNR and by noise:\n\n| | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for way, one in found.items():
        if way != NOISY:
            gains = [*one["gain"]["snr_db"].values(), *one["gain"]["noise"].values()]
            print(f"| {way} | " + " | ".join(f"{gain:.1f}" for gain in gains) + " |")


def problems(found: dict[str, Row]) -> list[str]:
    """Measures by which what is published by default is worse than what it is compared with."""
    return [
        f"{name}: {PUBLISHED} {found[PUBLISHED][name]:.3f}, {other} {found[other][name]:.3f}"
        for other in (NOISY, *REDUCED)
        for name in MEASURES
        if found[PUBLISHED][name] < found[other][name]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16, help="each in five noises at three SNRs (default: 16)")
    parser.add_argument("--quick", action="store_true", help="2 clips: shows that it works")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    need("noisereduce", "pesq", "pystoi")
    about = machine(*PACKAGES)
    clips = 2 if options.quick else options.clips
    mixtures = [(*one, options.seed) for one in itertools.product(range(clips), demo_builder().NOISES, SNRS)]
    with multiprocessing.get_context("spawn").Pool(cores()) as pool:
        rows = [row for of_mixture in pool.imap(judged, mixtures) for row in of_mixture]
        pool.close()
        pool.join()
    found = summary(rows)
    seconds = sum(row["seconds"] for row in rows if row["way"] == NOISY)
    print(f"{said(about)}\n{len(mixtures)} mixtures, {seconds / 60:.1f} minutes, seed {options.seed}\n")
    show(found)
    missed = problems(found)
    if options.json:
        content = {"machine": about, "seed": options.seed, "seconds": seconds, "mixtures": len(mixtures)}
        options.json.write_text(json.dumps(content | {"found": found, "missed": missed}, indent=2) + "\n")
    for what in missed:
        print(f"MISSED: {what}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
