"""Copies of the demo's prompts are found, different prompts are not taken for copies; synthetic ones by one dictionary."""

import hashlib
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechmill.dedup import near, spill
from speechmill.dedup.fingerprint import BYTES, RATE, WORDS
from speechmill.dedup.near import compare, find_near_duplicates
from tests.unit.test_fingerprint import ROOT, load_by_path

build = load_by_path(ROOT / "demo" / "build.py")
bench = load_by_path(ROOT / "benchmarks" / "near_duplicates.py")
ALL = build.load_prompts()
PROMPTS = {p.file: p.samples.astype(np.float32) for p in ALL}
HELD = ["dev", " Validation", "TEST", "eval"]


def write(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=bench.LEDGER), path)
    return path


def find(folder: Path, rows: list[dict], others: list[dict] | None = None) -> dict[str, str]:
    """id -> the id that it repeats."""
    own, other = write(folder / "own.parquet", rows), write(folder / "others.parquet", others or [])
    number = find_near_duplicates([own], [other], folder / "near.parquet")
    table = pq.read_table(folder / "near.parquet")
    assert table.schema == near.NEAR_DUPLICATES
    assert table.num_rows == number
    assert table["id"].to_pylist() == sorted(set(table["id"].to_pylist()))
    return dict(zip(table["id"].to_pylist(), table["near_duplicate_of"].to_pylist(), strict=True))


def made_up(name: str, sound: int, errors: float = 0.0, seconds: float | None = None, split: str | None = None) -> dict:
    """A clip of a sound (a number) of which a share of the bits is wrong."""
    bits = np.random.default_rng(sound).random((WORDS, 32)) < 0.5
    bits ^= np.random.default_rng([sound, *name.encode()]).random((WORDS, 32)) < errors
    return {
        "id": name,
        "state": "passed",
        "pcm_sha256": hashlib.sha256(name.encode()).hexdigest(),
        "source_split": split,
        "fingerprint": np.packbits(bits, bitorder="little").tobytes(),
        "input_duration": 2 + sound % 10 if seconds is None else seconds,
    }


@pytest.fixture(scope="module")
def originals() -> list[dict]:
    return [bench.clip(name, samples) for name, samples in PROMPTS.items()]


def test_no_two_prompts_are_copies(tmp_path, originals):
    assert find(tmp_path, originals) == {}


@pytest.mark.parametrize(
    "kind",
    [
        "MP3 44.1 kHz, 32 kbit/s",
        "Ogg Vorbis 16 kHz, 40 kbit/s",
        "8 kHz",
        "22.05 kHz",
        "-12 dB",
        "37 and 90 ms added",
        "100 ms cut off the start",
        "MP3 of a quiet 8 kHz copy, 49 ms added",
    ],
)
def test_copies_are_found_and_nothing_else(tmp_path, originals, kind):
    chosen = list(PROMPTS)[::3]
    copies = [bench.clip(f"{kind}|{name}", bench.COPIES_OF[kind](PROMPTS[name])) for name in chosen]
    pairs = find(tmp_path, copies, originals)
    assert all(copy == f"{kind}|{original}" for copy, original in pairs.items())
    assert len(pairs) >= 0.95 * len(chosen)


def test_different_prompts_in_the_same_noise_are_no_copies(tmp_path):
    noisy = []
    for kind in ("white", "hum", "babble", "music"):
        for index, (name, samples) in enumerate(list(PROMPTS.items())[:30]):
            noise = build.make_noise(kind, 4 * RATE, np.random.default_rng(0), ALL[:12])
            mixed = build.mix(samples, noise[: len(samples)], (5, -5)[index % 2])
            noisy.append(bench.clip(f"{kind}|{name}", mixed))
    pairs = find(tmp_path, noisy)
    assert {one.split("|")[1] for one in pairs} == {of.split("|")[1] for of in pairs.values()}
    assert all(one.split("|")[1] == of.split("|")[1] for one, of in pairs.items())


def test_a_sentence_but_for_one_word_is_no_copy(tmp_path):
    first, second, third = (
        np.concatenate([PROMPTS[n] for n in names]) for names in np.array(list(PROMPTS))[:9].reshape(3, 3)
    )
    longer = np.concatenate([first, second, third])
    other = longer.copy()
    word = PROMPTS[list(PROMPTS)[20]]
    at = len(first) + RATE // 2
    other[at : at + len(word)] = word
    rows = [bench.clip("a", longer), bench.clip("b", other), bench.clip("c", longer * np.float32(0.5))]
    assert find(tmp_path, rows) == {"c": "a"}


def test_exact_duplicates_are_not_listed(tmp_path):
    rows = [made_up("3", 1), made_up("2", 1), made_up("4", 1, 0.05)]
    rows[0]["pcm_sha256"] = rows[1]["pcm_sha256"]
    assert find(tmp_path, rows) == {"4": "2"}
    assert find(tmp_path, rows[:2]) == {}
    # Not of another corpus either; a near copy of both names the other corpus's.
    of_other = made_up("z", 1) | {"pcm_sha256": rows[1]["pcm_sha256"]}
    assert find(tmp_path, rows, [of_other]) == {"4": "z"}


def test_a_clip_without_a_hash_counts_as_one_of_its_own(tmp_path):
    rows = [made_up(name, 1) | {"pcm_sha256": None} for name in "ab"]
    assert find(tmp_path, rows) == {"b": "a"}


def test_of_a_group_the_other_corpus_comes_first_then_a_held_out_split_then_the_smallest_id(tmp_path):
    for number, split in enumerate(HELD):
        rows = [made_up(f"{number}b", 7, 0.03, split="train"), made_up(f"{number}a", 7, 0.03), made_up("z", 7, 0.03)]
        assert find(tmp_path, rows) == {f"{number}b": f"{number}a", "z": f"{number}a"}
        rows[2]["source_split"] = split
        assert find(tmp_path, rows) == {f"{number}b": "z", f"{number}a": "z"}
        others = [made_up("zzz", 7, 0.03), made_up("zz", 7, 0.03), made_up("alone", 8)]
        assert find(tmp_path, rows, others) == dict.fromkeys([f"{number}b", f"{number}a", "z"], "zz")
        assert find(tmp_path, [], others) == {}


def test_only_passed_clips_with_a_fingerprint_and_a_duration_count(tmp_path):
    good = made_up("a", 1)
    for change in ({"state": "errored"}, {"fingerprint": None}, {"fingerprint": b"short"}, {"input_duration": None}):
        assert find(tmp_path, [good, made_up("b", 1, 0.02) | change]) == {}
    assert find(tmp_path, [good, made_up("b", 1, 0.02)]) == {"b": "a"}
    assert find(tmp_path, []) == {}


@pytest.mark.parametrize(("seconds", "copies"), [(2.0, 1), (2.25, 1), (2.4, 0), (20.0, 0)])
def test_copies_are_equally_long(tmp_path, seconds, copies):
    assert len(find(tmp_path, [made_up("a", 1, seconds=2.0), made_up("b", 1, 0.02, seconds=seconds)])) == copies


def test_similarity_is_the_share_of_equal_bits(tmp_path):
    rows = [made_up("a", 1), made_up("b", 1, 0.06)]
    find(tmp_path, rows)
    bits = [np.unpackbits(np.frombuffer(row["fingerprint"], np.uint8)) for row in rows]
    (similarity,) = pq.read_table(tmp_path / "near.parquet")["similarity"].to_pylist()
    assert similarity == pytest.approx((bits[0] == bits[1]).mean())


def test_a_clip_is_listed_with_one_that_it_is_a_copy_of_itself(tmp_path):
    """b is near a and c, which are not near each other; d is near c alone."""
    random = np.random.default_rng(0)
    key = np.unpackbits(np.full(WORDS, near.KEY_BITS, "<u4").view(np.uint8), bitorder="little")
    order = random.permutation(np.flatnonzero(key == 0))  # keys agree: what is tested is what follows
    base = random.integers(0, 2, BYTES * 8).astype(np.uint8)

    def chained(name: str, errors: int) -> dict:
        bits = base.copy()
        bits[order[:errors]] ^= 1
        return made_up(name, 1) | {"fingerprint": np.packbits(bits, bitorder="little").tobytes()}

    rows = [chained("a", 0), chained("b", 200), chained("c", 400), chained("d", 600)]
    pairs = find(tmp_path, rows)
    assert pairs == {"b": "a", "d": "c"}


def test_alignment_allows_for_speech_that_was_cut_off():
    random = np.random.default_rng(1)
    words = random.integers(0, 2**32, (50, WORDS), np.uint32)
    moved = words[:, np.clip(np.arange(WORDS) + np.rint(np.linspace(2, -1, WORDS)).astype(int), 0, WORDS - 1)]
    similarity, copies = compare(moved, words)
    assert copies.all()
    assert similarity.min() == 1
    similarity, copies = compare(words, words[::-1])
    assert not copies.any()
    assert similarity.max() < 0.6


@pytest.mark.parametrize("seed", range(3))
def test_order_files_and_parts_change_nothing_and_all_is_found(tmp_path, seed):
    random = np.random.default_rng(seed)
    sounds = random.integers(0, 400, 600)
    rows = [made_up(f"{n * 7919 % 997:03x}", int(sound), 0.015) for n, sound in enumerate(sounds)]
    smallest: dict[int, str] = {}
    for row, sound in zip(rows, sounds, strict=True):
        smallest[sound] = min(row["id"], smallest.get(sound, row["id"]))
    expected = {r["id"]: smallest[s] for r, s in zip(rows, sounds, strict=True) if r["id"] != smallest[s]}
    assert find(tmp_path, rows) == expected
    bytes_ = (tmp_path / "near.parquet").read_bytes()
    shuffled = [rows[i] for i in random.permutation(len(rows))]
    paths = [write(tmp_path / f"{i}.parquet", shuffled[i : i + 70]) for i in range(0, 600, 70)]
    find_near_duplicates(paths, [], tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == bytes_
    small = mock.patch.multiple(near, PART_ROWS=50, KEY_PART_ROWS=700, CHUNK=13)
    with small, mock.patch.object(spill, "TAKE_ROWS", 31):
        find_near_duplicates(paths[::-1], [], tmp_path / "parts.parquet")
    assert pq.read_table(tmp_path / "parts.parquet").equals(pq.read_table(tmp_path / "near.parquet"))
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}


def test_copies_among_thousands_of_clips_with_the_same_key_are_found(tmp_path):
    """A hum that is in all clips: half of the words are the same in all of them, and all are equally long."""
    random = np.random.default_rng(0)
    hum = random.integers(0, 2**32, WORDS, np.uint32)
    rows = []
    for number in range(2000):
        words = random.integers(0, 2**32, WORDS, np.uint32)
        words[: WORDS // 2] = hum[: WORDS // 2]
        rows.append(made_up(f"{number:04d}", 1) | {"fingerprint": words.tobytes()})
    for number in range(40):
        wrong = np.packbits(random.random((WORDS, 32)) < 0.03, axis=1).view(np.uint32).ravel()
        words = np.frombuffer(rows[number * 50]["fingerprint"], np.uint32) ^ wrong
        rows.append(made_up(f"copy{number * 50:04d}", 1) | {"fingerprint": words.tobytes()})
    pairs = find(tmp_path, rows)
    assert pairs == {f"copy{number * 50:04d}": f"{number * 50:04d}" for number in range(40)}


def test_nothing_is_left_behind_where_it_fails(tmp_path):
    path = write(tmp_path / "own.parquet", [made_up("a", 1)])
    broken = mock.patch.object(near, "compare", side_effect=MemoryError)
    rows = write(tmp_path / "more.parquet", [made_up("b", 1, 0.02)])
    with broken, pytest.raises(MemoryError):
        find_near_duplicates([path, rows], [], tmp_path / "near.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["more.parquet", "own.parquet"]
