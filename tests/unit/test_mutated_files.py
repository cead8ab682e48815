"""Mutated files, a thousand for each reader: each ends as clips, as their errors or as one named SourceError, in bounded
time and memory. DRAWS=N: N times as many."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from speechmill.audio.decode import DecodeLimits, decode, read_header
from speechmill.errors import ClipError, ClipRejection, SourceError
from speechmill.sources import BatchPlan, open_source
from speechmill.sources.archives import TarStream
from speechmill.sources.columns import clip_table
from speechmill.sources.metadata import read_metadata

from .. import corpora
from ..corpora import configured, speech
from .av_samples import FORMATS, encode

DRAWS = 1000 * int(os.environ.get("DRAWS", "1"))
SECONDS = 2.0  # of CPU, for one file
MEGABYTES = 500  # above what the process had
LIMITS = DecodeLimits(max_seconds=20, max_bytes=1 << 24, max_channels=8)
SPECIAL = (
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"\0" * 8,
    b"\x80",
    b'"',
    b"\n",
    b"[" * 50,
    b"{",
    b"\\ud83d",
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes set, cut out, repeated, moved or cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size = len(changed)
        # headers, and the footer of a Parquet file, are more interesting than what is between
        near = rng.choice((64, 512, size or 1, size or 1))
        at = (
            rng.randrange(min(near, size) or 1)
            if rng.random() < 0.7
            else max(0, size - 1 - rng.randrange(min(near, size) or 1))
        )
        match rng.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                value = rng.choice(SPECIAL)
                changed[at : at + len(value)] = value
            case 2:
                del changed[at : at + rng.choice((1, 4, 100, 5000))]
            case 3:
                changed[at:at] = changed[at : at + rng.choice((1, 8, 512, 3000))]
            case 4:
                changed[at:at] = rng.choice(SPECIAL) * rng.choice((1, 100))
            case 5:
                changed = changed[:at]
            case 6:
                changed[at : at + 4] = rng.randrange(1 << 32).to_bytes(4, rng.choice(("little", "big")))
    return bytes(changed)


def feed(name: str, originals: list[bytes], read: Callable[[bytes], object], draws: int = DRAWS) -> Counter[str]:
    """Read mutations of each of `originals` in turn; count the outcomes."""
    rng = random.Random(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: Counter[str] = Counter()
    for draw in range(draws):
        data = mutated(originals[draw % len(originals)], rng)
        begin, message = time.thread_time(), ""
        try:
            read(data)
            found["read"] += 1
        except (ClipError, ClipRejection, SourceError) as error:
            found[type(error).__name__] += 1
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{name}, draw {draw}: {type(error).__name__}: {error}") from error
        assert message.replace("\n", "").isprintable(), (name, draw, message)
        took = time.thread_time() - begin
        assert took < SECONDS, f"{name}, draw {draw}: {took:.1f} s"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < MEGABYTES, f"{name}: {grown} MB"
    return found


def short(kind: str, subtype: str | None = None, rate: int = 16000) -> bytes:
    memory = io.BytesIO()
    soundfile.write(memory, speech(0)[:4000], rate, format=kind, subtype=subtype)
    return memory.getvalue()


@cache
def flac() -> bytes:
    return short("FLAC")


def audio(data: bytes) -> None:
    with contextlib.suppress(ClipError):
        read_header(data)
    decode(data, LIMITS)


SNDFILE = {
    "wav": ("WAV", "PCM_16"), "float": ("WAV", "FLOAT"), "adpcm": ("WAV", "MS_ADPCM"), "rf64": ("RF64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"), "vorbis": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"), "caf": ("CAF", "ALAC_16"), "w64": ("W64", "PCM_16"), "au": ("AU", "PCM_16"),
    "nist": ("NIST", "PCM_16"),
}  # fmt: skip


@pytest.mark.parametrize("formats", [("wav", "float", "adpcm", "rf64", "aiff", "caf", "w64", "au", "nist"), ("flac", "vorbis", "opus"), ("mp3",)])  # fmt: skip
def test_libsndfile(formats):
    originals = [short(*SNDFILE[name], 48000 if name == "opus" else 16000) for name in formats]
    found = feed("sndfile " + " ".join(formats), originals, audio)
    assert found["read"] < sum(found.values())


@pytest.mark.parametrize("part", range(2))
def test_ffmpeg(part):
    originals = [encode(name, seconds=0.3) for name in [*FORMATS][part::2]]
    found = feed(f"ffmpeg {part}", originals, audio)
    assert found["read"] < sum(found.values())


def clips_of(tmp_path: Path, kind: str, file: str, **source: object) -> Callable[[bytes], None]:
    """What reads one file of a source to its end, as the enhance job does."""
    reader = open_source(configured(tmp_path, kind, path=str(tmp_path), **source))

    def read(data: bytes) -> None:
        (tmp_path / file).write_bytes(data)
        rows = None
        if kind == "parquet":
            rows = reader.list_files().files[0].rows
        clips = list(reader.read(BatchPlan("b", file, rows=rows), None, Counter()))
        clip_table([row for row, _ in clips])  # what the job writes
        places = [(row.get("source_row"), row.get("source_member")) for row, _ in clips]
        assert len(set(places)) == len(places)

    return read


def members() -> list[tuple[str, bytes]]:
    described = [json.dumps({"text": f"text {n}", "n": n, "nested": [[1]]}).encode() for n in range(3)]
    return [(f"a/{n}.{x}", flac() if x == "flac" else described[n]) for n in range(3) for x in ("flac", "json")]


def archive(tmp_path: Path, name: str) -> bytes:
    corpora.tar(tmp_path / name, members())
    return (tmp_path / name).read_bytes()


def test_tar(tmp_path):
    def read(data: bytes) -> None:
        (tmp_path / "x.tar").write_bytes(data)
        for wanted in (None, lambda name, size: name.endswith("json")):
            stream = TarStream(tmp_path / "x.tar", 1 << 20, wanted=wanted)
            list(stream)
            assert stream.problem is None or stream.problem.isprintable()

    feed("tar", [archive(tmp_path, "a.tar"), archive(tmp_path, "a.tar.gz")], read)


def test_webdataset(tmp_path):
    source = tmp_path / "w"
    source.mkdir()
    feed(
        "webdataset",
        [archive(tmp_path, "a.tar"), archive(tmp_path, "b.tar.gz")],
        clips_of(source, "webdataset", "x.tar"),
    )


def test_parquet(tmp_path):
    originals = []
    for compression in ("none", "zstd", "snappy"):
        audio_of = [{"bytes": flac(), "path": f"{n}.flac"} for n in range(4)]
        column = pa.array(audio_of, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        table = pa.table(
            {"audio": column, "text": [f"text {n}" for n in range(4)], "at": pa.array(range(4), pa.timestamp("us"))}
        )
        memory = io.BytesIO()
        pq.write_table(table, memory, row_group_size=2, compression=compression)
        originals.append(memory.getvalue())
    source = tmp_path / "p"
    source.mkdir()
    feed("parquet", originals, clips_of(source, "parquet", "x.parquet"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_tables(tmp_path, suffix):
    rows = [["path", "text", "age"], *([f"{n}.flac", f'he said "{n}", ไทย', str(n)] for n in range(20))]
    if suffix == "jsonl":
        content = "\n".join(
            json.dumps(dict(zip(rows[0], row, strict=True)), ensure_ascii=n % 2 > 0) for n, row in enumerate(rows[1:])
        )
    elif suffix == "csv":
        content = "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    else:
        content = "\n".join("\t".join(row) for row in rows)

    def read(data: bytes) -> None:
        file = tmp_path / f"m.{suffix}"
        file.write_bytes(data)
        found = read_metadata(file, "path", ["utf-8", "tis-620"])
        for note in found.notes():
            note.encode()

    found = feed(f"table {suffix}", [content.encode()], read)
    assert found["read"] > 0.2 * DRAWS


def test_common_voice(tmp_path):
    header = "\t".join(corpora.COLUMNS.split())
    lines = ["\t".join(["s", f"{n}.mp3", "s", f'text "{n}', *[""] * 9]) for n in range(5)]
    clip = short("MP3", "MPEG_LAYER_III")
    packed = [(f"cv-corpus-1/th/clips/{n}.mp3", clip) for n in range(3)]
    corpora.tar(tmp_path / "cv.tar", [*packed, ("cv-corpus-1/th/validated.tsv", "\n".join([header, *lines]).encode())])
    config = configured(tmp_path, "common_voice", path=str(tmp_path / "x.tar"))

    def read(data: bytes) -> None:
        (tmp_path / "x.tar").write_bytes(data)
        source = open_source(config)
        for plan in source.plan(source.list_files(), 100, []):
            list(source.read(plan, None, Counter()))

    feed("common voice", [(tmp_path / "cv.tar").read_bytes()], read, DRAWS // 4)


def test_gigaspeech2(tmp_path):
    corpora.gigaspeech2(tmp_path / "g", archives=1, clips=2)
    table = tmp_path / "g" / "data" / "th" / "train_refined.tsv"
    original = table.read_bytes()
    config = configured(tmp_path, "gigaspeech2", path=str(tmp_path / "g"), language="th", splits=["train"])

    def read(data: bytes) -> None:
        table.write_bytes(data)
        source = open_source(config)
        for plan in source.plan(source.list_files(), 100, []):
            list(source.read(plan, None, Counter()))

    feed("gigaspeech2", [original], read, DRAWS // 4)


def test_lhotse_shar(tmp_path):
    lhotse = pytest.importorskip("lhotse", reason="needs lhotse: pip install 'speechmill[lhotse]'")
    source = tmp_path / "s"
    source.mkdir()
    soundfile.write(tmp_path / "a.wav", speech(0)[:4000], 16000)
    cuts = [lhotse.Recording.from_file(tmp_path / "a.wav").to_cut().with_id(f"c{n}") for n in range(3)]
    lhotse.CutSet.from_cuts(cuts).to_shar(str(source), fields={"recording": "flac"})
    file = next(source.glob("cuts.*"))
    original = gzip.decompress(file.read_bytes())
    reader = open_source(configured(tmp_path, "lhotse_shar", path=str(source)))
    recording = next(source.glob("recording.*"))

    def read(data: bytes) -> None:
        file.write_bytes(gzip.compress(data, 1))
        clips = list(reader.read(BatchPlan("b", recording.name), None, Counter()))
        clip_table([row for row, _ in clips])

    feed("lhotse cuts", [original], read, DRAWS // 4)
    file.write_bytes(gzip.compress(original))
    whole = recording.read_bytes()

    def read_archive(data: bytes) -> None:
        recording.write_bytes(data)
        clips = list(reader.read(BatchPlan("b", recording.name), None, Counter()))
        assert len(clips) == len(cuts)
        clip_table([row for row, _ in clips])

    feed("lhotse archive", [whole], read_archive, DRAWS // 4)
