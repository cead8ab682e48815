"""Folders behind links: all files once, under paths that do not change."""

import os

import pytest

from speechmill.errors import SourceError
from speechmill.sources.walk import walk_files

from ..corpora import configured, encoded, list_and_read


@pytest.fixture
def tree(tmp_path):
    for path in ("root/own/c.flac", "root/d.flac", "elsewhere/a.flac", "elsewhere/deep/b.flac"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(encoded(0, "FLAC"))
    return tmp_path


def listed(tree):
    from collections import Counter

    passed_over = Counter()
    return sorted(path for path, *_ in walk_files(tree / "root", lambda path: True, passed_over)), passed_over


def test_linked_folders_are_read(tree):
    (tree / "root" / "part2").symlink_to("../elsewhere")
    found, passed_over = listed(tree)
    assert found == ["d.flac", "own/c.flac", "part2/a.flac", "part2/deep/b.flac"]
    assert not passed_over


@pytest.mark.parametrize("target", [".", "..", "own", "/"])
def test_loops_are_counted_and_not_followed(tree, target):
    (tree / "root" / "own" / "back").symlink_to(os.path.join(tree / "root", target))
    found, passed_over = listed(tree)
    assert found == ["d.flac", "own/c.flac"]
    assert passed_over == {"links to folders that are read already, such as own/back": 1}


def test_a_folder_is_read_once(tree):
    for name in ("a", "b", "z"):
        (tree / "root" / name).symlink_to("../elsewhere")
    (tree / "elsewhere" / "again").symlink_to("../root")
    found, passed_over = listed(tree)
    assert found == ["a/a.flac", "a/deep/b.flac", "d.flac", "own/c.flac"]
    assert passed_over == {"links to folders that are read already, such as a/again": 3}


def test_links_do_not_multiply(tree):
    """2^30 paths lead to the last folder."""
    for level in range(30):
        (tree / f"level{level}").mkdir()
        for name in ("x", "y"):
            (tree / f"level{level}" / name).symlink_to(f"../level{level + 1}")
    (tree / "level30").mkdir()
    (tree / "level30" / "e.flac").write_bytes(b"x")
    (tree / "root" / "more").symlink_to("../level0")
    found, _ = listed(tree)
    assert sum(path.endswith("e.flac") for path in found) == 1


def test_a_link_changes_no_path(tree):
    before, _ = listed(tree)
    (tree / "root" / "0-sorts-first").symlink_to("own")
    assert listed(tree)[0] == before


def test_hidden_files_are_counted(tree):
    (tree / "root" / "._d.flac").write_bytes(b"x")
    (tree / "root" / ".cache").mkdir()
    assert listed(tree) == (["d.flac", "own/c.flac"], {"hidden files and folders": 2})


def test_a_broken_link_to_audio_is_named(tree):
    (tree / "root" / "gone.flac").symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"gone\.flac: No such file.*fix the link"):
        listed(tree)


@pytest.mark.parametrize(("kind", "name"), [("folder", "x.flac"), ("webdataset", "x.tar"), ("parquet", "x.parquet")])
def test_every_kind_follows_links(tmp_path, kind, name):
    from .. import corpora

    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").mkdir()
    if kind == "folder":
        (tmp_path / "elsewhere" / name).write_bytes(encoded(0, "FLAC"))
    elif kind == "webdataset":
        corpora.tar(tmp_path / "elsewhere" / name, [("a.flac", encoded(0, "FLAC"))])
    else:
        corpora.parquet(tmp_path / "elsewhere" / name, rows=1)
    (tmp_path / "root" / "linked").symlink_to("../elsewhere")
    clips, *_ = list_and_read(configured(tmp_path, kind, path=str(tmp_path / "root")))
    assert [row["source_file"] for batch in clips.values() for row, _ in batch] == [f"linked/{name}"]


@pytest.mark.parametrize("name", ["a.audio", "b", "c.bin", "d.dat"])
def test_files_with_an_unknown_suffix_are_chosen_by_content(tmp_path, name):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / name).write_bytes(encoded(0, {"a": "FLAC", "b": "OGG", "c": "WAV", "d": "AIFF"}[name[0]]))
    (tmp_path / "f" / "other.xyz").write_bytes(b"no audio")
    clips, _, description, _ = list_and_read(configured(tmp_path, "folder", path=str(tmp_path / "f")))
    assert [row["source_file"] for batch in clips.values() for row, _ in batch] == [name]
    assert description["notes"] == ["1 files passed over: .xyz"]
