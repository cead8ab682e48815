"""Which members of an archive belong together, and that none is lost."""

import json

import pytest

from speechmill.errors import ClipError
from speechmill.sources.samples import group_samples

from .. import corpora
from ..corpora import configured, encoded, list_and_read

FLAC = encoded(0, "FLAC")


def grouped(names, rule="stem"):
    audio = [name for name in names if name.endswith((".flac", ".wav", ".mp3"))]
    samples, repeated = group_samples(audio, [name for name in names if name not in audio], rule)
    return {sample.key: (sample.audio, sample.members) for sample in samples}, repeated


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/1.flac", "a/1.json", "a/1.txt"], {"a/1": ("a/1.flac", {"json": "a/1.json", "txt": "a/1.txt"})}),
        (
            ["t_11.708_13.97.flac", "t_11.708_13.97.json", "t_11.97_15.flac", "t_11.97_15.json"],
            {
                "t_11.708_13.97": ("t_11.708_13.97.flac", {"json": "t_11.708_13.97.json"}),
                "t_11.97_15": ("t_11.97_15.flac", {"json": "t_11.97_15.json"}),
            },
        ),
        (
            ["s.left.wav", "s.right.wav", "s.json"],
            {"s.left": ("s.left.wav", {"json": "s.json"}), "s.right": ("s.right.wav", {"json": "s.json"})},
        ),
        (["x.wav", "x.normalized.txt"], {"x": ("x.wav", {"normalized.txt": "x.normalized.txt"})}),
        (["v1.0/x.wav", "v1.0/x.lab"], {"v1.0/x": ("v1.0/x.wav", {"lab": "v1.0/x.lab"})}),
        (["x.a.wav", "x.a.b.wav", "x.a.b.txt"], {"x.a": ("x.a.wav", {}), "x.a.b": ("x.a.b.wav", {"txt": "x.a.b.txt"})}),
        # the text of a clip that is not there is not that of its neighbour
        (["t_1.5.flac", "t_1.7.json"], {"t_1.5": ("t_1.5.flac", {}), "t_1.7": (None, {"json": "t_1.7.json"})}),
        (["x.txt", "x.normalized.txt"], {"x": (None, {"txt": "x.txt", "normalized.txt": "x.normalized.txt"})}),
        ([".wav", "A.FLAC".lower(), "a.TXT"], {".wav": (".wav", {}), "a": ("a.flac", {"txt": "a.TXT"})}),
    ],
)
def test_members_with_the_longest_common_stem_belong_together(names, expected):
    assert grouped(names) == (expected, [])
    assert grouped(names[::-1])[0] == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x.audio.flac", "x.meta.json"], {"x": ("x.audio.flac", {"meta.json": "x.meta.json"})}),
        (["s.left.wav", "s.right.wav", "s.json"], {"s.left": ("s.left.wav", {"json": "s.json"}), "s.right": ("s.right.wav", {"json": "s.json"})}),
        (["x.txt", "x.normalized.txt"], {"x": (None, {"txt": "x.txt", "normalized.txt": "x.normalized.txt"})}),
    ],
)  # fmt: skip
def test_members_with_one_name_up_to_the_first_dot_belong_together(names, expected):
    assert grouped(names, "first_dot") == (expected, [])


def test_audio_with_the_same_stem_is_counted():
    found, repeated = grouped(["x.wav", "x.mp3", "x.flac", "x.txt"])
    assert found == {"x": ("x.wav", {"txt": "x.txt"})}
    assert repeated == ["x.mp3", "x.flac"]


def read(tmp_path, members, cut=None, **source):
    corpora.tar(tmp_path / "w" / "a.tar", members, cut)
    clips, passed_over, *_ = list_and_read(configured(tmp_path, "webdataset", path=str(tmp_path / "w"), **source))
    found = [(row["source_member"], data.error_class if isinstance(data, ClipError) else row["text"]) for b in clips.values() for row, data in b]  # fmt: skip
    assert len(dict(found)) == len(found)
    return dict(found), passed_over


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_members_of_a_sample_are_anywhere(tmp_path, name):
    """By suffix, as `tar --sort=none` of folders by kind has them; each audio member is a clip."""
    numbers = range(4)
    texts = [(f"{n}.json", json.dumps({"text": f"text {n}"}).encode()) for n in numbers]
    audio = [(f"{n}.flac", encoded(n, "FLAC")) for n in numbers]
    for order in ([*texts, *audio], [*audio, *texts], [audio[0], texts[1], audio[1], *audio[2:], texts[0], *texts[2:]]):
        corpora.tar(tmp_path / "w" / name, order)
        clips, passed_over, *_ = list_and_read(configured(tmp_path, "webdataset", path=str(tmp_path / "w")))
        read = [(row["source_member"], row["text"], data) for b in clips.values() for row, data in b]
        assert sorted(read) == [(str(n), f"text {n}", encoded(n, "FLAC")) for n in numbers]
        assert not passed_over


def test_archives_cut_in_the_texts_behind_the_audio(tmp_path):
    """A clip whose text may have been behind the cut does not go on without it."""
    members = [(f"{n}.flac", FLAC) for n in range(4)] + [(f"{n}.txt", b"text %d" % n) for n in range(4)]
    corpora.tar(tmp_path / "whole.tar", members)
    size = 4 * (512 + -(-len(FLAC) // 512) * 512) + 2 * 1024 + 100  # in the header of the third text
    found, passed_over = read(tmp_path, members, cut=size / (tmp_path / "whole.tar").stat().st_size)
    assert found == {"0": "text 0", "1": "archive_cut", "2": "archive_cut", "3": "archive_cut"}
    assert any("truncated" in what for what in passed_over)


def test_which_text_of_several(tmp_path):
    members = [("a.flac", FLAC), ("a.original.txt", b"One."), ("a.normalized.txt", b"one")]
    members += [("b.flac", FLAC), ("b.lab", b"two"), ("b.normalized.txt", b"Two")]
    members += [("c.flac", FLAC), ("c.th.txt", "สาม".encode())]
    members += [("d.flac", FLAC), ("d.th.txt", "สี่".encode()), ("d.en.txt", b"four")]
    members += [("e.flac", FLAC), ("e.txt", b"beside"), ("e.json", b'{"text": "in JSON"}')]
    assert read(tmp_path, members)[0] == {"a": "one", "b": "two", "c": "สาม", "d": None, "e": "in JSON"}
    chosen = read(tmp_path, members, columns={"text": "original.txt"})[0]
    assert (chosen["a"], chosen["b"]) == ("One.", None)


def test_what_is_no_sample_is_counted(tmp_path):
    members = [("a.flac", FLAC), ("a.mp3", b"x"), ("a.npy", b"numbers"), ("b.png", b"x"), ("README", b"x")]
    found, passed_over = read(tmp_path, members)
    assert found == {"a": None}
    assert passed_over == {
        "audio beside other audio of the same sample (.mp3)": 1,
        "members that are neither audio nor a description (.npy)": 1,
        "members that are neither audio nor a description (.png)": 1,
        "members that are neither audio nor a description (no suffix)": 1,
    }


def test_audio_is_known_by_its_first_bytes(tmp_path):
    found, passed_over = read(
        tmp_path, [("a.audio", FLAC), ("b.dat", encoded(0, "OGG")), ("c", encoded(0)), ("a.txt", b"t")]
    )
    assert found == {"a": "t", "b": None, "c": None}
    assert not passed_over


@pytest.mark.parametrize("junk", ["._a.flac", "./x/._b.json", "__MACOSX/._a.flac"])
def test_what_macos_adds_displaces_nothing(tmp_path, junk):
    apple = bytes.fromhex("0005160700020000") + bytes(155)
    found, passed_over = read(tmp_path, [(junk, apple), ("a.flac", FLAC), ("a.json", b'{"text": "t"}')])
    assert found == {"a": "t"}
    assert passed_over == {"members that macOS adds (._NAME)": 1}


@pytest.mark.parametrize(
    ("text", "encodings", "expected"),
    [
        ("สวัสดี".encode("tis-620"), ["utf-8"], "bad_row"),
        ("สวัสดี".encode("tis-620"), ["utf-8", "tis-620"], "สวัสดี"),
        ("สวัสดี".encode(), ["utf-8", "tis-620"], "สวัสดี"),
        ("été".encode("cp1252"), ["utf-8", "cp1252"], "été"),
        ("สวัสดี".encode("utf-16"), ["utf-8"], "สวัสดี"),
        ("สวัสดี".encode("utf-16-le"), ["utf-8"], "bad_row"),
        ("สวัสดี".encode("utf-8-sig"), ["utf-8"], "สวัสดี"),
        (b"a\0b", ["utf-8"], "bad_row"),
    ],
)
def test_encodings_of_texts(tmp_path, text, encodings, expected):
    assert read(tmp_path, [("a.flac", FLAC), ("a.txt", text)], encodings=encodings)[0] == {"a": expected}


def shar(folder, cuts):
    import lhotse

    folder.mkdir()
    lhotse.CutSet.from_cuts(cuts).to_shar(str(folder), fields={"recording": "flac"})


def spoken(*parts):
    """A recording of prompts in a row, as one cut with a supervision for each."""
    lhotse = pytest.importorskip("lhotse", reason="needs lhotse: pip install 'speechmill[lhotse]'")
    import numpy as np
    import soundfile

    def cut(folder, name):
        sounds = [corpora.speech(n) for n in range(len(parts))]
        soundfile.write(folder / f"{name}.wav", np.concatenate(sounds), 16000)
        recording = lhotse.Recording.from_file(folder / f"{name}.wav")
        ends = np.cumsum([len(sound) / 16000 for sound in sounds])
        made = []
        for number, (text, speaker) in enumerate(parts):
            start = ends[number] - len(sounds[number]) / 16000
            made.append(
                lhotse.SupervisionSegment(
                    f"{name}{number}", recording.id, start, ends[number] - start, text=text, speaker=speaker
                )
            )
        return lhotse.MonoCut(name, 0, recording.duration, 0, made[::-1], recording=recording)

    return cut


def test_each_supervision_of_a_cut_is_a_clip(tmp_path):
    import io

    import soundfile

    cut = spoken(("one", "A"), ("two", "B"), ("three", "A"))
    shar(tmp_path / "s", [cut(tmp_path, "talk")])
    clips, *_ = list_and_read(configured(tmp_path, "lhotse_shar", path=str(tmp_path / "s")))
    found = [clip for batch in clips.values() for clip in batch]
    assert [(row["source_member"], row["text"], row["speaker_id"]) for row, _ in found] == [
        ("talk-0", "one", "A"),
        ("talk-1", "two", "B"),
        ("talk-2", "three", "A"),
    ]
    for number, (row, data) in enumerate(found):
        samples, rate = soundfile.read(io.BytesIO(data))
        assert abs(len(samples) - len(corpora.speech(number))) <= 2
        assert json.loads(row["extra"])["duration"] == pytest.approx(len(samples) / rate, abs=1e-3)
    assert len({row["id"] if "id" in row else row["source_member"] for row, _ in found}) == 3


@pytest.mark.parametrize(
    ("parts", "text", "speaker"),
    [
        ([("one", "A"), ("two", "A")], "one two", "A"),
        ([("one", "A"), ("two", "B")], "one two", None),
        ([("one", None), (None, None)], "one", None),
        ([("only", "A")], "only", "A"),
    ],
)
def test_supervisions_joined_in_order_of_start(tmp_path, parts, text, speaker):
    shar(tmp_path / "s", [spoken(*parts)(tmp_path, "talk")])
    clips, *_ = list_and_read(configured(tmp_path, "lhotse_shar", path=str(tmp_path / "s"), supervisions="join"))
    [[(row, data)]] = clips.values()
    assert (row["source_member"], row["text"], row["speaker_id"]) == ("talk", text, speaker)
    assert isinstance(data, bytes)
