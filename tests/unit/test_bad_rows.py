"""One bad row is that row's error, with its file and place; its neighbours are read."""

import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from speechmill.errors import ClipError, SourceError
from speechmill.sources import Source
from speechmill.sources.boundary import RowError, read_file, read_row

from .. import corpora
from ..corpora import configured, encoded, list_and_read

BAD_JSON = {
    "lone surrogate": b'{"text": "hi \\ud83d"}',
    "surrogate in extra": b'{"text": "hi", "mood": ["\\udc00"]}',
    "surrogate in a key": b'{"text": "hi", "\\udc00": 1}',
    "nested 900 levels": b'{"text": "x", "deep": ' + b"[" * 900 + b"]" * 900 + b"}",
    "nested 100,000 levels": b'{"text": "x", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "number of 5,000 digits": b'{"text": "x", "n": ' + b"9" * 5000 + b"}",
    "NUL": b'{"text": "a\\u0000b"}',
    "not UTF-8": b'{"text": "\xe9t\xe9"}',
    "cut": b'{"text": "a',
    "a list": b'["text"]',
}


def states(clips):
    """Place -> text, or the error."""
    return {
        row.get("source_member") or row["source_row"]: data if isinstance(data, ClipError) else row["text"]
        for batch in clips.values()
        for row, data in batch
    }


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_of_a_sample(tmp_path, name):
    members = [("bad.flac", encoded(0, "FLAC")), ("bad.json", BAD_JSON[name]), ("good.flac", encoded(1, "FLAC"))]
    corpora.tar(tmp_path / "w" / "a.tar", [*members, ("good.json", b'{"text": "fine"}')])
    clips, *_ = list_and_read(configured(tmp_path, "webdataset", path=str(tmp_path / "w")))
    found = states(clips)
    assert found["good"] == "fine"
    assert found["bad"].error_class == "bad_row"
    pa.Table.from_pylist([row for batch in clips.values() for row, _ in batch])  # what is left can be stored
    assert found["bad"].message.isprintable()


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_of_metadata(tmp_path, name):
    (tmp_path / "f").mkdir()
    for clip in "abc":
        (tmp_path / "f" / f"{clip}.flac").write_bytes(encoded(0, "FLAC"))
    bad = BAD_JSON[name].replace(b"{", b'{"path": "b.flac", ', 1)
    lines = [b'{"path": "a.flac", "text": "one"}', bad, b'{"path": "c.flac", "text": "three"}']
    (tmp_path / "m.jsonl").write_bytes(b"\n".join(lines))
    clips, _, _, notes = list_and_read(
        configured(tmp_path, "folder", path=str(tmp_path / "f"), metadata=str(tmp_path / "m.jsonl"))
    )
    assert {row["source_file"]: row["text"] for batch in clips.values() for row, _ in batch} == {
        "a.flac": "one",
        "b.flac": None,
        "c.flac": "three",
    }
    assert any("m.jsonl: 1 unusable rows were skipped (line 2: " in note for note in notes)


def audio_column(numbers):
    audio = [{"bytes": encoded(n, "FLAC"), "path": None} for n in numbers]
    return pa.array(audio, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def text_with(bad: bytes) -> pa.Array:
    """Three texts, the second of which is not UTF-8."""
    data = b"one" + bad + b"three"
    offsets = np.array([0, 3, 3 + len(bad), len(data)], np.int32)
    return pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(data))


FAR = 300_000_000_000_000_000
COLUMNS = {
    "timestamp beyond the year 9999": {"at": pa.array([0, FAR, 0], pa.timestamp("us"))},
    "timestamp before the year 1": {"at": pa.array([0, -FAR, 0], pa.timestamp("us"))},
    "date beyond the year 9999": {"at": pa.array([0, 2_000_000_000, 0], pa.date32())},
    "duration of 300,000 years": {"at": pa.array([0, 9_000_000_000_000_000_000, 0], pa.duration("s"))},
    "text that is not UTF-8": {"text": text_with(b"\xff\xfe")},
    "text with NUL": {"text": pa.array(["one", "a\0b", "three"])},
    "half an emoji": {"text": text_with(b"\xed\xa0\xbd")},
}


@pytest.mark.parametrize("name", COLUMNS)
def test_value_of_a_parquet_row(tmp_path, name):
    table = pa.table({"audio": audio_column(range(3)), "text": ["one", "two", "three"]})
    for column, values in COLUMNS[name].items():
        if column in table.schema.names:
            table = table.drop_columns([column])
        table = table.append_column(column, values)
    (tmp_path / "p").mkdir()
    pq.write_table(table, tmp_path / "p" / "a.parquet")
    clips, *_ = list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "p")))
    found = states(clips)
    assert (found[0], found[2]) == ("one", "three")
    assert found[1].error_class == "bad_row"
    assert "column" in found[1].message


@pytest.mark.parametrize("rate", [-1, 0, 2**40, None])
def test_sampling_rate_of_decoded_samples(tmp_path, rate):
    rows = [{"array": [0.0, 0.5], "sampling_rate": r} for r in (16000, rate, 8000)]
    kind = pa.struct([("array", pa.list_(pa.float32())), ("sampling_rate", pa.int64())])
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"audio": pa.array(rows, kind), "text": ["a", "b", "c"]}), tmp_path / "p" / "a.parquet")
    clips, *_ = list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "p")))
    found = states(clips)
    assert (found[0], found[2], found[1].error_class) == ("a", "c", "bad_sampling_rate")
    assert "a.parquet row 1" in found[1].message


@pytest.mark.parametrize(
    "metadata", [b"not json", b"[]", b"{}", b'{"info": 3}', b'{"info": {"features": [1]}}', b"[" * 100_000, b"\xff"]
)
def test_huggingface_metadata_of_another_form(tmp_path, metadata):
    table = pa.table({"audio": audio_column([0]), "text": ["a"]}).replace_schema_metadata({b"huggingface": metadata})
    (tmp_path / "p").mkdir()
    pq.write_table(table, tmp_path / "p" / "a.parquet", store_schema=False)
    clips, *_ = list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "p")))
    assert states(clips) == {0: "a"}


def test_cut_of_lhotse(tmp_path):
    """lhotse itself stops at the first line that it cannot read, and all cuts behind it are missing."""
    lhotse = pytest.importorskip("lhotse", reason="needs lhotse: pip install 'speechmill[lhotse]'")
    cuts = [lhotse.Recording.from_file(corpora.PROMPTS[n]).to_cut().with_id(f"c{n}") for n in range(5)]
    (tmp_path / "s").mkdir()
    lhotse.CutSet.from_cuts(cuts).to_shar(str(tmp_path / "s"), fields={"recording": "flac"})
    file = next((tmp_path / "s").glob("cuts.*"))
    lines = gzip.decompress(file.read_bytes()).splitlines()
    lines[1] = b'{"id": "c1", "deep": ' + b"[" * 900 + b"]" * 900 + b"}"
    lines[2] = b"torn"
    lines[3] = json.dumps(json.loads(lines[3]) | {"type": "NoSuchCut"}).encode()
    file.write_bytes(gzip.compress(b"\n".join(lines)))
    clips, passed_over, *_ = list_and_read(configured(tmp_path, "lhotse_shar", path=str(tmp_path / "s")))
    found = {row["source_member"]: data for batch in clips.values() for row, data in batch}
    assert isinstance(found["c0"], bytes)
    assert isinstance(found["c4"], bytes)
    assert {found[name].error_class for name in ("c1", "line 3", "c3")} == {"bad_row"}
    assert "line 3 of its cuts: not usable JSON" in found["line 3"].message
    assert passed_over == {"recordings without a cut": 1}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("x" * (1 << 25), "the line has more than"),
        ("common_voice_th_1.mp3", "1 cells instead of 13"),
        ("speaker1\tcommon_voice_th_1.mp3\ts\tsplit here", "4 cells instead of 13"),
        ("\t".join(["s", "../../x.mp3", *["a"] * 11]), "leads out of the archive"),
        ("\t".join(["s", "x.mp3", "s", "\udcff", *["a"] * 9]), "not valid in utf-8"),
        ("\t".join(["s", "x.mp3", "s", "a\0b", *["a"] * 9]), "NUL"),
    ],
)
def test_row_of_common_voice(tmp_path, row, problem):
    header = "\t".join(corpora.COLUMNS.split())
    good = ["\t".join(["s", f"{n}.mp3", "s", f"text {n}", *[""] * 9]) for n in range(2)]
    table = "\n".join([header, good[0], row, good[1], ""]).encode("utf-8", "surrogateescape")
    members = [(f"cv-corpus-1/th/clips/{n}.mp3", encoded(n, "MP3")) for n in range(2)]
    corpora.tar(tmp_path / "cv.tar.gz", [*members, ("cv-corpus-1/th/validated.tsv", table)])
    clips, _, _, notes = list_and_read(configured(tmp_path, "common_voice", path=str(tmp_path / "cv.tar.gz")))
    assert sorted(row["text"] for batch in clips.values() for row, _ in batch) == ["text 0", "text 1"]
    assert (
        sum(f"validated.tsv: 1 unusable rows were skipped (line 3: {problem}" in n or problem in n for n in notes) == 1
    )


def test_an_error_of_the_program_is_named_and_refused_if_all_rows_have_it():
    """A TypeError of our own is not disguised as damage."""

    def broken(number):
        return {"source_row": number}, len(number)

    rows = [read_row({"source_row": n}, f"a.parquet row {n}", lambda n=n: broken(n)) for n in range(3)]
    assert all(isinstance(data, RowError) for _, data in rows)
    assert rows[1][1].message == "a.parquet row 1: TypeError: object of type 'int' has no len()"
    with pytest.raises(
        SourceError, match=r"a.parquet: refused, because all of its 3 rows fail alike.*row 0: TypeError"
    ):
        list(read_file("a.parquet", rows))
    good = {"source_row": 3}, b"x"
    assert list(read_file("a.parquet", [*rows, good])) == [*rows, good]
    assert list(read_file("a.parquet", rows[:1])) == rows[:1]
    other = read_row({"source_row": 4}, "a.parquet row 4", lambda: {}["x"])
    assert list(read_file("a.parquet", [*rows, other])) == [*rows, other]


def test_an_error_of_the_machine_is_not_the_row_s():
    def full():
        raise OSError(28, "No space left on device")

    def memory():
        raise MemoryError

    for broken in (full, memory):
        with pytest.raises((OSError, MemoryError)):
            read_row({}, "x", broken)


def test_an_error_outside_the_rows_names_the_file(tmp_path):
    class Broken(Source):
        def clips(self, plan, file, passed_over):
            yield {"source_row": 0}, b"x"
            raise KeyError("column")

    from collections import Counter

    from speechmill.sources import BatchPlan

    broken = Broken(configured(tmp_path, "parquet", path=str(tmp_path)))
    with pytest.raises(SourceError, match=r"some\.parquet: cannot be read: KeyError: 'column'"):
        list(broken.read(BatchPlan("b", "some.parquet"), None, Counter()))


def test_a_batch_with_bad_rows_is_stored(tmp_path):
    """What the boundary lets through fits the tables of the enhance job."""
    members = []
    for number, content in enumerate(BAD_JSON.values()):
        members += [(f"{number}.flac", encoded(0, "FLAC")), (f"{number}.json", content)]
    members += [("ok.flac", encoded(1, "FLAC")), ("ok.txt", "สวัสดี".encode())]
    corpora.tar(tmp_path / "w" / "a.tar", members)
    clips, *_ = list_and_read(configured(tmp_path, "webdataset", path=str(tmp_path / "w")))
    rows = [row for batch in clips.values() for row, _ in batch]
    from speechmill.sources.columns import clip_table

    assert len(clip_table(rows)) == len(BAD_JSON) + 1


def test_a_damaged_row_group_costs_its_own_rows(tmp_path):
    (tmp_path / "p").mkdir()
    path = tmp_path / "p" / "a.parquet"
    corpora.parquet(path, rows=6)
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    at = column.data_page_offset
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    clips, *_ = list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "p"), batch_size=10))
    found = states(clips)
    assert [isinstance(found[n], ClipError) for n in range(6)] == [False, False, True, True, False, False]
    assert found[2].error_class == "unreadable"
    assert "row group 1 is damaged" in found[2].message


def test_samples_come_as_sound(tmp_path):
    """Integers, half precision, two channels: all decode to the same sound."""
    sound = corpora.speech(0)
    stereo = np.stack([sound, sound])
    whole = np.round(sound * 32767).astype(np.int16)
    (tmp_path / "p").mkdir()
    for name, values, kind in [
        ("int16", whole.tolist(), pa.list_(pa.int16())),
        ("int64", whole.tolist(), pa.list_(pa.int64())),
        ("large", sound.tolist(), pa.large_list(pa.float64())),
        ("fixed", sound.tolist(), pa.list_(pa.float32(), len(sound))),
        ("stereo", stereo.tolist(), pa.list_(pa.list_(pa.float32()))),
    ]:
        struct = pa.struct([("array", kind), ("sampling_rate", pa.int32())])
        column = pa.array([{"array": values, "sampling_rate": 16000}], struct)
        pq.write_table(pa.table({"audio": column, "text": [name]}), tmp_path / "p" / f"{name}.parquet")
    rate = pa.array([16000], pa.int64())
    plain = pa.array([whole.tolist()], pa.list_(pa.int16()))
    pq.write_table(pa.table({"audio": plain, "sampling_rate": rate, "text": ["plain"]}), tmp_path / "p" / "q.parquet")
    clips, *_ = list_and_read(configured(tmp_path, "parquet", path=str(tmp_path / "p")))
    read = [clip for batch in clips.values() for clip in batch]
    assert len(read) == 6
    for row, data in read:
        assert isinstance(data, bytes), (row["text"], data)
        found, rate = soundfile.read(io.BytesIO(data), always_2d=True)
        assert rate == 16000
        assert np.abs(found[:, 0] - sound).max() < 1e-3, row["text"]
