"""What others measure with stays out of training data."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechmill.dedup import held_out
from speechmill.dedup.exact import find_duplicates
from speechmill.dedup.held_out import find_held_out
from speechmill.errors import SourceError
from speechmill.sources.transcript import utterance_key
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import LEDGER


def clip(name, sound, split=None, text=None, speaker=None, state="passed"):
    return {
        "id": name, "state": state, "pcm_sha256": sound, "source_split": split, "utterance": utterance_key(text, speaker),
    }  # fmt: skip


def ledger(path, *clips):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pa.Table.from_pylist(list(clips), schema=LEDGER), path)
    return path


def find(tmp_path, ledgers, *lists):
    entries = [{"path": str(path), "splits": ["dev", "validation", "test"]} for path in lists]
    count = find_held_out(ledgers, entries, tmp_path / "held_out.parquet")
    rows = pq.read_table(tmp_path / "held_out.parquet").to_pylist()
    assert count == len(rows)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    return {row["id"]: row["message"] for row in rows}


def test_utterances_of_the_corpus_own_test_split_are_held_out_of_its_training_split(tmp_path):
    a = ledger(
        tmp_path / "a.parquet",
        clip("1", "x", "train", "สวัสดี", "s1"),
        clip("2", "y", "train", "สวัสดี", "s2"),
        clip("3", "z", "dev", "ขอบคุณ", "s2"),
        clip("4", "w", None, "ขอบคุณ", "s2"),
        clip("5", "v", "train", "ขอบคุณ", "s2", state="errored"),
    )
    b = ledger(tmp_path / "b.parquet", clip("6", "u", "Test ", "สวัสดี", "s1"), clip("7", "t", "train"))
    assert find(tmp_path, [a, b]) == {
        "1": "the same sentence by the same speaker as in the split Test  of this corpus",
        "4": "the same sentence by the same speaker as in the split dev of this corpus",
    }


def test_another_run_holds_out_samples_and_utterances_of_its_tested_splits(tmp_path):
    other = tmp_path / "results" / "cv"
    ledger(
        other / "ledger" / "clips-00000.enhance.parquet",
        clip("a", "same", "test", "หนึ่ง", "s"),
        clip("b", "trained", "train", "สอง", "s"),
    )
    mine = ledger(
        tmp_path / "m.parquet",
        clip("1", "same"),
        clip("2", "other", "train", "หนึ่ง", "s"),
        clip("3", "trained", "train", "สอง", "s"),
    )
    found = find(tmp_path, [mine], other)
    assert set(found) == {"1", "2"}
    assert "the same samples" in found["1"]
    assert str(other) in found["2"]


@pytest.mark.parametrize("suffix", ["tsv", "parquet"])
def test_a_table_of_texts_and_speakers_is_a_list(tmp_path, suffix):
    """Common Voice's own test.tsv, for example."""
    path = tmp_path / f"test.{suffix}"
    if suffix == "tsv":
        path.write_text('client_id\tpath\tsentence\ns1\ta.mp3\tปี ๑ "ก\n', encoding="utf-8")
    else:
        pq.write_table(pa.table({"speaker_id": ["s1"], "text": ['ปี ๑ "ก']}), path)
    mine = ledger(tmp_path / "m.parquet", clip("1", "x", "train", 'ปี 1 "ก', "s1"), clip("2", "y", "train", "ข", "s1"))
    assert set(find(tmp_path, [mine], path)) == {"1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path\nx\n", "has neither a column pcm_sha256"),
        ("pcm_sha256\tsplit\nx\ttrain\n", "lists no clip of the splits"),
    ],
)
def test_a_list_that_holds_nothing_out_is_named(tmp_path, content, message):
    (tmp_path / "list.tsv").write_text(content)
    mine = ledger(tmp_path / "m.parquet", clip("1", "x"))
    with pytest.raises(SourceError, match=message):
        find(tmp_path, [mine], tmp_path / "list.tsv")
    with pytest.raises(SourceError, match="is not a run"):
        find(tmp_path, [mine], tmp_path)


def test_of_equal_samples_the_tested_clip_is_kept(tmp_path):
    """Otherwise the clip with the smaller id would go to train, and the test split would lose it."""
    a = ledger(tmp_path / "a.parquet", clip("1", "x", "train"), clip("2", "y", "train"), clip("3", "y", "train"))
    b = ledger(tmp_path / "b.parquet", clip("9", "x", "test"))
    find_duplicates([a, b], tmp_path / "duplicates.parquet")
    rows = pq.read_table(tmp_path / "duplicates.parquet").to_pylist()
    assert {row["id"]: row["duplicate_of"] for row in rows} == {"1": "9", "3": "2"}


@pytest.mark.parametrize("join_rows", [1, 7, 1_000_000])
def test_the_same_clips_and_reasons_are_found_as_one_by_one(tmp_path, monkeypatch, join_rows):
    """Many hashes differ only after the first 16 digits, which are all that the first look at them compares."""
    monkeypatch.setattr(held_out, "JOIN_ROWS", join_rows)
    draw = random.Random(join_rows)

    def some_clip(name):
        split = draw.choice([None, "train", "train", "dev", "Test"])
        sound = draw.choice([None, f"{0:048x}{draw.randrange(400):016x}", f"{draw.randrange(400):064x}"])
        text, speaker = draw.choice([None, str(draw.randrange(60))]), draw.choice([None, "s1", "s2"])
        return clip(name, sound, split, text, speaker, draw.choice(["passed"] * 4 + ["rejected"]))

    def some_ledgers(folder, count):
        batches = [[some_clip(f"{number}-{row:03d}") for row in range(draw.randrange(60))] for number in range(count)]
        paths = [ledger(folder / "ledger" / f"b{i}.enhance.parquet", *rows) for i, rows in enumerate(batches)]
        return paths, [row for rows in batches for row in rows if row["state"] == "passed"]

    first, second = tmp_path / "first", tmp_path / "second"
    lists = {path: some_ledgers(path, 2)[1] for path in (first, second)}
    paths, clips = some_ledgers(tmp_path / "mine", 9)
    listed: dict[str, dict] = {"pcm_sha256": {}, "utterance": {}}
    for path, rows in lists.items():
        for row in rows:
            for name, values in listed.items():
                if row["source_split"] in (None, "dev"):
                    values.setdefault(row[name], path)
    own: dict = {}
    for row in clips:
        if row["source_split"] in ("dev", "Test"):
            own.setdefault(row["utterance"], row["source_split"])
    expected = {}
    for row in clips:
        samples, utterance = row["pcm_sha256"], row["utterance"]
        if samples and samples in listed["pcm_sha256"]:
            expected[row["id"]] = f"the same samples as a clip of {listed['pcm_sha256'][samples]}"
        elif utterance and utterance in listed["utterance"]:
            expected[row["id"]] = f"the same sentence by the same speaker as in {listed['utterance'][utterance]}"
        elif utterance and utterance in own and row["source_split"] in (None, "train"):
            expected[row["id"]] = (
                f"the same sentence by the same speaker as in the split {own[utterance]} of this corpus"
            )
    assert len({message.split()[2] for message in expected.values()}) == 2
    assert find(tmp_path, paths, first, second) == expected


def test_of_a_parquet_list_only_the_columns_that_are_compared_are_read(tmp_path):
    """A list may be a data set with its audio: here, one whose audio cannot be read."""
    path = tmp_path / "test.parquet"
    pq.write_table(pa.table({"audio": [b"RIFF" * 100], "pcm_sha256": ["x"], "split": ["test"]}), path)
    audio = pq.read_metadata(path).row_group(0).column(0)
    with path.open("r+b") as file:
        file.seek(audio.dictionary_page_offset)
        file.write(bytes(audio.total_compressed_size))
    with pytest.raises(OSError, match="deserializ"):
        pq.read_table(path)
    assert set(find(tmp_path, [ledger(tmp_path / "m.parquet", clip("1", "x", "train"))], path)) == {"1"}
