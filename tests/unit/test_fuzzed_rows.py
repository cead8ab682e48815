"""What holds for any row, any names of members, any table and any header (hypothesis)."""

from __future__ import annotations

import csv
import io
import json
import struct
import tarfile
from collections import Counter
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechmill.audio.decode import DecodeLimits, decode
from speechmill.errors import ClipError, ClipRejection
from speechmill.sources import BatchPlan, open_source
from speechmill.sources.archives import TarStream
from speechmill.sources.boundary import check_row, read_row
from speechmill.sources.columns import clip_columns, clip_table, map_columns
from speechmill.sources.samples import group_samples
from speechmill.sources.text_files import decode_text, parse_json, table_rows

from ..corpora import configured, encoded, tar

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ANY_TEXT = st.text(st.characters(), max_size=20)  # with NUL and halves of surrogate pairs
NUMBERS = st.integers() | st.integers(10**4000, 10**4400) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | ANY_TEXT | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["text", "sentence", "speaker", "language", "id", "gender", "license", "mood"]) | ANY_TEXT
SECTION = {"columns": {}, "language": "th", "license": None, "encodings": ["utf-8"]}


@FEW
@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_row_is_stored_or_an_error(values):
    def read():
        return {"source_row": 7, **clip_columns(values, map_columns(values, {}), SECTION)}, b""

    row, data = check_row(read_row({"source_row": 7}, "file row 7", read))
    assert row["source_row"] == 7
    assert len(clip_table([row])) == 1
    assert data == b"" or (data.error_class == "bad_row" and data.message.isprintable())
    if data == b"":
        json.loads(row["extra"] or "{}")


@FEW
@given(st.binary(max_size=200) | ANY_TEXT.map(lambda text: json.dumps({"text": text}).encode()))
def test_any_json_is_an_object_or_an_error(data):
    message = ""
    try:
        assert isinstance(parse_json(data), dict)
    except ClipError as error:
        message = error.message
    assert not message or message.isprintable()


@FEW
@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=50),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_text_is_read_back(text, encoding):
    assert decode_text(text.encode(encoding)) == text.removeprefix("\ufeff" if encoding == "utf-8" else "")


CELLS = st.text(st.sampled_from("ab\"\t,\n ไ'\\;"), max_size=8)


@FEW
@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["tsv", "csv"]),
)
def test_a_written_table_is_read_back(tmp_path, rows, quoting, suffix):
    """With at least one quoted quote, from which a quoted TSV is known."""
    rows = [*rows, ('say "so"', "x")]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t" if suffix == "tsv" else ",", quoting=quoting, lineterminator="\n")
    writer.writerows([("path", "text"), *rows])
    (tmp_path / f"m.{suffix}").write_text(out.getvalue(), encoding="utf-8", newline="")
    found = list(table_rows(tmp_path / f"m.{suffix}"))
    assert [(row.cells.get("path"), row.cells.get("text"), row.problem) for row in found] == [
        (a, b, None) for a, b in rows
    ]


STEMS = st.text(st.sampled_from("ab1._"), min_size=1, max_size=6).filter(lambda name: not name.startswith("."))
MEMBERS = st.lists(
    st.tuples(STEMS, st.sampled_from(["flac", "wav", "json", "txt", "normalized.txt", "lab"])), max_size=8, unique=True
)


@settings(max_examples=200, deadline=None)
@given(MEMBERS, st.sampled_from(["stem", "first_dot"]))
def test_no_member_is_lost_or_given_to_another(members, rule):
    names = [f"{name}.{suffix}" for name, suffix in members]
    audio = list(dict.fromkeys(name for name in names if name.endswith(("flac", "wav"))))
    others = list(dict.fromkeys(name for name in names if name not in audio))
    samples, repeated = group_samples(audio, others, rule)
    assert Counter([sample.audio for sample in samples if sample.audio] + repeated) == Counter(audio)
    assert len({sample.key for sample in samples}) == len(samples)
    assert {name for sample in samples for name in sample.members.values()} <= set(others)
    for sample in samples:
        for name in sample.members.values():
            own = sample.audio and name.startswith(f"{sample.key}.")
            shared = sample.audio and sample.key.startswith(f"{name.rsplit('.', 1)[0]}.")
            assert own or shared or sample.audio is None or rule == "first_dot"
    grouped = [(sample.key, sample.audio, sorted(sample.members)) for sample in samples if sample.audio]
    again = [(s.key, s.audio, sorted(s.members)) for s in group_samples(audio, others[::-1], rule)[0] if s.audio]
    assert grouped == again or any(name.count(".txt") > 1 or "..txt" in name for name in others)


@FEW
@given(MEMBERS, st.randoms(use_true_random=False))
def test_every_audio_member_is_a_clip_or_counted(tmp_path, members, rng):
    content = {}
    for name, suffix in members:
        content[f"{name}.{suffix}"] = FLAC() if suffix in ("flac", "wav") else b'{"text": "t"}'
    order = list(content.items())
    rng.shuffle(order)
    (tmp_path / "w").mkdir(exist_ok=True)
    tar(tmp_path / "w" / "a.tar", order)
    source = open_source(configured(tmp_path, "webdataset", path=str(tmp_path / "w")))
    passed_over: Counter[str] = Counter()
    clips = list(source.read(BatchPlan("b", "a.tar"), None, passed_over))
    sounding = [row for row, data in clips if isinstance(data, bytes)]
    hidden = sum(name.startswith("._") for name, _ in members)
    repeated = sum(count for what, count in passed_over.items() if "beside other audio" in what)
    total = sum(suffix in ("flac", "wav") and not name.startswith("._") for name, suffix in members)
    assert len(sounding) + repeated == total
    assert passed_over["members that macOS adds (._NAME)"] == hidden


@cache
def FLAC() -> bytes:
    return encoded(0, "FLAC")


LIMITS = DecodeLimits(max_seconds=20, max_bytes=1 << 24, max_channels=8)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"RIFF", b"RIFX", b"RF64"]),
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(st.sampled_from([b"data", b"LIST", b"fact", b"ds64", b"junk"]), st.integers(0, 2**32 - 1)), max_size=4
    ),
    st.tuples(*[st.integers(0, 2**16 - 1)] * 2, *[st.integers(0, 2**32 - 1)] * 2, *[st.integers(0, 2**16 - 1)] * 2),
    st.integers(0, 600),
)
def test_any_wav_header_ends_as_a_clip_or_its_error(magic, size, chunks, fmt, samples):
    data = magic + struct.pack("<I", size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, *fmt)
    for name, claimed in chunks:
        data += name + struct.pack("<I", claimed)
    message = "decoded"
    try:
        decode(data + bytes(samples), LIMITS)
    except (ClipError, ClipRejection) as error:
        message = error.message
    assert message.isprintable()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(
        [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"?"]
    ),
    st.sampled_from([0, 1, 511, 2**33, 2**62, 2**63 - 1, 2**70]) | st.integers(0, 2**40),
    st.booleans(),
    st.booleans(),
)
def test_any_size_of_a_member_ends(tmp_path_factory, kind, size, packed, wanted):
    import gzip
    import time

    path = tmp_path_factory.getbasetemp() / "sizes.tar"
    first, claimed = tarfile.TarInfo("ok.json"), tarfile.TarInfo("x.flac")
    first.size, claimed.type, claimed.size = 3, kind, size
    data = first.tobuf() + b"abc".ljust(512, b"\0") + claimed.tobuf(format=tarfile.GNU_FORMAT) + bytes(4096)
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    begin = time.thread_time()
    stream = TarStream(path, 1 << 20, wanted=(lambda name, size: name.endswith("json")) if wanted else None)
    found = dict(stream)
    assert time.thread_time() - begin < 1
    assert found["ok.json"] == b"abc"
    if size > 1 << 20 and kind == tarfile.REGTYPE:
        assert stream.problem
        assert found["x.flac"].error_class == "too_large"


@pytest.mark.parametrize("bits", range(0, 64, 7))
def test_a_member_of_2_to_the_n_bytes(tmp_path, bits):
    info = tarfile.TarInfo("x.wav")
    info.size = 1 << bits
    (tmp_path / "a.tar").write_bytes(info.tobuf(format=tarfile.GNU_FORMAT) + bytes(2048))
    stream = TarStream(tmp_path / "a.tar", 1 << 28)
    list(stream)
    assert (stream.problem is None) == (bits < 11)
