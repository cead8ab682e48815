"""Corpora as people pack them again, and tables in other column types: read, or with what to do."""

from __future__ import annotations

import io
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechmill.errors import ClipError, SourceError

from .. import corpora
from ..corpora import configured, encoded, list_and_read

HEADER = "\t".join(corpora.COLUMNS.split())


def common_voice(tmp_path, clip, table, path):
    row = "\t".join(["spk", path, "s", "สวัสดี", *[""] * 9])
    members = [(clip, encoded(0, "MP3")), (table, f"{HEADER}\n{row}\n".encode())]
    for order in (members, members[::-1]):
        corpora.tar(tmp_path / "cv.tar.gz", order)
        clips, _, _, notes = list_and_read(configured(tmp_path, "common_voice", path=str(tmp_path / "cv.tar.gz")))
        [[(row, data)]] = clips.values()
        yield row["text"], data, notes


@pytest.mark.parametrize(
    ("clip", "table", "path"),
    [
        ("./clips/x.mp3", "./validated.tsv", "x.mp3"),  # tar -C th -czf cv.tar.gz .
        ("clips/x.mp3", "validated.tsv", "x.mp3"),
        ("th/clips/x.mp3", "th/validated.tsv", "x"),  # paths without .mp3, as in old releases
        ("cv-corpus-1/th/clips/x.mp3", "cv-corpus-1/th/validated.tsv", "clips/x.mp3"),
        ("data/th/clips/x.mp3", "validated.tsv", "x.mp3"),  # tables beside the folder
        ("clips/x.mp3", "tables/validated.tsv", "x.mp3"),
        ("audio/x.mp3", "validated.tsv", "x.mp3"),
        ("x.mp3", "validated.tsv", "x"),
        ("clips/x.wav", "validated.tsv", "x.mp3"),  # converted
    ],
)
def test_common_voice_packed_again(tmp_path, clip, table, path):
    for text, data, notes in common_voice(tmp_path, clip, table, path):
        assert (text, data, notes) == ("สวัสดี", encoded(0, "MP3"), [])


def test_common_voice_with_a_table_of_pandas(tmp_path):
    import csv

    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerows([corpora.COLUMNS.split(), ["s", "x.mp3", "s", 'she said "go"', *[""] * 9]])
    corpora.tar(
        tmp_path / "cv.tar.gz", [("clips/x.mp3", encoded(0, "MP3")), ("validated.tsv", out.getvalue().encode())]
    )
    clips, *_ = list_and_read(configured(tmp_path, "common_voice", path=str(tmp_path / "cv.tar.gz")))
    assert [row["text"] for batch in clips.values() for row, _ in batch] == ['she said "go"']


def parquet(tmp_path, column, **source):
    (tmp_path / "p").mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"audio": column, "text": [f"t{n}" for n in range(len(column))]}), tmp_path / "p" / "train.parquet"
    )
    clips, *_ = list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "p"), **source))
    return [data for batch in clips.values() for _, data in batch]


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FLAC = encoded(0, "FLAC")
ONE = {"bytes": FLAC, "path": "a.flac"}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([ONE], STRUCT),
        pa.array([FLAC], pa.binary()),
        pa.array([FLAC], pa.large_binary()),
        pa.array([FLAC], pa.binary_view()),
        pa.array([FLAC, FLAC]).dictionary_encode()[:1],
        pa.array([ONE], pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])),
        pa.array([[ONE]], pa.list_(STRUCT)),
        pa.array([[ONE]], pa.large_list(STRUCT)),
    ],
    ids=lambda column: str(column.type)[:40],
)
def test_types_of_an_audio_column(tmp_path, column):
    assert parquet(tmp_path, column) == [FLAC]


@pytest.mark.parametrize("count", [0, 2])
def test_a_list_of_several_files_is_an_error(tmp_path, count):
    [error] = parquet(tmp_path, pa.array([[ONE] * count], pa.list_(STRUCT)))
    assert error.error_class == "bad_row"
    assert f"a list of {count} audio files" in error.message


def test_bytes_as_a_list_of_numbers(tmp_path):
    (tmp_path / "p").mkdir()
    table = pa.table({"audio": pa.array([list(FLAC)], pa.list_(pa.uint8())), "text": ["a"]})
    pq.write_table(table, tmp_path / "p" / "train.parquet")
    clips, *_ = list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "p"), columns={"audio": "audio"}))
    assert [data for batch in clips.values() for _, data in batch] == [FLAC]


@pytest.mark.parametrize("place", ["beside", "below", "absolute", "linked"])
def test_a_row_with_a_path_is_read_below_the_folder_of_the_file(tmp_path, place):
    file = tmp_path / "p" / ("sub/a.flac" if place == "below" else "a.flac")
    file.parent.mkdir(parents=True)
    file.write_bytes(FLAC)
    path = {"beside": "a.flac", "below": "sub/a.flac", "absolute": str(file), "linked": "b.flac"}[place]
    (tmp_path / "p" / "b.flac").symlink_to("a.flac")
    [data] = parquet(tmp_path, pa.array([{"bytes": None, "path": path}], STRUCT))
    assert data.read_bytes() == FLAC


@pytest.mark.parametrize("path", ["../out/a.flac", "/etc/passwd", "link/a.flac", "missing.flac"])
def test_a_path_elsewhere_is_not_read(tmp_path, path):
    """A corpus must not make the run read, and publish, other files of the machine."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.flac").write_bytes(FLAC)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "link").symlink_to("../out")
    [error] = parquet(tmp_path, pa.array([{"bytes": None, "path": path}], STRUCT))
    assert isinstance(error, ClipError)
    assert error.error_class == "no_bytes"
    assert path.rsplit("/", 1)[-1] in error.message
    if path.startswith("../"):
        assert "source.audio_folder" in error.message
        [data] = parquet(
            tmp_path, pa.array([{"bytes": None, "path": "a.flac"}], STRUCT), audio_folder=str(tmp_path / "out")
        )
        assert data.read_bytes() == FLAC


@pytest.mark.parametrize("splits", [False, True])
def test_a_folder_of_save_to_disk_has_its_command(tmp_path, splits):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"text": ["a"]})
    (datasets.DatasetDict({"train": saved}) if splits else saved).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(SourceError, match=r"written by Dataset.save_to_disk") as caught:
        list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "d")))
    command = str(caught.value).split('python -c "')[1].split('", and set')[0]
    subprocess.run([sys.executable, "-c", command], check=True, capture_output=True)
    assert pq.read_table(tmp_path / "d.parquet")["text"].to_pylist() == ["a"]


@pytest.mark.parametrize("keep", [0, 3, 8, 100, -1, -4, -9])
def test_a_damaged_parquet_file_is_named_with_the_reason(tmp_path, keep):
    corpora.parquet(tmp_path / "p" / "a.parquet", rows=2)
    data = (tmp_path / "p" / "a.parquet").read_bytes()
    (tmp_path / "p" / "a.parquet").write_bytes(data[:keep])
    with pytest.raises(SourceError, match=r"a\.parquet: not a readable Parquet file: \w+: \w+"):
        list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "p")))


@pytest.mark.parametrize("flip", range(0, 60, 7))
def test_a_damaged_footer_is_never_none(tmp_path, flip):
    corpora.parquet(tmp_path / "p" / "a.parquet", rows=2)
    data = bytearray((tmp_path / "p" / "a.parquet").read_bytes())
    size = int.from_bytes(data[-8:-4], "little")
    data[-8 - size + flip] ^= 0xFF
    (tmp_path / "p" / "a.parquet").write_bytes(data)
    try:
        list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "p")))
    except SourceError as error:
        assert "a.parquet" in str(error)  # noqa: PT017
        assert "None" not in str(error)  # noqa: PT017


BOMB = """
import resource, sys
from collections import Counter
sys.path.insert(0, {root!r})
from tests.corpora import configured
from speechmill.sources import BatchPlan, open_source
from pathlib import Path
source = open_source(configured(Path({work!r}), "parquet", path={path!r}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for row, data in source.read(BatchPlan("b", "a.parquet", rows={rows}), None, Counter()):
    print(row["source_row"], getattr(data, "error_class", "audio"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["zeros in a value", "zeros in a text", "one value in all rows"])
def test_a_small_file_that_inflates(tmp_path, kind):
    """By its metadata, before it is read: a few kB would take hundreds of megabytes."""
    (tmp_path / "p").mkdir()
    rows = 3
    if kind == "one value in all rows":
        rows = 64
        column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([bytes(20 << 20)]))
        table = pa.table({"audio": column, "text": ["t"] * rows})
    elif kind == "zeros in a value":
        table = pa.table({"audio": [FLAC, bytes(400 << 20), FLAC], "text": ["t"] * rows})
    else:
        table = pa.table({"audio": [FLAC] * rows, "text": ["t", "x" * (400 << 20), "t"]})
    pq.write_table(table, tmp_path / "p" / "a.parquet", compression="zstd", row_group_size=rows)
    del table
    assert (tmp_path / "p" / "a.parquet").stat().st_size < 500_000
    root = str(corpora.ROOT)
    code = BOMB.format(root=root, work=str(tmp_path), path=str(tmp_path / "p"), rows=rows)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *found, megabytes = done.stdout.splitlines()
    assert len(found) == rows
    if kind != "one value in all rows":
        assert {line.split()[1] for line in found} == {"too_large"}
    assert int(megabytes) < 250
