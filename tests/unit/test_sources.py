"""Folder and Parquet sources, and the manifest that is made of them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from speechmill.audio.decode import DecodeLimits, decode
from speechmill.config import validate_config
from speechmill.errors import ClipError, SourceError
from speechmill.sources import open_source
from speechmill.sources.manifest import build_manifest, clip_id, describe_source, read_batch
from speechmill.tables.batches import read_batches

from .. import corpora
from ..corpora import list_and_read
from .test_config import CONFIG


def wav(seconds=1.0, seed=0, rate=8000, format="WAV"):
    data = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate))
    soundfile.write(data, noise, rate, format=format, subtype="PCM_16")
    return data.getvalue()


def make(tmp_path, kind="folder", batch_size=2, **source):
    section = {"kind": kind, "path": str(tmp_path / "corpus"), **source}
    config = {"dataset": "x", "outdir": str(tmp_path / "results"), "source": section, "batch_size": batch_size}
    return validate_config(config, CONFIG)


def run(config, directory):
    """List the source and build its manifest; batch id -> clip table."""
    source = open_source(config)
    description = describe_source(source, config)
    notes = build_manifest(source, description, config, directory / "manifest")
    batches = [row["batch"] for row in read_batches(directory / "manifest" / "batches.tsv")]
    tables = {b: read_batch(directory / "manifest" / f"{b}.json")[1] for b in batches}
    return description, tables, notes


@pytest.fixture
def folder(tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "ย่อย โฟลเดอร์").mkdir(parents=True)
    (corpus / "a.wav").write_bytes(wav(1.0, 1))
    (corpus / "ย่อย โฟลเดอร์" / "เสียง ไทย.flac").write_bytes(wav(2.0, 2, format="FLAC"))
    (corpus / "c.wav").write_bytes(b"no audio at all")
    (corpus / "notes.txt").write_text("passed over")
    (corpus / ".hidden.wav").write_bytes(wav())
    return tmp_path


def test_folder_lists_clips_with_durations_by_header(folder):
    description, tables, _ = run(make(folder), folder)
    assert [f["path"] for f in description["files"]] == ["a.wav", "c.wav", "ย่อย โฟลเดอร์/เสียง ไทย.flac"]
    assert "1 files passed over: .txt" in description["notes"]
    rows = [row for table in tables.values() for row in table.to_pylist()]
    assert list(tables) == ["clips-00000", "clips-00001"]
    assert [row["header_duration"] for row in rows] == [1.0, None, 2.0]
    assert rows[0]["id"] == clip_id("x", "a.wav", None)
    assert rows[2]["source_id"] == "ย่อย โฟลเดอร์/เสียง ไทย.flac"


def test_a_grown_folder_adds_batches_and_changes_none(folder):
    config = make(folder)
    run(config, folder)
    manifest = folder / "manifest"
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in manifest.iterdir() if p.name != "batches.tsv"}
    (folder / "corpus" / "0-sorts-first.wav").write_bytes(wav(1.0, 3))
    _, tables, _ = run(config, folder)
    assert list(tables) == ["clips-00000", "clips-00001", "clips-00002"]
    assert tables["clips-00002"]["source_file"].to_pylist() == ["0-sorts-first.wav"]
    assert {name: ((manifest / name).read_bytes(), (manifest / name).stat().st_mtime_ns) for name in before} == before


def test_a_changed_file_changes_only_its_batch_and_a_removed_one_leaves(folder):
    config = make(folder)
    _, before, _ = run(config, folder)
    (folder / "corpus" / "a.wav").write_bytes(wav(1.5, 9))
    _, after, _ = run(config, folder)
    assert after["clips-00000"]["header_duration"].to_pylist() == [1.5, None]
    assert after["clips-00001"].equals(before["clips-00001"])
    (folder / "corpus" / "ย่อย โฟลเดอร์" / "เสียง ไทย.flac").unlink()
    _, gone, _ = run(config, folder)
    assert list(gone) == ["clips-00000"]
    assert not (folder / "manifest" / "clips-00001.json").exists()


def test_a_torn_batch_file_is_made_anew(folder):
    config = make(folder)
    _, before, _ = run(config, folder)
    (folder / "manifest" / "clips-00000.parquet").write_bytes(b"PAR1 torn")
    (folder / "manifest" / "clips-00001.json").write_text("{")
    _, after, _ = run(config, folder)
    assert sorted(i for t in after.values() for i in t["id"].to_pylist()) == sorted(
        i for t in before.values() for i in t["id"].to_pylist()
    )


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl"])
def test_metadata_is_joined_by_path(folder, suffix):
    rows = [
        {"path": "a.wav", "sentence": 'he said "so', "locale": "en", "client_id": "s1", "age": "20"},
        {"path": "./ย่อย โฟลเดอร์/เสียง ไทย.flac", "sentence": "สวัสดีครับ", "locale": "th", "client_id": "s2", "age": ""},
        {"path": "nowhere.wav", "sentence": "x", "locale": "", "client_id": "", "age": ""},
    ]
    file = folder / f"meta.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows) + "not json\n")
    else:
        mark = "\t" if suffix == "tsv" else ","
        cell = (lambda v: v) if suffix == "tsv" else (lambda v: '"' + v.replace('"', '""') + '"')
        file.write_text("\n".join(mark.join(map(cell, r)) for r in [list(rows[0]), *(r.values() for r in rows)]) + "\n")
    described, tables, notes = run(make(folder, metadata=str(file), language="und", license="CC0-1.0"), folder)
    clips = {row["source_file"]: row for table in tables.values() for row in table.to_pylist()}
    first = clips["a.wav"]
    assert (first["text"], first["language"], first["speaker_id"]) == ('he said "so', "en", "s1")
    assert (first["license"], json.loads(first["extra"])) == ("CC0-1.0", {"age": "20"})
    assert clips["ย่อย โฟลเดอร์/เสียง ไทย.flac"]["text"] == "สวัสดีครับ"
    assert (clips["c.wav"]["text"], clips["c.wav"]["language"]) == (None, "und")
    assert any("1 metadata rows name no file" in note for note in notes)
    file.write_text(file.read_text().replace("en", "fr"))
    changed, again, _ = run(make(folder, metadata=str(file), license="CC0-1.0"), folder)
    assert changed["metadata_sha256"] != described["metadata_sha256"]
    assert again["clips-00000"]["language"][0].as_py() == "fr"
    assert any("1 files have no metadata row" in note for note in notes)
    assert any("unusable" in note for note in notes) == (suffix == "jsonl")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"file\tsentence\na.wav\tx\n", "no column 'path'"),
        (b"path\n\xff\xfe\n", "No row is usable.*line 2: the text is not valid in utf-8"),
    ],
)
def test_unusable_metadata_is_named(folder, content, expected):
    file = folder / "meta.tsv"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=expected):
        run(make(folder, metadata=str(file)), folder)


def test_an_empty_folder_is_one_clear_message(tmp_path):
    (tmp_path / "corpus").mkdir()
    with pytest.raises(SourceError, match="no audio file found"):
        run(make(tmp_path), tmp_path)


def test_the_fingerprint_follows_files_and_metadata(folder):
    meta = folder / "meta.tsv"
    meta.write_text("path\na.wav\n")
    config = make(folder, metadata=str(meta))
    seen = [open_source(config).fingerprint()]
    assert open_source(config).fingerprint() == seen[0]
    meta.write_text("path\ttext\na.wav\thello\n")
    seen.append(open_source(config).fingerprint())
    (folder / "corpus" / "d.wav").write_bytes(wav())
    seen.append(open_source(config).fingerprint())
    assert len(set(seen)) == 3


def parquet_file(path, clips, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = [None if c is None else {"bytes": c, "path": f"clip{i}.wav"} for i, c in enumerate(clips)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"audio": pa.array(audio, kind), **columns}), path, row_group_size=2)


def test_parquet_rows_are_clips_in_ranges_of_one_file(tmp_path):
    clips = [wav(0.5 + i / 10, i) for i in range(7)]
    parquet_file(tmp_path / "corpus" / "train-00000-of-00002.parquet", clips, sentence=[f"s{i}" for i in range(7)])
    parquet_file(tmp_path / "corpus" / "test-00000-of-00001.parquet", [clips[0], None], sentence=["a", "b"])
    read, *_ = list_and_read(make(tmp_path, "parquet", batch_size=3))
    assert sorted(map(len, read.values())) == [1, 2, 3, 3]
    seen = [clip for batch in read.values() for clip in batch]
    assert len({(row["source_file"], row["source_row"]) for row, _ in seen}) == 9
    for row, data in seen:
        if row["source_file"].startswith("test") and row["source_row"] == 1:
            assert isinstance(data, ClipError)
            assert data.error_class == "no_bytes"
        else:
            assert data == clips[row["source_row"]]
            assert row["size"] == len(data)
        assert row["source_split"] == row["source_file"].split("-")[0]


def test_a_new_parquet_file_changes_no_other_batch(tmp_path):
    parquet_file(tmp_path / "corpus" / "b.parquet", [wav(), wav(2)])
    config = make(tmp_path, "parquet")
    _, before, _ = run(config, tmp_path)
    (old,) = (tmp_path / "manifest").glob("b-*.json")
    content = old.read_bytes(), old.stat().st_mtime_ns
    parquet_file(tmp_path / "corpus" / "a.parquet", [wav(1, 5)])
    _, after, _ = run(config, tmp_path)
    assert len(after) == 2
    assert before.keys() < after.keys()
    assert (old.read_bytes(), old.stat().st_mtime_ns) == content


def test_other_columns_or_another_licence_change_the_batches_of_a_parquet_file(tmp_path):
    """They are applied when the rows are read: the batch has to say so, or its job would not be repeated."""
    parquet_file(tmp_path / "corpus" / "b.parquet", [wav()], said=["x"])
    seen = []
    for settings in ({}, {"license": "CC0-1.0"}, {"columns": {"text": "said"}}, {"language": "th"}):
        run(make(tmp_path, "parquet", **settings), tmp_path)
        seen.append(next((tmp_path / "manifest").glob("b-*.json")).read_bytes())
    assert len(set(seen)) == 4


def test_parquet_glob_single_file_and_plain_bytes(tmp_path):
    path = tmp_path / "corpus" / "x.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"wave": pa.array([wav()], pa.large_binary())}), path)
    for where in (str(path), str(tmp_path / "corp*" / "*.parquet")):
        read, *_ = list_and_read(make(tmp_path, "parquet", path=where))
        assert [data for batch in read.values() for _, data in batch] == [wav()]


def test_parquet_of_mixed_codecs_and_of_decoded_samples(tmp_path):
    """Codec and rate are the row's own business; half-precision arrays, which some tools write, become floats."""
    corpora.parquet(tmp_path / "corpus" / "mixed.parquet", rows=8)
    corpora.parquet(tmp_path / "corpus" / "half.parquet", rows=2, samples=np.float16)
    read, *_ = list_and_read(make(tmp_path, "parquet", batch_size=8))
    by_file = {batch[0][0]["source_file"]: batch for batch in read.values()}
    limits = DecodeLimits(60, 1 << 28, 8)
    decoded = [decode(data, limits) for _, data in by_file["mixed.parquet"]]
    assert [d.sampling_rate for d in decoded] == [16000, 48000, 22050, 48000] * 2
    assert [d.codec.split("/")[0] for d in decoded] == ["WAV", "MP3", "FLAC", "OGG"] * 2
    for number, (_, data) in enumerate(by_file["half.parquet"]):
        assert np.abs(decode(data, limits).samples - corpora.speech(number)).max() < 1e-3


def test_unusable_parquet_files_are_all_named(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "bad.parquet").write_bytes(b"nothing")
    pq.write_table(pa.table({"text": ["x"]}), corpus / "noaudio.parquet")
    with pytest.raises(SourceError) as caught:
        run(make(tmp_path, "parquet"), tmp_path)
    assert "bad.parquet" in str(caught.value)
    assert "noaudio.parquet" in str(caught.value)


def test_batch_ids_are_safe_whatever_the_files_are_called(tmp_path):
    parquet_file(tmp_path / "corpus" / "ไทย ; rm -rf $HOME `x`" / "e v i l..parquet", [wav()])
    _, tables, _ = run(make(tmp_path, "parquet"), tmp_path)
    (batch,) = tables
    assert set(batch) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
