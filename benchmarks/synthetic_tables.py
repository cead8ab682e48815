"""The part `tables` of scale.py: synthetic ledgers and scores, and each stage over them in a process of its own."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from cost import Table, cost

from speechmill.metrics import ENHANCE_METRICS, GROUP_METRICS, SETS, all_metrics
from speechmill.ranking.profile import FrozenProfile, freeze, load_profile
from speechmill.report.summary import ROW_GROUP
from speechmill.storage.files import read_json, write_json
from speechmill.tables.parquet_io import table_writer, write_table
from speechmill.tables.schemas import ENHANCED, LEDGER

BATCH = 10_000
REPEATS = 0.01  # of the clips repeat one of the batch before
STATES = {"passed": 0.93, "rejected": 0.05, "errored": 0.02}
SPLITS = {"train": 0.98, "dev": 0.01, "test": 0.01}
EXAMPLES = 4
RANK = {"profile": "asr", "threshold": None, "weights": {}}
CONFIG = {
    "dataset": "synthetic",
    "enhance": {},
    "score": {},
    "rank": RANK,
    "report": {"examples": EXAMPLES, "rejected_examples": 2, "audit": 24},
}
MEASURED = [*ENHANCE_METRICS, *(m.name for group in SETS["light"] for m in GROUP_METRICS[group])]


def make_batch(folder: Path, number: int) -> None:
    """Ledger and scores of one batch. Metric values are spread about the middle of the profile's bounds."""
    random = np.random.default_rng(number)
    ids = digits(random.bytes(12 * BATCH), 24)
    hashes = hashes_of(number)
    if number % 2:
        repeats = random.random(BATCH) < 2 * REPEATS
        hashes[repeats] = hashes_of(number - 1)[repeats]
    states = random.choice(list(STATES), BATCH, p=list(STATES.values()))
    passed = states == "passed"
    seconds = random.uniform(1, 15, BATCH)
    names = [f"th/{number:05d}/clip_{row}.wav" for row in range(BATCH)]
    ledger = {
        "id": ids,
        "source": ["synthetic"] * BATCH,
        "source_id": names,
        "source_split": random.choice(list(SPLITS), BATCH, p=list(SPLITS.values())),
        "source_file": names,
        "state": states,
        "criterion": np.where(states == "rejected", "speech_s", None),
        "value": np.where(states == "rejected", 0.1, None),
        "threshold": np.where(states == "rejected", 0.25, None),
        "error_class": np.where(states == "errored", "truncated", None),
        "message": np.where(passed, None, "as it was found"),
        "input_duration": seconds,
        "input_sha256": hashes,
        "pcm_sha256": np.where(passed, hashes, None),
        "utterance": utterances(random, number),
        "text": [f"คำพูดของผู้พูด {row * 7919 % 100_003}" for row in range(BATCH)],
        "language": ["th"] * BATCH,
        "speaker_id": [f"s{v}" for v in random.integers(0, 999, BATCH)],
        "license": ["CC0-1.0"] * BATCH,
    }
    rows = int(passed.sum())
    snr = random.normal(18, 9, rows)
    scores = {
        "id": ids.filter(pa.array(passed)),
        "error_class": pa.nulls(rows, pa.string()),
        "message": pa.nulls(rows, pa.string()),
        "duration": seconds[passed],
        "variant": np.where(snr < 15, "enhanced", "original"),
        "variant_reason": [f"clean enough: input_snr_db {value:.1f} >= 18" for value in snr],
    }
    bounds = {criterion.metric: (criterion.low, criterion.high) for criterion in profile().criteria}
    for name in sorted(MEASURED):
        low, high = bounds.get(name, (0.0, 1.0))
        scores[name] = random.normal((low + high) / 2, (high - low) / 5, rows)
    scores |= {"input_snr_db": snr, "input_clip_ratio": np.where(random.random(rows) < 0.9, 0.0, random.random(rows))}
    write_table(fill(ledger, LEDGER), folder / "ledger" / f"b-{number:06d}.enhance.parquet")
    write_table(pa.table(scores), folder / "scores" / f"b-{number:06d}.parquet")


def utterances(random: np.random.Generator, number: int) -> np.ndarray:
    """Keys of utterances. One in a hundred is one of 100,000 that all batches share."""
    keys = digits(np.random.default_rng([number, 2]).bytes(12 * BATCH), 24).to_numpy(zero_copy_only=False)
    common = random.random(BATCH) < REPEATS
    keys[common] = [f"{key * 7919:024x}" for key in random.integers(0, 100_000, int(common.sum()))]
    return keys


def make_held_out_list(folder: Path, batches: int) -> None:
    """Another run, `folder/listed`: one clip in a hundred of this one is in its test split."""
    clips = {"id": [], "state": [], "source_split": [], "pcm_sha256": [], "utterance": []}
    for number in range(batches):
        keys = digits(np.random.default_rng([number, 2]).bytes(12 * BATCH), 24)
        clips["pcm_sha256"] += hashes_of(number)[: BATCH // 200].tolist()
        clips["utterance"] += keys[-BATCH // 200 :].to_pylist()
    rows = len(clips["utterance"])
    clips |= {"id": [f"{row:024x}" for row in range(rows)], "state": ["passed"] * rows, "source_split": ["test"] * rows}
    write_table(pa.table(clips), folder / "listed" / "ledger" / "b-000000.enhance.parquet")


def hashes_of(batch: int) -> np.ndarray:
    return np.array(digits(np.random.default_rng([batch, 1]).bytes(32 * BATCH), 64).to_pylist(), object)


def digits(data: bytes, length: int) -> pa.StringArray:
    """Bytes as strings of so many hex digits."""
    text = data.hex().encode()
    offsets = np.arange(0, len(text) + 1, length, dtype=np.int32)
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(text))


def fill(columns: dict, schema: pa.Schema) -> pa.Table:
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(BATCH, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


@functools.cache
def profile() -> FrozenProfile:
    folder = Path(__file__).resolve().parents[1] / "config" / "ranking"
    return freeze(load_profile(folder / "asr.yaml", folder, all_metrics()), MEASURED, None)


# What the scripts of the workflow do, over all batches


def duplicates(folder: Path) -> None:
    from speechmill.dedup.exact import find_duplicates

    find_duplicates(files(folder, "ledger"), folder / "duplicates.parquet")


def held_out(folder: Path) -> None:
    from speechmill.dedup.held_out import find_held_out

    lists = [{"path": str(folder / "listed"), "splits": ["test"]}]
    print(find_held_out(files(folder, "ledger"), lists, folder / "held_out.parquet"))


def rank(folder: Path) -> None:
    from speechmill.ranking.rank_run import Lists, RunRanking
    from speechmill.tables.rows_by_id import RowsById

    near = pa.table({"id": pa.array([], pa.string()), "near_duplicate_of": pa.array([], pa.string())})
    tables = [*(pq.read_table(folder / f"{name}.parquet") for name in ("duplicates", "held_out")), near]
    batches = [path.name.removesuffix(".enhance.parquet") for path in files(folder, "ledger")]
    nothing = {"clips": [], "speakers": []}
    job = RunRanking(folder, profile(), Lists(*map(RowsById, tables)), nothing, lambda batch: (BATCH, None))
    print(job.rank_all(batches, os.cpu_count() or 1))


def advice(folder: Path) -> None:
    from speechmill.ranking.advice import advise

    write_json(folder / "advice.json", advise(files(folder, "ranking"), profile()))


def report(folder: Path) -> None:
    from speechmill.report.page import make_report

    make_report(
        files(folder, "ranking"),
        files(folder, "enhanced"),
        profile(),
        read_json(folder / "advice.json"),
        {},
        CONFIG,
        {},
        [],
        {},
        *(folder / "report" / name for name in ("report.html", "summary.json", "ranking.parquet", "plots")),
    )


def rerank(folder: Path) -> None:
    from speechmill.analysis.rerank import preview
    from speechmill.analysis.rerank_text import preview_text

    write_json(folder / "preflight.json", {"metrics": MEASURED})
    write_json(folder / "ranking" / "profile.json", profile().to_json())
    print(preview_text(preview(folder, threshold=0.6, weights={"noise": 0.4})))


def make_other_run(folder: Path) -> None:
    """The same run in `folder/other`, but with another SNR of all clips and one in a hundred of them not accepted."""
    summary = read_json(folder / "report" / "summary.json")
    other = folder / "other" / "report"
    with (
        pq.ParquetFile(folder / "report" / "ranking.parquet") as file,
        table_writer(file.schema_arrow, other / "ranking.parquet", row_group_size=ROW_GROUP) as writer,
    ):
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            states = np.array(table["state"].to_pylist(), object)
            flipped = np.flatnonzero(states == "accepted")[::100]
            states[flipped] = "rejected"
            for state, sign in (("accepted", -1), ("rejected", 1)):
                summary["clips"][state] += sign * len(flipped)
            changed = {"state": pa.array(states), "snr_db": pc.add(table["snr_db"], 0.5)}
            for name, values in changed.items():
                table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
            writer.write_table(table)
    write_json(other / "summary.json", summary)


def compare(folder: Path) -> None:
    from speechmill.analysis.compare import compare
    from speechmill.analysis.compare_text import comparison_text

    print(comparison_text(compare(folder, folder / "other")))


def files(folder: Path, stage: str) -> list[Path]:
    return sorted((folder / stage).glob("*.parquet"))


def make_examples(folder: Path) -> None:
    """Enhanced shards with the clips that the report plays, and no others."""
    from speechmill.audio.encode import encode_flac
    from speechmill.report.audit_sample import choose_audit
    from speechmill.report.examples import choose

    audio = {"bytes": encode_flac(np.sin(np.arange(80_000) / 20).astype(np.float32) / 4, 16_000), "path": "clip.flac"}
    settings = CONFIG["report"]
    groups = choose(files(folder, "ranking"), settings["examples"], settings["rejected_examples"])
    rows = [row for group in groups.values() for row in group]
    heard = [folder / "ranking" / f"{batch}.parquet" for batch in sorted({row["batch"] for row in rows})]
    rows += [one["row"] for one in choose_audit(heard, settings["audit"])]
    for batch in {row["batch"] for row in rows}:
        clips = [{"id": name, "audio": audio} for name in {row["id"] for row in rows if row["batch"] == batch}]
        write_table(pa.Table.from_pylist(clips, schema=ENHANCED), folder / "enhanced" / f"{batch}.parquet")


STEPS = {
    step.__name__: step
    for step in (duplicates, held_out, rank, advice, report, rerank, make_examples, make_other_run, compare)
}


def tables(folder: Path, clips: int, table: Table) -> None:
    for name in ("ledger", "scores", "ranking", "enhanced"):
        (folder / name).mkdir()
    batches = max(1, clips // BATCH)
    with multiprocessing.get_context("spawn").Pool() as pool:
        pool.starmap(make_batch, [(folder, number) for number in range(batches)], chunksize=4)
    make_held_out_list(folder, batches)
    due = clips <= 10_000_000  # the targets for seconds are for so many
    together = 0.0
    for step in ("duplicates", "held_out", "rank", "advice", "make_examples", "report"):
        found = cost([sys.executable, __file__, step, str(folder)], folder)
        if step != "make_examples":
            together += found.seconds
            table.cost(f"{step}, {clips:,} clips", found, 60 if due else None, 2000)
    table.row("together", f"{together:.1f} s", "60 s" if due else "", not due or together < 60)
    found = cost([sys.executable, __file__, "rerank", str(folder)], folder)
    table.cost(f"preview of another threshold and weight, {clips:,} clips", found, 60 if due else None, 2000)
    cost([sys.executable, __file__, "make_other_run", str(folder)], folder)
    found = cost([sys.executable, __file__, "compare", str(folder)], folder)
    table.cost(f"compare with another run, {clips:,} clips each", found, 120 if due else None, 2000)


if __name__ == "__main__":
    STEPS[sys.argv[1]](Path(sys.argv[2]))
