"""What 10 million clips and more cost beside the work on audio: `python benchmarks/scale.py --clips 10000000`.

plan: a real run of one clip is multiplied, its files and Snakemake's records of them, and planned again and again,
beside bare Snakemake with as many jobs that do nothing.
tables: duplicates, held-out clips, ranking, advice and report over synthetic ledgers and scores, each in a process of its own, the
preview of another ranking (speechmill rerank), and the comparison of two such runs.
Prints seconds, CPU seconds, peak memory of all processes together, and the target where there is one (for 10 million
clips; memory of the tables for any number). With --check, a target that is missed ends it with status 1.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import soundfile
import yaml
from cost import ROOT, Cost, Table, cost

BATCH = 10_000
FIRST = "clips-00000"
MOST_TIMES = 3
BARE = """
names = open("batches.txt").read().split()
rule all:
    input: expand("{stage}/{name}", stage=["a", "b"], name=names)
rule a:
    output: "a/{name}"
    shell: "touch {output}"
rule b:
    input: "a/{name}"
    output: "b/{name}"
    shell: "touch {output}"
"""


# Planning


def snakemake(directory: Path, *arguments: str) -> Cost:
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"),
        *("--profile", str(ROOT / "profiles" / "local"), "--configfile", "config.yaml", *arguments),
    ]
    return cost(command, directory)


def run_one_clip(directory: Path) -> None:
    """A finished run of one batch in `directory`."""
    (directory / "corpus").mkdir(parents=True)
    prompt = sorted((ROOT / "demo" / "speech").rglob("*.flac"))[0]
    samples, rate = soundfile.read(prompt, dtype="int16")
    soundfile.write(directory / "corpus" / "clip.wav", samples, rate)
    config = {
        "dataset": "demo",
        "batch_size": BATCH,
        "source": {"path": "corpus", "metadata": None},
        "score": {"metrics": ["signal"]},
        "rank": {"threshold": 0},
        "report": {"examples": 0},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    snakemake(directory)


def multiply(directory: Path, names: list[str]) -> None:
    """Give every batch of `names` the first one's files, with its times: those of a run are in the right order."""
    run = directory / "results" / "demo"
    for path in [path for path in run.rglob("*") if path.is_file() and FIRST in path.name]:
        times, content = path.stat(), path.read_bytes()
        for name in names[1:]:
            copy = path.with_name(path.name.replace(FIRST, name))
            copy.write_bytes(content.replace(FIRST.encode(), name.encode()))
            os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    for index in (run / "manifest" / "batches.tsv", run / "ranking" / "ranked.tsv"):
        if not index.exists():
            continue
        times = index.stat()
        header, row = index.read_text().splitlines()
        index.write_text("\n".join([header, *(row.replace(FIRST, name) for name in names)]) + "\n")
        os.utime(index, ns=(times.st_atime_ns, times.st_mtime_ns))
    multiply_records(directory / ".snakemake" / "metadata", names)


def multiply_records(records: Path, names: list[str]) -> None:
    """The same with Snakemake's records: one per file of a batch, and longer inputs of what is over all batches."""
    for path in list(records.iterdir()):
        text, target = path.read_text(), base64.urlsafe_b64decode(path.name).decode()
        if FIRST in target:
            for name in names[1:]:
                key = base64.urlsafe_b64encode(target.replace(FIRST, name).encode()).decode()
                (records / key).write_text(text.replace(FIRST, name))
            continue
        record = json.loads(text)
        record["input"] = sorted(
            item.replace(FIRST, name) for item in record["input"] for name in (names if FIRST in item else [""])
        )
        record["input_checksums"] = {
            key.replace(FIRST, name): value
            for key, value in (record["input_checksums"] or {}).items()
            for name in (names if FIRST in key else [""])
        }
        path.write_text(json.dumps(record))


def bare(directory: Path, names: list[str]) -> dict[str, Cost]:
    """What planning costs Snakemake where as many jobs do nothing: two for each batch; nothing done, and all done."""
    directory.mkdir()
    (directory / "batches.txt").write_text("\n".join(names))
    (directory / "Snakefile").write_text(BARE)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "-n"]
    found = {"cold": cost(command, directory)}
    for number, stage in enumerate(("a", "b")):
        (directory / stage).mkdir()
        for name in names:
            (directory / stage / name).touch()
            os.utime(directory / stage / name, (number, number))
    return found | {"done": cost(command, directory)}


def ratio(table: Table, what: str, found: Cost, compared: Cost) -> None:
    times = found.cpu / compared.cpu
    shown = f"{times:.1f} ({compared.cpu:.1f} s CPU, {compared.seconds:.1f} s)"
    table.row(f"{what}: times bare Snakemake's CPU", shown, f"{MOST_TIMES}", times <= MOST_TIMES)


def plan(folder: Path, clips: int, table: Table) -> None:
    names = [f"clips-{number:05d}" for number in range(max(1, clips // BATCH))]
    done, cold = folder / "done", folder / "cold"
    run_one_clip(done)
    cold.mkdir()
    for name in ("corpus", ".snakemake", "results/demo/manifest"):
        shutil.copytree(done / name, cold / name)
    for name in ("config.yaml", "results/demo/source.json", "results/demo/preflight.json"):
        shutil.copy2(done / name, cold / name)
    multiply(cold, names)
    due = clips <= 10_000_000  # the targets are for so many
    found = snakemake(cold, "-n")
    if not re.search(rf"^enhance +{len(names)}$", found.output, re.MULTILINE):
        raise SystemExit(f"not the plan that is to be measured:\n{found.output[-3000:]}")
    what = "`snakemake -n`, manifest known, nothing enhanced"
    table.cost(what, found, 15 if due else None, 500 if due else None)
    compared = bare(folder / "bare", names)
    ratio(table, what, found, compared["cold"])
    shutil.rmtree(cold)
    multiply(done, names)
    for what, arguments, seconds in (
        ("`snakemake -n`, all done", ["-n"], 15),
        ("`snakemake`, nothing to do", [], 30),
    ):
        found = snakemake(done, *arguments)
        if "Nothing to be done" not in found.output:
            raise SystemExit(f"{what}: there is something to do:\n{found.output[-3000:]}")
        table.cost(what, found, seconds if due else None, 500 if due else None)
        ratio(table, what, found, compared["done"])
    for what, where in (("results", done / "results"), ("`.snakemake`", done / ".snakemake")):
        files = sum(path.is_file() for path in where.rglob("*")) / len(names)
        table.row(f"files per batch in {what}", f"{files:.2f}", "8", round(files) <= 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000_000, help=f"in batches of {BATCH} (default: 10000000)")
    parser.add_argument("--part", choices=("plan", "tables"), help="only one of the two")
    parser.add_argument("--check", action="store_true", help="status 1 where a target is missed")
    parser.add_argument("--directory", type=Path, help="where the temporary files go (default: the system's)")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from synthetic_tables import tables

    folder = Path(tempfile.mkdtemp(prefix="speechmill-scale-", dir=arguments.directory))
    try:
        table = Table()
        for name, part in (("plan", plan), ("tables", tables)):
            if arguments.part in (None, name):
                (folder / name).mkdir()
                part(folder / name, arguments.clips, table)
                shutil.rmtree(folder / name)
    finally:
        shutil.rmtree(folder)
    if arguments.check and table.missed:
        raise SystemExit(f"{len(table.missed)} targets missed: {'; '.join(table.missed)}")


if __name__ == "__main__":
    main()
