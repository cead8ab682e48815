"""The corpora in the layouts that they really have, read with their defects."""

import io
import json
import tarfile
from collections import Counter

import pytest
import soundfile

from speechmill.errors import ClipError, ConfigError, SourceError
from speechmill.sources.columns import speaker_attributes

from .. import corpora
from ..corpora import configured, list_and_read


def rows(clips):
    return {row["source_id"]: (row, data) for batch in clips.values() for row, data in batch}


def classes(clips):
    return Counter(data.error_class for _, data in rows(clips).values() if isinstance(data, ClipError))


@pytest.mark.parametrize(("subset", "count"), [("refined", 9), ("raw", 9)])
def test_gigaspeech2_joins_tables_and_archives(tmp_path, subset, count):
    corpora.gigaspeech2(tmp_path / "gs2")
    config = configured(tmp_path, "gigaspeech2", path=str(tmp_path / "gs2"), language="th", subset=subset)
    clips, passed_over, described, notes = list_and_read(config)
    found = rows(clips)
    assert len(found) == count
    assert [f["path"].rsplit("/", 1)[1] for f in described["files"]] == [
        "dev.tar.gz",
        "test.tar.gz",
        "0.tar.gz",
        "1.tar.gz",
    ]
    row, data = found["1-2-9"]
    assert (row["source_file"], row["source_member"]) == ("data/th/train/1.tar.gz", "1/2/1-2-9.wav")
    assert row["text"] == (corpora.THAI[5] if subset == "refined" else "ดิบ 5")
    assert (row["language"], row["source_split"], row["speaker_id"]) == ("th", "train", None)
    assert data == corpora.encoded(5)
    assert {row["source_split"] for row, _ in found.values()} == {"train", "dev", "test"}
    if subset == "refined":
        assert classes(clips) == {"no_audio": 1}
        assert found["0-98-1"][0]["text"] == 'no audio, and "a quote'
        assert passed_over == {"audio without a row in the table": 1}
    else:
        assert classes(clips) == {}
        assert passed_over == {}
    assert not notes


def test_gigaspeech2_cut_short_keeps_what_was_read(tmp_path):
    corpora.gigaspeech2(tmp_path / "gs2", clips=5, cut=0.5)
    config = configured(tmp_path, "gigaspeech2", path=str(tmp_path / "gs2"), language="th", splits=["train"])
    clips, passed_over, *_ = list_and_read(config)
    cut = [data for row, data in rows(clips).values() if row["source_file"].endswith("1.tar.gz")]
    read = [data for data in cut if isinstance(data, bytes)]
    lost = [data for data in cut if isinstance(data, ClipError)]
    assert len(cut) == 5
    assert read
    assert {error.error_class for error in lost} == {"archive_cut"}
    assert f"after {len(read)} members" in lost[0].message
    assert sum("truncated" in what for what in passed_over) == 1


def test_gigaspeech2_rows_with_a_tab_in_the_text_or_without_one(tmp_path):
    corpora.gigaspeech2(tmp_path / "gs2")
    table = tmp_path / "gs2" / "data" / "th" / "train_refined.tsv"
    table.write_text("0-0-7\ta\tb\n0-1-8\nnot a name\tx\n0-2-9\tplain\n0-2-9\tagain\n7-1-1\tno archive\n")
    config = configured(tmp_path, "gigaspeech2", path=str(tmp_path / "gs2"), language="th", splits=["train"])
    clips, _, _, notes = list_and_read(config)
    assert {name: row["text"] for name, (row, _) in rows(clips).items()} == {
        "0-0-7": "a\tb",
        "0-1-8": None,
        "0-2-9": "plain",
    }
    assert classes(clips) == {}
    said = " ".join(notes)
    assert "1 rows do not begin with A-B-C" in said
    assert "1 rows name clips of no archive (7.tar.gz)" in said
    assert "data/th/train/1.tar.gz: no row of data/th/train_refined.tsv names a clip of it" in said


def test_gigaspeech2_of_another_language_says_which_there_are(tmp_path):
    corpora.gigaspeech2(tmp_path / "gs2")
    with pytest.raises(SourceError, match=r"Set source.language to one of th"):
        list_and_read(configured(tmp_path, "gigaspeech2", path=str(tmp_path / "gs2"), language="vi"))


@pytest.mark.parametrize("tables_last", [True, False])
def test_common_voice_wherever_its_tables_are(tmp_path, tables_last):
    path = tmp_path / "cv.tar.gz"
    corpora.common_voice(path, tables_last=tables_last)
    config = configured(tmp_path, "common_voice", path=str(path), splits=["validated", "other", "dev", "test"])
    clips, _, _, notes = list_and_read(config)
    found = rows(clips)
    assert sorted(map(len, clips.values())) == [3, 4]
    splits = {int(name.split("_")[-1][:-4]): row["source_split"] for name, (row, _) in found.items()}
    assert splits == {0: "validated", 1: "validated", 2: "validated", 3: "other", 4: "dev", 5: "test", 6: "validated"}
    row, data = found["common_voice_th_4.mp3"]
    assert data == corpora.encoded(4, "MP3", 32000)
    assert row["text"] == 'เขาบอกว่า "ไป'  # an unbalanced quote is a letter
    assert (row["speaker_id"], row["language"]) == ("speaker1", "th")
    assert '"age": "twenties"' in row["extra"]
    assert row["header_duration"] == pytest.approx(len(corpora.speech(4)) / 16000, abs=1e-3)
    assert classes(clips) == {"no_audio": 1}
    assert "1 rows of the tables name no clip of the archive" in notes
    assert "2 clips of the archive are in no table of the chosen splits" in notes  # the stray one, and clip 7


def test_common_voice_grows_by_batches_and_keeps_the_old_ones(tmp_path):
    """The next release is another archive with all clips again: only what is new makes new batches."""
    corpora.common_voice(tmp_path / "a.tar.gz")
    splits = ["validated", "dev", "test"]
    old, *_ = list_and_read(configured(tmp_path, "common_voice", path=str(tmp_path / "a.tar.gz"), splits=splits))
    manifest = tmp_path / "x" / "manifest"
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in manifest.glob("*.json")}
    corpora.common_voice(tmp_path / "b.tar.gz", release="26.0-2026-06-10", clips=11)
    new, *_ = list_and_read(configured(tmp_path, "common_voice", path=str(tmp_path / "b.tar.gz"), splits=splits))
    assert [row["id"] for batch in old for row, _ in old[batch]] == [row["id"] for b in old for row, _ in new[b]]
    assert {name: ((manifest / name).read_bytes(), (manifest / name).stat().st_mtime_ns) for name in before} == before
    assert len(new) == len(old) + 1


def test_common_voice_makes_a_batch_again_from_the_archive(tmp_path):
    """The plain file of all clips is gone once they were enhanced."""
    path = tmp_path / "cv.tar.gz"
    corpora.common_voice(path)
    config = configured(tmp_path, "common_voice", path=str(path))
    first, *_ = list_and_read(config)
    (tmp_path / "x" / "raw" / "clips.bin").unlink()
    from speechmill.sources import open_source
    from speechmill.sources.manifest import plan_of, read_batch

    for batch, clips in first.items():
        plan = plan_of(*read_batch(tmp_path / "x" / "manifest" / f"{batch}.json"))
        again = open_source(config).read(plan, None, Counter())
        assert {row["id"]: data for row, data in again if isinstance(data, bytes)} == {
            row["id"]: data for row, data in clips if isinstance(data, bytes)
        }


def test_common_voice_without_its_tables_says_what_it_has(tmp_path):
    corpora.tar(tmp_path / "cv.tar.gz", [("th/clips/a.mp3", b"x"), ("th/train.tsv", b"path\n")])
    with pytest.raises(SourceError, match="Tables of the archive: train"):
        list_and_read(configured(tmp_path, "common_voice", path=str(tmp_path / "cv.tar.gz")))


def test_webdataset_samples_are_clips(tmp_path):
    corpora.webdataset(tmp_path / "wds" / "train-0.tar")
    corpora.webdataset(tmp_path / "wds" / "test-0.tar.gz", first=3)
    clips, _, described, _ = list_and_read(configured(tmp_path, "webdataset", path=str(tmp_path / "wds")))
    assert len(described["files"]) == len(clips) == 2
    found = rows(clips)
    assert len(found) == 8
    row, data = found["part/00000"]
    assert (row["text"], row["speaker_id"], row["extra"]) == (corpora.THAI[0], "s0", '{"age": 30}')
    assert data == corpora.encoded(0, "FLAC")
    assert found["part/00001"][0]["text"] == corpora.THAI[1]
    assert found["part/00002"][0]["text"] is None
    assert found["part/00004"][0]["source_split"] == "test"
    assert classes(clips) == {"no_audio": 2}


def test_webdataset_cut_short(tmp_path):
    corpora.webdataset(tmp_path / "wds" / "a.tar", clips=6, cut=0.6)
    clips, passed_over, *_ = list_and_read(configured(tmp_path, "webdataset", path=str(tmp_path / "wds")))
    whole = [data for _, data in rows(clips).values() if isinstance(data, bytes)]
    assert 2 <= len(whole) < 6
    assert set(classes(clips)) <= {"archive_cut"}
    assert any("truncated" in what for what in passed_over)


def test_lhotse_shards_are_read_by_lhotse(tmp_path):
    lhotse = pytest.importorskip("lhotse", reason="needs lhotse: pip install 'speechmill[lhotse]'")
    from lhotse import CutSet, Recording, SupervisionSegment
    from lhotse.shar import SharWriter

    cuts = []
    for number in range(3):
        recording = Recording.from_file(corpora.PROMPTS[number])
        cut = recording.to_cut()
        cut.supervisions = [
            SupervisionSegment(
                id=f"s{number}", recording_id=recording.id, start=0, duration=cut.duration, text=corpora.THAI[number],
                speaker="a", language="th",
            )
        ]  # fmt: skip
        cuts.append(cut)
    cuts.append(cuts[0].truncate(offset=0.5, duration=1.0).with_id("part"))
    (tmp_path / "shar").mkdir()
    with SharWriter(str(tmp_path / "shar"), fields={"recording": "flac"}, shard_size=2) as writer:
        for cut in CutSet.from_cuts(cuts):
            writer.write(cut)
    clips, *_ = list_and_read(configured(tmp_path, "lhotse_shar", path=str(tmp_path / "shar")))
    assert sorted(map(len, clips.values())) == [2, 2]
    found = rows(clips)
    assert lhotse is not None
    for number, cut in enumerate(cuts[:3]):
        row, data = found[cut.id]
        assert (row["text"], row["speaker_id"], row["language"]) == (corpora.THAI[number], "a", "th")
        samples, _ = soundfile.read(io.BytesIO(data))
        assert abs(samples - corpora.speech(number)).max() < 1e-4
    samples, rate = soundfile.read(io.BytesIO(found["part"][1]))
    assert len(samples) == rate


def member(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


HOSTILE = [
    ("/etc/passwd.wav", b"x"),
    ("../../up.wav", b"x"),
    ("a/../../up.wav", b"x"),
    ("ok/1.wav", b"one"),
    ("ok/1.wav", b"again"),
    member("link.wav", tarfile.SYMTYPE, "/etc/passwd"),
    member("hard.wav", tarfile.LNKTYPE, "ok/1.wav"),
    member("device.wav", tarfile.CHRTYPE),
    member("fifo.wav", tarfile.FIFOTYPE),
    ("big.wav", b"0" * 2000),
    ("ok/2.wav", b"two"),
]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_hostile_members_are_passed_over(tmp_path, name, monkeypatch):
    from speechmill.sources.archives import TarStream

    corpora.tar(tmp_path / name, HOSTILE)
    monkeypatch.chdir(tmp_path)
    stream = TarStream(tmp_path / name, 1000)
    found = dict(stream)
    assert {n: d for n, d in found.items() if isinstance(d, bytes)} == {"ok/1.wav": b"one", "ok/2.wav": b"two"}
    assert found["big.wav"].error_class == "too_large"
    assert sorted(stream.passed_over.values()) == [1, 3, 4]
    assert stream.problem is None
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing was unpacked


def test_a_bomb_is_stopped(tmp_path, monkeypatch):
    import gzip

    from speechmill.sources import archives

    monkeypatch.setattr(archives, "SMALL", 1 << 16)
    corpora.tar(tmp_path / "a.tar", [("ok.wav", b"1"), ("zeros.wav", bytes(30_000_000)), ("late.wav", b"2")])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    stream = archives.TarStream(tmp_path / "a.tar.gz", 1000)
    assert list(dict(stream)) == ["ok.wav", "zeros.wav"]
    assert "unpacks to more than" in stream.problem


def test_headers_that_claim_gigabytes_are_not_read(tmp_path):
    from speechmill.sources.archives import TarStream

    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            archive.addfile(member("ok.wav"))
        content = data.getvalue()[:512] + member("x", kind, size=7 << 30).tobuf() + bytes(2048)
        (tmp_path / "a.tar").write_bytes(content)
        stream = TarStream(tmp_path / "a.tar", 1000)
        assert list(dict(stream)) == ["ok.wav"]
        assert "claims" in stream.problem


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_cut_archive_says_so_and_keeps_whole_members(tmp_path, name, cut):
    from speechmill.sources.archives import TarStream

    members = [(f"{n}.wav", corpora.encoded(n)) for n in range(4)]
    corpora.tar(tmp_path / name, members, cut)
    stream = TarStream(tmp_path / name, 1 << 28)
    found = dict(stream)
    assert stream.problem
    assert found == {n: d for n, d in members if n in found}
    assert len(found) < 4 or cut > 0.8


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "hf_parquet", "path": "x"}, "needs source.repo; given: source.path"),
        ({"kind": "folder"}, "needs source.path"),
        ({"kind": "webdataset", "path": "x", "repo": "a/b"}, "needs source.path or source.repo"),
        ({"kind": "gigaspeech2", "repo": "a/b"}, "needs source.language"),
        ({"kind": "hf_parquet", "repo": "../etc"}, "does not match"),
    ],
)
def test_settings_that_do_not_fit_a_kind_are_named(tmp_path, source, message):
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, **source)


@pytest.mark.parametrize(
    ("extra", "gender", "age"),
    [
        ({"gender": "female_feminine", "age": "twenties"}, "female_feminine", "twenties"),  # Common Voice
        ({"Sex": "M", "AGE": 41}, "M", "41"),
        ({"gender": "x\n\x00" + "y" * 999}, "x " + "y" * 37 + "…", None),
        ({"gender": {"guess": "f"}, "age": "  "}, None, None),
        (None, None, None),
    ],
)
def test_who_speaks_is_as_the_corpus_writes_it_and_bounded(extra, gender, age):
    assert speaker_attributes(extra and json.dumps(extra)) == {"gender": gender, "age": age}
