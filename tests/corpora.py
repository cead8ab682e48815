"""Small corpora of real speech in the layouts that the real ones have, with the defects that they have."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr

from speechmill.config import validate_config
from speechmill.sources import Clip, open_source
from speechmill.sources.manifest import build_manifest, describe_source, plan_of, read_batch
from speechmill.tables.batches import read_batches

from .runs import ROOT, SPEECH

PROMPTS = sorted(SPEECH.rglob("*.flac"))
THAI = ("สวัสดีครับ", "วันนี้อากาศดีมาก", "ต่าง ๆ นานา ๑๒๓", "น้ำใสสะอาด", 'เขาบอกว่า "ไป', "ขอบคุณ")


def speech(number: int) -> np.ndarray:
    """A prompt of the demo, float32 (n,) at 16 kHz."""
    return soundfile.read(PROMPTS[number % len(PROMPTS)], dtype="float32")[0]


def encoded(number: int, kind: str = "WAV", rate: int = 16000) -> bytes:
    """A prompt as a file of another codec or rate."""
    samples = speech(number)
    if rate != 16000:
        samples = soxr.resample(samples, 16000, rate)
    memory = io.BytesIO()
    subtype = "PCM_16" if kind in ("WAV", "FLAC") else None
    soundfile.write(memory, np.clip(samples, -1, 1), rate, format=kind, subtype=subtype)
    return memory.getvalue()


def tar(path: Path, members: Iterable[tuple[str, bytes] | tarfile.TarInfo], cut: float | None = None) -> None:
    """A tar archive, gzipped if its name says so, without times; `cut` keeps so much of its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    data = memory.getvalue()
    data = gzip.compress(data, 1, mtime=0) if path.name.endswith("gz") else data
    path.write_bytes(data if cut is None else data[: int(len(data) * cut)])


def gigaspeech2(root: Path, archives: int = 2, clips: int = 3, cut: float | None = None) -> None:
    """data/th as speechcolab/gigaspeech2 has it. In archive 0 a row has no audio and an audio no row; `cut` cuts the
    last training archive short."""
    folder = root / "data" / "th"
    raw, refined = [], []
    number = 0
    for a in range(archives):
        members = []
        for b in range(clips):
            name = f"{a}-{b}-{b + 7}"
            members.append((f"./{a}/{b}/{name}.wav", encoded(number)))
            raw.append(f"{name}\tดิบ {number}")
            refined.append(f"{name}\t{THAI[number % len(THAI)]}")
            number += 1
        if a == 0:
            members.append(("0/99/0-99-1.wav", encoded(number)))
            raw.append("0-99-1\tonly in raw")
            refined.append('0-98-1\tno audio, and "a quote')
        tar(folder / "train" / f"{a}.tar.gz", members, cut if a == archives - 1 else None)
    for split in ("dev", "test"):
        tar(folder / f"{split}.tar.gz", [(f"900/1/900-1-{split == 'test':d}.wav", encoded(number))])
        (folder / f"{split}.tsv").write_text(f"900-1-{split == 'test':d}\t{THAI[0]}\n", encoding="utf-8")
        number += 1
    (folder / "train_raw.tsv").write_text("\n".join(raw) + "\n", encoding="utf-8")
    (folder / "train_refined.tsv").write_text("\n".join(refined) + "\n", encoding="utf-8")
    (root / "README.md").write_text("---\nlicense: apache-2.0\n---\n")


COLUMNS = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
)


def common_voice(path: Path, release: str = "25.0-2026-03-09", clips: int = 8, tables_last: bool = True) -> None:
    """One release of a language: clips 0.. in validated, other and invalidated; one of them in dev, one in test."""
    base = f"cv-corpus-{release}/th"
    name = "common_voice_th_{}.mp3".format
    audio = [(f"{base}/clips/{name(n)}", encoded(n, "MP3", (32000, 48000)[n % 2])) for n in range(clips) if n != 6]
    audio.append((f"{base}/clips/{name('stray')}", encoded(clips, "MP3", 48000)))

    def row(n: int) -> str:
        cells = [f"speaker{n % 3}", name(n), "s1", THAI[n % len(THAI)], "", "2", "0", "twenties", "", "", "", "th", ""]
        return "\t".join(cells)

    header = "\t".join(COLUMNS.split())
    buckets = {
        "validated": [n for n in range(clips) if n % 4 != 3],
        "other": list(range(3, clips, 8)),
        "invalidated": list(range(7, clips, 8)),
        "train": [0, 1],
        "dev": [4],
        "test": [5],
    }
    tables = [
        (f"{base}/{bucket}.tsv", "\n".join([header, *map(row, numbers), ""]).encode())
        for bucket, numbers in buckets.items()
    ]
    durations = "".join(f"{name(n)}\t{len(speech(n)) / 16:.0f}\n" for n in range(clips))
    tables.append((f"{base}/clip_durations.tsv", f"clip\tduration[ms]\n{durations}".encode()))
    tar(path, [*audio, *tables] if tables_last else [*tables, *audio])


def webdataset(path: Path, first: int = 0, clips: int = 3, cut: float | None = None) -> None:
    """Samples of FLAC with JSON or text; one without audio, one with neither JSON nor text."""
    members: list[tuple[str, bytes]] = []
    for n in range(first, first + clips):
        members.append((f"part/{n:05d}.flac", encoded(n, "FLAC")))
        if n % 3 == 0:
            described = {"text": THAI[n % len(THAI)], "speaker": f"s{n % 2}", "age": 30}
            members.append((f"part/{n:05d}.json", json.dumps(described, ensure_ascii=False).encode()))
        elif n % 3 == 1:
            members.append((f"part/{n:05d}.txt", THAI[n % len(THAI)].encode()))
    members.append((f"part/silent{first}.txt", b"no audio here"))
    tar(path, members, cut)


def parquet(path: Path, first: int = 0, rows: int = 6, samples: type | None = None, **columns: list[Any]) -> None:
    """Rows of mixed rate and codec with an Audio column as `datasets` writes it, row groups of 2; or, with `samples`
    (np.float16), the decoded arrays that some tools write in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + rows)
    columns = {"sentence": [THAI[n % len(THAI)] for n in numbers], **columns}
    if samples is None:
        kinds = [("WAV", 16000), ("MP3", 48000), ("FLAC", 22050), ("OGG", 48000)]
        audio = [{"bytes": encoded(n, *kinds[n % 4]), "path": f"{n}.{kinds[n % 4][0].lower()}"} for n in numbers]
        column = pa.array(audio, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        features = {"audio": {"sampling_rate": 16000, "_type": "Audio"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    else:
        audio = [{"array": speech(n).astype(samples), "sampling_rate": 16000, "path": None} for n in numbers]
        kind = pa.list_(pa.from_numpy_dtype(samples))
        column = pa.array(audio, pa.struct([("array", kind), ("sampling_rate", pa.int64()), ("path", pa.string())]))
        metadata = {}
    table = pa.table({"audio": column, **columns}).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=2)


def configured(outdir: Path, kind: str, batch_size: int = 4, dataset: str = "x", **source: Any) -> dict[str, Any]:
    """A complete configuration."""
    config = {"dataset": dataset, "outdir": str(outdir), "batch_size": batch_size, "source": {"kind": kind, **source}}
    return validate_config(config, ROOT / "config")


def list_and_read(config: dict[str, Any]) -> tuple[dict[str, list[Clip]], Counter[str], dict[str, Any], list[str]]:
    """List a source on disk, make its manifest and read it all: clips by batch, what was passed over, source.json and
    the notes of the manifest."""
    source = open_source(config)
    manifest = Path(config["outdir"]) / config["dataset"] / "manifest"
    description = describe_source(source, config)
    notes = build_manifest(source, description, config, manifest)
    passed_over: Counter[str] = Counter()
    clips = {}
    for row in read_batches(manifest / "batches.tsv"):
        plan = plan_of(*read_batch(manifest / f"{row['batch']}.json"))
        clips[row["batch"]] = list(open_source(config).read(plan, None, passed_over))
    return clips, passed_over, description, notes
