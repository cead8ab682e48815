"""Copies that were encoded, resampled or levelled anew, across corpora, in memory that the number of clips hardly moves.

Clips with one of a few keys in common are candidates (locality-sensitive hashing: Indyk & Motwani 1998); a candidate is
a copy where the whole fingerprints agree (`speechmill.dedup.fingerprint`). Of exact duplicates (`speechmill.dedup.exact`), one
takes part.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse.csgraph
from numpy.typing import NDArray

from speechmill.dedup.fingerprint import BYTES, WORDS
from speechmill.dedup.spill import SpilledRows, number_of_parts, parted
from speechmill.errors import SourceError
from speechmill.tables.parquet_io import table_writer
from speechmill.tables.rows_by_id import prefix_of
from speechmill.tables.splits import is_evaluation_split
from speechmill.utils.threads import bounded_map

NEAR_DUPLICATES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("near_duplicate_of", pa.string(), nullable=False),
        pa.field("similarity", pa.float64(), nullable=False),  # share of equal bits, 0..1
    ]
)

# What a copy is. Of distinct recordings half of the bits differ, of lossy copies up to a tenth.
MAX_ERRORS = 0.15  # share of all bits that differ
MAX_PART_ERRORS = 0.3  # ... of an eighth of the words: the same sentence but for one word is no copy
MAX_SECONDS_APART = 0.3  # of the durations
SHIFTS = range(-4, 5)  # words by which the start and the end of a copy may be moved, each

# Which clips are compared.
KEYS = 24  # of a clip, at words that are spread over it
KEY_BITS = np.uint32(0x00555555)  # of a word and of the one `KEY_STEP` later: every other band below 1.8 kHz
KEY_STEP = 8
CHECK_STEP = 16  # from the first word of a key to another one of the clip, towards its middle
MAX_CHECK_ERRORS = 10  # bits of that one that may differ
NEIGHBOURS = 12  # with which a clip is compared, of those with the same key, on either side and in either order

PART_ROWS = 100_000  # clips that are held at once, about
KEY_PART_ROWS = 1_000_000  # ... and keys
CHUNK = 20_000  # clips whose keys are made, or pairs that are compared, at once
ROW_GROUP = 100_000
READERS = 2  # threads
MAX_PARTS = 400  # two kinds of parts are open at once, and a process may often open no more than 1,024 files
OTHER, HELD, PLAIN = range(3)  # which of a group is kept: the lowest, then the smallest id

_CLIPS = pa.schema(
    [
        ("id", pa.large_string()),
        ("sound", pa.large_string()),  # pcm_sha256; the id where there is none
        ("rank", pa.uint8()),
        ("seconds", pa.float32()),
        ("words", pa.binary(BYTES)),
    ]
)
_IDS = pa.schema([("id", pa.large_string())])
_KEYED = pa.schema([("key", pa.uint32()), ("clip", pa.uint32()), ("seconds", pa.float32()), ("check", pa.uint32())])
_PAIRS = pa.schema([("a", pa.uint32()), ("b", pa.uint32())])
_HALF = pa.schema([*_PAIRS, pa.field("words", pa.binary(BYTES))])  # with the words of a
_RECORD = np.dtype([("words", "<u4", WORDS), ("rank", "u1")])

File = str | os.PathLike[str]
Words = NDArray[np.uint32]
Edges = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float64], NDArray[np.bool_]]


def find_near_duplicates(ledgers: Iterable[File], others: Iterable[File], out: File) -> int:
    """Write the clips that repeat another one but for its encoding: `NEAR_DUPLICATES`, sorted by id. Returns their number.

    Of a group of copies one is kept and the others are listed with it: a clip of `others` (ledgers of other corpora,
    whose clips are never listed), then one of a held-out split, then the smallest id. Only passed clips with a
    fingerprint count. Clips with the same `pcm_sha256` count as one, the one that is kept. The same ledgers in any
    order give the same bytes.

    Rows wait in files without a name beside `out`, about 1,100 bytes per clip: clips in parts by their hash, in which
    they get numbers; keys in parts by the key; pairs in parts by the number of one, then of the other. What is held is
    two parts, and about 100 bytes per copy that was found; beyond 16 million clips, the parts grow.
    """
    inputs = [*((path, False) for path in ledgers), *((path, True) for path in others)]
    rows = sum(pq.read_metadata(path).num_rows for path, _ in inputs)
    folder = Path(out).parent
    folder.mkdir(parents=True, exist_ok=True)
    with table_writer(NEAR_DUPLICATES, out, row_group_size=ROW_GROUP) as writer, _Clips(rows, folder) as clips:
        parts = _parts(rows * KEYS, KEY_PART_ROWS)
        keyed = parted(_keyed(inputs, clips), _KEYED, parts, lambda table: _part_of(table["key"], parts), folder)
        with SpilledRows(_PAIRS, folder) as candidates:
            for part in keyed:
                candidates.write(_candidates(part))
            copies = [np.stack([a[copy], b[copy]]) for a, b, _, copy in _compared(candidates.tables(), clips)]
        a, b = np.concatenate([np.empty((2, 0), np.uint32), *copies], axis=1)
        del copies
        found = _listed(a, b, clips)
        writer.write_table(found)
    return found.num_rows


def ledgers_of(run_dir: Path) -> list[Path]:
    """The ledgers of another run, for `others`.

    Raises:
        SourceError: it has none, or they are of a version without fingerprints.
    """
    found = sorted((run_dir / "ledger").glob("*.enhance.parquet"))
    if not found or "fingerprint" not in pq.read_schema(found[0]).names:
        raise SourceError(
            f"compare_with: {run_dir} is no run with fingerprints in ledger/*.enhance.parquet: run it first"
        )
    return found


def _parts(rows: int, part_rows: int) -> int:
    return min(MAX_PARTS, number_of_parts(rows, part_rows))


class _Clips:
    """Clips by their number: fixed-width records and ids, which wait on disk."""

    def __init__(self, rows: int, folder: Path):
        self.rows = rows  # or fewer
        self.folder = folder
        self.count = 0
        self.blocks = _parts(rows, PART_ROWS)
        self.block_rows = rows // self.blocks + 1
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        self._ids = SpilledRows(_IDS, folder)

    def add(self, clips: pa.Table) -> NDArray[np.uint32]:
        """Store `_CLIPS`; their numbers (N,)."""
        records = np.empty(len(clips), _RECORD)
        records["words"] = _words(clips["words"])
        records["rank"] = clips["rank"].to_numpy()
        self._file.write(records.data)
        self._ids.write(clips.select(["id"]))
        self.count += len(clips)
        return np.arange(self.count - len(clips), self.count, dtype=np.uint32)

    def block(self, number: int) -> NDArray[np.void]:
        """Records of a block of numbers."""
        self._file.seek(number * self.block_rows * _RECORD.itemsize)
        return np.frombuffer(self._file.read(self.block_rows * _RECORD.itemsize), _RECORD)

    def of(self, numbers: NDArray[np.uint32]) -> pa.Table:
        """`clip`, `rank` and `id` of ascending numbers. Once: the ids are read through."""
        ranks = [
            self.block(block)["rank"][_within(numbers, block * self.block_rows, self.block_rows)]
            for block in range(self.blocks)
        ]
        ids, start = [_IDS.empty_table()], 0
        for table in self._ids.tables():
            ids.append(table.take(_within(numbers, start, len(table))))
            start += len(table)
        rank = np.concatenate(ranks)
        return pa.table({"clip": numbers, "rank": rank, "id": pa.concat_tables(ids)["id"]})

    def __enter__(self) -> _Clips:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._ids.__exit__(*error)


def _within(numbers: NDArray[np.uint32], start: int, size: int) -> NDArray[np.intp]:
    """Those of ascending numbers that lie in a range, counted from its start."""
    first, last = np.searchsorted(numbers, [start, start + size])
    return numbers[first:last].astype(np.intp) - start


def _keyed(inputs: list[tuple[File, bool]], clips: _Clips) -> Iterator[pa.Table]:
    """`_KEYED` of all clips, `KEYS` rows each; the clips themselves are stored, in an order that is theirs alone."""

    def part_of(table: pa.Table) -> NDArray[np.intp]:
        return _spread(prefix_of(table["sound"]), clips.blocks)

    with ThreadPoolExecutor(READERS) as pool:
        tables = bounded_map(pool, _read, inputs, ahead=2 * READERS)
        for part in parted(tables, _CLIPS, clips.blocks, part_of, clips.folder, PART_ROWS // 2):
            part = _one_of_each_sound(part)
            for start in range(0, len(part), CHUNK):
                piece = part.slice(start, CHUNK)
                yield _keys(clips.add(piece), _words(piece["words"]), piece["seconds"].to_numpy())


def _read(source: tuple[File, bool]) -> pa.Table:
    """`_CLIPS` of a ledger, and whether it is another corpus's."""
    path, other = source
    columns = ["id", "state", "pcm_sha256", "source_split", "fingerprint", "input_duration"]
    with pq.ParquetFile(path) as file:
        table = file.read(columns=columns)
    usable = pc.and_(pc.equal(table["state"], "passed"), pc.equal(pc.binary_length(table["fingerprint"]), BYTES))
    table = table.filter(pc.and_(usable, pc.is_valid(table["input_duration"])))
    tested = is_evaluation_split(table["source_split"])
    rank = pa.array(np.full(len(table), OTHER, np.uint8)) if other else pc.if_else(tested, HELD, PLAIN)
    sound = pc.coalesce(table["pcm_sha256"], table["id"])
    return pa.table(
        [
            table["id"].cast(pa.large_string()),
            sound.cast(pa.large_string()),
            rank.cast(pa.uint8()),
            table["input_duration"].cast(pa.float32()),
            table["fingerprint"].cast(pa.binary(BYTES)),
        ],
        schema=_CLIPS,
    )


def _one_of_each_sound(clips: pa.Table) -> pa.Table:
    """The clips of a part in the order of their sounds: of exact duplicates another corpus's, or the smallest id."""
    own = pa.array(clips["rank"].to_numpy() != OTHER)
    clips = clips.append_column("own", own).sort_by([("sound", "ascending"), ("own", "ascending"), ("id", "ascending")])
    sound = clips["sound"].combine_chunks()
    first = np.ones(len(clips), bool)
    first[1:] = pc.not_equal(sound[1:], sound[:-1]).to_numpy(zero_copy_only=False)
    return clips.filter(pa.array(first)).drop(["own"])


def _words(column: pa.ChunkedArray) -> Words:
    """A column of fingerprints as words (N, WORDS)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays([pa.array([], column.type), *array.chunks])
    if len(array) == 0:
        return np.empty((0, WORDS), np.uint32)
    return np.frombuffer(array.buffers()[1], "<u4").reshape(-1, WORDS)[array.offset : array.offset + len(array)]


def _keys(numbers: NDArray[np.uint32], words: Words, seconds: NDArray[np.float32]) -> pa.Table:
    """`_KEYED` of clips (N,)."""
    at = np.linspace(0, WORDS - 1 - KEY_STEP, KEYS).astype(np.intp)
    checked = np.where(at < WORDS // 2, at + CHECK_STEP, at - CHECK_STEP)
    bits = (words & KEY_BITS).astype(np.uint64)
    keys: NDArray[np.uint64] = bits[:, at] << np.uint64(32) | bits[:, at + KEY_STEP]
    keys += np.arange(KEYS).astype(np.uint64)  # the same sound at another moment is another key
    keys *= np.uint64(0x9E3779B97F4A7C15)
    keys ^= keys >> np.uint64(29)
    keys = keys * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(32)
    check = words[:, checked]
    columns = [keys.astype(np.uint32).ravel(), np.repeat(numbers, KEYS), np.repeat(seconds, KEYS), check.ravel()]
    return pa.table(columns, schema=_KEYED)


def _part_of(keys: pa.ChunkedArray, parts: int) -> NDArray[np.intp]:
    return _spread(keys.to_numpy().astype(np.uint64), parts)


def _spread(values: NDArray[np.uint64], parts: int) -> NDArray[np.intp]:
    """A part (N,) for each value: multiplied, the high bits are even."""
    return ((values * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) % np.uint64(parts)).astype(np.intp)


def _candidates(keyed: pa.Table) -> pa.Table:
    """`_PAIRS` (a < b, each once) of clips that share a key (`_KEYED`), are equally long and agree in the check word.

    A clip is compared with its `NEIGHBOURS` in the order of durations. Where a key is common, such as that of a hum, or
    of one sentence that many said, a copy may not be among them: there, it is compared in the order of check words as
    well, and so for every other key that the copies share. Copies are more alike than others in both.
    """
    key, clip, seconds, check = (column.to_numpy() for column in keyed.columns)
    length: Words = np.maximum(seconds, 0).view(np.uint32)  # not negative: the bits of floats are in the floats' order
    order = _order(key, length)
    key, clip, seconds, check = key[order], clip[order], seconds[order], check[order]
    common = np.zeros(len(key), bool)
    if len(key) > NEIGHBOURS:
        far = key[NEIGHBOURS:] == key[:-NEIGHBOURS]
        common[NEIGHBOURS:] |= far
        common[:-NEIGHBOURS] |= far
    pairs = [*_neighbours(key, clip, seconds, check)]
    if common.any():
        key, clip, seconds, check = key[common], clip[common], seconds[common], check[common]
        order = _order(key, check)
        pairs += _neighbours(key[order], clip[order], seconds[order], check[order])
    both = np.unique(np.concatenate(pairs))
    return pa.table([(both >> np.uint64(32)).astype(np.uint32), both.astype(np.uint32)], schema=_PAIRS)


def _order(key: Words, second: Words) -> NDArray[np.intp]:
    """Sorts by the key, then by the second; rows that are equal in both stay in order."""
    return np.argsort(key.astype(np.uint64) << np.uint64(32) | second, kind="stable")


def _neighbours(key: Words, clip: Words, seconds: NDArray[np.float32], check: Words) -> Iterator[NDArray[np.uint64]]:
    """Pairs, the smaller number in the upper half, of sorted rows (N,) and those that follow them."""
    for step in range(1, NEIGHBOURS + 1):
        (same,) = np.nonzero(key[step:] == key[:-step])
        near = same[np.abs(seconds[same + step] - seconds[same]) <= MAX_SECONDS_APART]
        alike = near[np.bitwise_count(check[near + step] ^ check[near]) <= MAX_CHECK_ERRORS]
        one, other = clip[alike].astype(np.uint64), clip[alike + step].astype(np.uint64)
        differ = one != other  # a clip may have a key twice
        yield (np.minimum(one, other) << np.uint64(32) | np.maximum(one, other))[differ]


def _compared(pairs: Iterable[pa.Table], clips: _Clips) -> Iterator[Edges]:
    """Pairs (a, b), each once, with their similarity and whether they are copies: (P,) each."""
    first = parted(pairs, _PAIRS, clips.blocks, lambda table: table["a"].to_numpy() // clips.block_rows, clips.folder)
    half = _with_words(first, clips)
    second = parted(half, _HALF, clips.blocks, lambda table: table["b"].to_numpy() // clips.block_rows, clips.folder)
    for number, table in enumerate(second):
        if len(table) == 0:
            continue
        words = clips.block(number)["words"]
        for start in range(0, len(table), CHUNK):
            piece = table.slice(start, CHUNK)
            a, b = (piece[side].to_numpy() for side in ("a", "b"))
            yield a, b, *compare(_words(piece["words"]), words[b - np.uint32(number * clips.block_rows)])


def _with_words(parts: Iterable[pa.Table], clips: _Clips) -> Iterator[pa.Table]:
    """`_HALF` of parts of pairs by the block of a."""
    for number, part in enumerate(parts):
        if len(part) == 0:
            continue
        a, b = (part[side].to_numpy().astype(np.uint64) for side in ("a", "b"))
        both = np.unique(a << np.uint64(32) | b)
        a, b = (both >> np.uint64(32)).astype(np.uint32), both.astype(np.uint32)
        words = clips.block(number)["words"]
        for start in range(0, len(a), CHUNK):
            of_a = words[a[start : start + CHUNK] - np.uint32(number * clips.block_rows)]
            binary = pa.FixedSizeBinaryArray.from_buffers(pa.binary(BYTES), len(of_a), [None, pa.py_buffer(of_a)])
            yield pa.table([a[start : start + CHUNK], b[start : start + CHUNK], binary], schema=_HALF)


def compare(a: Words, b: Words) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Words (P, WORDS) of pairs -> the share of equal bits at the best alignment (P,), and whether they are copies (P,).

    Where speech was cut off, all words move, most of them at the end where it was: start and end are moved by `SHIFTS`.
    """
    errors, copies = _errors(a, b, np.arange(WORDS))
    for start in SHIFTS:
        for end in SHIFTS:
            (left,) = np.nonzero(~copies)
            if (start, end) == (0, 0) or len(left) == 0:
                continue
            moved = np.arange(WORDS) + np.rint(np.linspace(start, end, WORDS)).astype(np.intp)
            here, same = _errors(a[left], b[left], np.clip(moved, 0, WORDS - 1))
            better = same | (here < errors[left])
            errors[left[better]], copies[left[better]] = here[better], same[better]
    return 1 - errors, copies


def _errors(a: Words, b: Words, order: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The share of bits that differ (P,), b's words taken in an order, and whether few enough do, in every part (P,)."""
    wrong = np.bitwise_count(a ^ b[:, order]).reshape(len(a), 8, -1).sum(axis=2) / (WORDS // 8 * 32)
    errors = wrong.mean(axis=1)
    return errors, (errors <= MAX_ERRORS) & (wrong.max(axis=1) <= MAX_PART_ERRORS)


def _listed(a: Words, b: Words, clips: _Clips) -> pa.Table:
    """`NEAR_DUPLICATES` of the pairs that are copies: groups are connected ones, of which one is kept.

    A clip is listed only with a kept one that it is a copy of itself. Those that are copies of copies alone form groups
    of their own, until nobody is left.
    """
    numbers = np.unique(np.concatenate([a, b]))
    table = clips.of(numbers)
    order = pc.sort_indices(table, [("rank", "ascending"), ("id", "ascending")]).to_numpy()
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(len(order))  # of each clip, in the order in which they are kept
    ranks = table["rank"].to_numpy()[order]
    left, right = (place[np.searchsorted(numbers, side)] for side in (a, b))
    keeper = np.full(len(order), -1)  # place of the one that a place's clip repeats
    similarity = np.zeros(len(order))
    while len(left):
        graph = scipy.sparse.coo_array((np.ones(len(left), bool), (left, right)), shape=(len(order),) * 2)
        _, group = scipy.sparse.csgraph.connected_components(graph, directed=False)
        _, first = np.unique(group, return_index=True)
        kept = first[group]
        members = np.unique(np.concatenate([left, right]))
        members = members[kept[members] != members]
        pairs = np.sort(numbers[order][np.stack([members, kept[members]], axis=1)], axis=1)
        for one, other, alike, copy in _compared([pa.table([pairs[:, 0], pairs[:, 1]], schema=_PAIRS)], clips):
            places = np.sort(place[np.searchsorted(numbers, np.stack([one, other], axis=1))], axis=1)[copy]
            keeper[places[:, 1]] = places[:, 0]
            similarity[places[:, 1]] = alike[copy]
        done = keeper >= 0
        done[kept] = True
        go_on = ~(done[left] | done[right])
        left, right = left[go_on], right[go_on]
    (found,) = np.nonzero((keeper >= 0) & (ranks != OTHER))
    ids = table["id"].take(order).cast(pa.string())
    result = pa.table([ids.take(found), ids.take(keeper[found]), similarity[found]], schema=NEAR_DUPLICATES)
    return result.sort_by("id")
