"""Seconds, memory and files that planning a large corpus takes: `python benchmarks/plan.py --batches 1000`.

A real run of one clip is multiplied: its files and Snakemake's records of them, for as many batches as asked, with
modification times in the order of the stages. What Snakemake then plans is what it would for a corpus of that size.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile
import yaml

ROOT = Path(__file__).resolve().parents[1]
FIRST = "clips-00000"
STAGES = [  # files of a batch, in the order in which they are made
    ["manifest/{}.json", "manifest/{}.parquet"],
    ["enhanced/{}.parquet", "ledger/{}.enhance.parquet"],
    ["scores/{}.parquet"],
    ["ranking/{}.parquet", "logs/batches/{}.log"],
]
OF_ALL = [
    ["preflight.json", "ranking/profile.json", "source.json"],
    ["manifest/batches.tsv"],
    ["ledger/duplicates.parquet"],
    ["ranking/advice.json"],
    ["report/report.html", "report/summary.json", "report/ranking.parquet"],
    ["published/UPLOADED.json"],
]


def snakemake(directory: Path, *arguments: str) -> tuple[float, float, str]:
    """Wall-clock seconds, peak megabytes and output of one start."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"),
        *("--profile", str(ROOT / "profiles" / "local"), "--configfile", "config.yaml", *arguments),
    ]
    begin = time.monotonic()
    with open(directory / "output", "w") as output:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    text = (directory / "output").read_text()
    if status:
        raise SystemExit(f"snakemake {' '.join(arguments)} failed:\n{text[-3000:]}")
    return time.monotonic() - begin, usage.ru_maxrss / 1024, text


def run_of_one_clip(directory: Path) -> Path:
    """A finished run of one batch; the folder of its results."""
    (directory / "corpus").mkdir(parents=True)
    prompt = sorted((ROOT / "demo" / "speech").rglob("*.flac"))[0]
    samples, rate = soundfile.read(prompt, dtype="int16")
    soundfile.write(directory / "corpus" / "clip.wav", samples, rate)
    config = {
        "dataset": "demo",
        "batch_size": 10_000,
        "source": {"path": "corpus", "metadata": None},
        "score": {"metrics": ["signal"]},
        "rank": {"threshold": 0},
        "report": {"examples": 0},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    snakemake(directory)
    return directory / "results" / "demo"


def multiply_manifest(run: Path, names: list[str]) -> None:
    table = run / "manifest" / "batches.tsv"
    header, row = table.read_text().splitlines()
    table.write_text("\n".join([header, *(row.replace(FIRST, name) for name in names)]) + "\n")
    copy_stage(run, STAGES[0], names)


def multiply_results(run: Path, names: list[str]) -> None:
    """All that follows the manifest, with records of Snakemake that fit, and times in order."""
    for stage in STAGES[1:]:
        copy_stage(run, stage, names)
    records = run.parents[1] / ".snakemake" / "metadata"
    for path in list(records.iterdir()):
        record = json.loads(path.read_text())
        target = base64.urlsafe_b64decode(path.name).decode()
        if FIRST in target:
            text = path.read_text()
            for name in names[1:]:
                (records / base64.urlsafe_b64encode(target.replace(FIRST, name).encode()).decode()).write_text(
                    text.replace(FIRST, name)
                )
        else:
            record["input"] = [
                item.replace(FIRST, name) for item in record["input"] for name in (names if FIRST in item else [""])
            ]
            path.write_text(json.dumps(record))
    now = time.time() - 3600
    order = [OF_ALL[0], OF_ALL[1], STAGES[0], STAGES[1], OF_ALL[2], STAGES[2], STAGES[3], *OF_ALL[3:]]
    for number, patterns in enumerate(order):
        for pattern in patterns:
            for name in names if "{}" in pattern else [""]:
                os.utime(run / pattern.format(name), (now + number, now + number))


def copy_stage(run: Path, patterns: list[str], names: list[str]) -> None:
    for pattern in patterns:
        content = (run / pattern.format(FIRST)).read_bytes()
        for name in names[1:]:
            (run / pattern.format(name)).write_bytes(content.replace(FIRST.encode(), name.encode()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=1000, help="of 10,000 clips (default: 1000)")
    batches = parser.parse_args().batches
    directory = Path(tempfile.mkdtemp(prefix="speechmill-plan-"))
    try:
        run = run_of_one_clip(directory)
        names = [f"clips-{number:05d}" for number in range(batches)]
        print(f"{batches * 10_000:,} clips in {batches:,} batches")
        multiply_manifest(run, names)
        results = ("enhanced", "ledger", "scores", "ranking", "report", "published")
        for folder in results:
            (run / folder).rename(directory / folder)
        show("snakemake -n, nothing enhanced", *snakemake(directory, "-n", "--quiet"), nothing=False)
        for folder in results:
            (directory / folder).rename(run / folder)
        multiply_results(run, names)
        show("snakemake -n, all done", *snakemake(directory, "-n"), nothing=True)
        show("snakemake, nothing to do", *snakemake(directory), nothing=True)
        for what, folder in (("results", run), ("Snakemake's records", directory / ".snakemake")):
            files = sum(path.is_file() for path in folder.rglob("*"))
            print(f"{what}: {files:,} files, {files / batches:.2f} per batch")
    finally:
        shutil.rmtree(directory)


def show(what: str, seconds: float, megabytes: float, output: str, nothing: bool) -> None:
    if ("Nothing to be done" in output) != nothing:
        raise SystemExit(f"{what}: not the state that is to be measured:\n{output[-3000:]}")
    print(f"{what}: {seconds:.1f} s, {megabytes:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
