"""Tables beside audio: quotes, broken lines, encodings, and whether they belong to the files at all."""

import csv
import io

import pytest

from speechmill.errors import SourceError
from speechmill.sources.text_files import table_rows

from ..corpora import configured, encoded, list_and_read

TEXTS = ["plain", 'he said "so"', '"Go," she said', '"', "a\tb", "two\nlines", "ends with \\", "it's", '""', ""]


def written(quoting, delimiter="\t", texts=TEXTS, end="\n"):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(["path", "text", "age"])
    writer.writerows([f"{n}.flac", text, n] for n, text in enumerate(texts))
    return out.getvalue()


def rows(tmp_path, content, name="m.tsv", encodings=("utf-8",)):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    found = list(table_rows(tmp_path / name, encodings))
    return [row.cells["text"] for row in found if not row.problem], {r.line: r.problem for r in found if r.problem}


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("delimiter", ["\t", ","])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_a_csv_writer_wrote_is_read_back(tmp_path, quoting, delimiter, end):
    name = "m.tsv" if delimiter == "\t" else "m.csv"
    assert rows(tmp_path, written(quoting, delimiter, end=end), name) == (TEXTS, {})


def test_what_pandas_wrote_is_read_back(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": [f"{n}.flac" for n in range(len(TEXTS))], "text": TEXTS})
    for sep, name in (("\t", "m.tsv"), (",", "m.csv")):
        frame.to_csv(tmp_path / name, sep=sep, index=False)
        assert [row.cells["text"] for row in table_rows(tmp_path / name)] == TEXTS


@pytest.mark.parametrize(
    "texts",
    [
        ['he said "so"', "plain"],
        ['"Go," she said'],
        ['"', "x"],
        ['"Hello"'],
        ['""', '"quoted as a whole"'],
        ['said ""so""'],
        ['"a" and "b"'],
    ],
)
def test_a_quote_is_a_letter_where_nothing_is_quoted(tmp_path, texts):
    content = "path\ttext\tage\n" + "".join(f"{n}.flac\t{text}\t1\n" for n, text in enumerate(texts))
    assert rows(tmp_path, content) == (texts, {})


@pytest.mark.parametrize(
    ("lines", "good", "bad"),
    [
        (
            ["a.flac\thalf a", "sentence\t20", "b.flac\tfine\t3"],
            ["fine"],
            {2: "2 cells instead of 3", 3: "2 cells instead of 3"},
        ),
        (["a.flac\tx\ty\tz", "b.flac\tfine\t3"], ["fine"], {2: "4 cells instead of 3"}),
        (["a.flac", "", "b.flac\tfine\t3"], ["fine"], {2: "1 cells instead of 3"}),
    ],
)
def test_broken_lines_are_bad_rows(tmp_path, lines, good, bad):
    assert rows(tmp_path, "path\ttext\tage\n" + "\n".join(lines) + "\n") == (good, bad)


@pytest.mark.parametrize("bad", ['a.flac,"open,1', 'a.flac,"a" b,1', 'a.flac,a,"1'])
@pytest.mark.parametrize("after", [2, 500])
def test_a_quote_that_is_not_closed_costs_its_own_line(tmp_path, bad, after):
    content = "\n".join(["path,text,age", "0.flac,first,1", bad, *(f"{n}.flac,text {n},1" for n in range(after)), ""])
    good, problems = rows(tmp_path, content, "m.csv")
    assert good == ["first", *(f"text {n}" for n in range(after))]
    assert list(problems) == [3]
    assert "quote" in problems[3]


def test_two_quotes_that_are_not_closed_cost_two_lines(tmp_path):
    content = 'path,text,age\na.flac,"open,1\nb.flac,fine,1\nc.flac,"open too,1\nd.flac,"well, closed",1\n'
    good, problems = rows(tmp_path, content, "m.csv")
    assert good == ["fine", "well, closed"]
    assert list(problems) == [2, 4]


@pytest.mark.parametrize(
    ("encodings", "encode", "good"),
    [
        (["utf-8"], "utf-8", ["สวัสดี", "ครับ"]),
        (["utf-8"], "utf-8-sig", ["สวัสดี", "ครับ"]),
        (["utf-8"], "utf-16", ["สวัสดี", "ครับ"]),
        (["utf-8", "tis-620"], "tis-620", ["สวัสดี", "ครับ"]),
        (["utf-8"], "tis-620", []),
    ],
)
@pytest.mark.parametrize("name", ["m.tsv", "m.csv", "m.jsonl"])
def test_encodings_of_tables(tmp_path, encodings, encode, good, name):
    if name == "m.jsonl":
        content = "".join(f'{{"path": "{n}", "text": "{text}"}}\n' for n, text in enumerate(["สวัสดี", "ครับ"]))
    else:
        mark = "\t" if name == "m.tsv" else ","
        content = "".join(mark.join(row) + "\n" for row in (["path", "text"], ["a", "สวัสดี"], ["b", "ครับ"]))
    found, bad = rows(tmp_path, content.encode(encode), name, encodings)
    assert found == good
    assert len(bad) == 2 - len(good)


def test_encodings_are_tried_row_by_row(tmp_path):
    """Files that were joined."""
    content = "path\ttext\na\tสวัสดี\n".encode() + "b\tครับ\n".encode("tis-620") + b"c\tplain\n" + b"d\t\xff\xfe\n"
    found, bad = rows(tmp_path, content, encodings=["utf-8", "tis-620"])
    assert found == ["สวัสดี", "ครับ", "plain"]
    assert list(bad) == [5]


def corpus(tmp_path, metadata, name="m.tsv", **source):
    for n in range(4):
        path = tmp_path / "f" / "clips" / f"{n}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(n, "FLAC"))
    (tmp_path / name).write_text(metadata)
    return list_and_read(
        configured(tmp_path, "folder", path=str(tmp_path / "f"), metadata=str(tmp_path / name), **source)
    )


@pytest.mark.parametrize(
    ("form", "cause"),
    [
        ("/data/corpus/clips/{}.flac", "absolute paths"),
        ("C:\\corpus\\clips\\{}.flac", "absolute paths"),
        ("clips/{}.wav", "suffix differs"),
        ("clips/{}", "suffix differs"),
        ("{}.flac", "folder differs"),
        ("wavs/{}.wav", "Folder and suffix differ"),
        ("something else {}", "Check source.path"),
    ],
)
def test_metadata_of_other_files_is_refused_with_examples_and_the_cause(tmp_path, form, cause):
    table = "path\ttext\n" + "".join(f"{form.format(n)}\ttext {n}\n" for n in range(4))
    with pytest.raises(SourceError, match=cause) as caught:
        corpus(tmp_path, table)
    assert "0 of 4 rows name a file" in str(caught.value)
    assert "'clips/0.flac', 'clips/1.flac', 'clips/2.flac'" in str(caught.value)
    assert str(caught.value).count(form.split("{}")[0].replace("\\", "/") or ".flac") >= 3
    clips, _, _, notes = corpus(tmp_path, table, metadata_match=0)
    assert [row["text"] for batch in clips.values() for row, _ in batch] == [None] * 4
    assert any("4 metadata rows name no file" in note for note in notes)


def test_half_of_the_rows_are_enough(tmp_path):
    table = "path\ttext\n" + "".join(f"clips/{n}.flac\ttext {n}\n" for n in range(8))
    clips, *_ = corpus(tmp_path, table)
    assert [row["text"] for batch in clips.values() for row, _ in batch] == [f"text {n}" for n in range(4)]
    with pytest.raises(SourceError, match="4 of 9 rows"):
        corpus(tmp_path, table + "clips/8.flac\tx\n")


def test_metadata_without_a_usable_row_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"No row is usable.*2 unusable rows.*line 2: 1 cells instead of 2"):
        corpus(tmp_path, "path\ttext\nclips/0.flac\nclips/1.flac\n")
