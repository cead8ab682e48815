"""The part `tables` of scale.py: synthetic ledgers and scores, and each stage over them in a process of its own.

Ranking is a map over batches: the workflow starts a process per batch, here a process per core ranks them all.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.files import read_json, write_json
from speechmill.metrics import ENHANCE_METRICS, GROUP_METRICS, SETS, all_metrics
from speechmill.ranking.profile import FrozenProfile, freeze, load_profile
from speechmill.report.summary import ROW_GROUP
from speechmill.shards import ENHANCED, LEDGER, MANIFEST, table_writer, write_table

if TYPE_CHECKING:
    from scale import Table

BATCH = 10_000
REPEATS = 0.01  # of the clips repeat one of the batch before
STATES = {"passed": 0.93, "rejected": 0.05, "errored": 0.02}
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
    """Manifest, ledger and scores of one batch; its values are spread about the middle of what the profile tells apart."""
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
    who = {"id": ids, "source": ["synthetic"] * BATCH, "source_id": names, "source_file": names}
    manifest = {
        **who,
        "text": [f"คำพูดของผู้พูด {row * 7919 % 100_003}" for row in range(BATCH)],
        "language": ["th"] * BATCH,
        "speaker_id": [f"s{v}" for v in random.integers(0, 999, BATCH)],
        "license": ["CC0-1.0"] * BATCH,
    }
    ledger = {
        **who,
        "state": states,
        "criterion": np.where(states == "rejected", "speech_s", None),
        "value": np.where(states == "rejected", 0.1, None),
        "threshold": np.where(states == "rejected", 0.25, None),
        "error_class": np.where(states == "errored", "truncated", None),
        "message": np.where(passed, None, "as it was found"),
        "input_duration": seconds,
        "input_sha256": hashes,
        "pcm_sha256": np.where(passed, hashes, None),
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
    name = f"b-{number:06d}.parquet"
    write_table(fill(manifest, MANIFEST), folder / "manifest" / name)
    write_table(fill(ledger, LEDGER), folder / "ledger" / name)
    write_table(pa.table(scores), folder / "scores" / name)


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
    from speechmill.duplicates import find_duplicates

    find_duplicates(files(folder, "ledger"), folder / "duplicates.parquet")


def rank(folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool() as pool:
        pool.starmap(rank_one, [(folder, path.stem) for path in files(folder, "ledger")], chunksize=4)


def rank_one(folder: Path, batch: str) -> None:
    from speechmill.duplicates import rows_among
    from speechmill.ledger import check_batch
    from speechmill.ranking.decide import rank_batch

    ledger, clips, scores = (
        pq.ParquetFile(folder / stage / f"{batch}.parquet").read() for stage in ("ledger", "manifest", "scores")
    )
    repeats = rows_among(clips["id"], folder / "duplicates.parquet")
    ranking = rank_batch(ledger, clips, scores, repeats, profile(), batch)
    check_batch(clips["id"], ledger, ranking, batch)
    write_table(ranking, folder / "ranking" / f"{batch}.parquet")


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
    from speechmill.rerank import preview
    from speechmill.rerank_text import preview_text

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
    from speechmill.compare import compare
    from speechmill.comparison_text import comparison_text

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
    step.__name__: step for step in (duplicates, rank, advice, report, rerank, make_examples, make_other_run, compare)
}


def tables(folder: Path, clips: int, table: Table) -> None:
    from scale import cost

    for name in ("manifest", "ledger", "scores", "ranking", "enhanced"):
        (folder / name).mkdir()
    with multiprocessing.get_context("spawn").Pool() as pool:
        pool.starmap(make_batch, [(folder, number) for number in range(max(1, clips // BATCH))], chunksize=4)
    due = clips <= 10_000_000  # the targets for seconds are for so many
    together = 0.0
    for step in ("duplicates", "rank", "advice", "make_examples", "report"):
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
