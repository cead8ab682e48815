"""Other forms of accepted clips: each read back with the library that it is for, interrupted, repeated and refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import speechmill.export
from speechmill.cli.main import main
from speechmill.config import validate_config
from speechmill.errors import LedgerError, SpeechmillError
from speechmill.export import FORMATS, export
from speechmill.export.place import MARK
from speechmill.export.rows import of_data_set, of_run
from speechmill.publish import card
from speechmill.sources import open_source
from speechmill.storage.files import read_json, sha256_file, write_json
from speechmill.tables.parquet_io import write_table
from speechmill.tables.schemas import ENHANCED

from .published import RATE, Run
from .test_config import CONFIG

SPLITS = ("train", "validation", "test")
TEXT = "สวัสดีครับ ทดสอบน้ำ"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of 60 clips with the folders that a run has, not to be changed; `truth` is of its accepted clips."""
    made = Run(tmp_path_factory.mktemp("made"))
    folder = made.directory / "results" / "demo"
    moved = []
    for name, *paths in made.batches:
        places = [folder / kind / f"{name}.parquet" for kind in ("enhanced", "ranking")]
        for path, place in zip(paths, places, strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
        moved.append((name, *places))
    made.batches = moved
    (folder / "manifest").mkdir()
    (folder / "manifest" / "batches.tsv").write_text("batch\tclips\nb0\t20\nb1\t20\nb2\t20\n")
    write_json(folder / "report" / "summary.json", made.summary)
    write_json(folder / "ranking" / "profile.json", made.profile)
    data_set = folder / "published" / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "declared_metrics", dict)
        made.publish(target=data_set, sentinel=folder / "published" / "UPLOADED.json")
    return SimpleNamespace(folder=folder, data_set=data_set, truth=made.truth)


@pytest.fixture
def copy(finished, tmp_path):
    """The folder of a run that may be changed."""
    return Path(shutil.copytree(finished.folder, tmp_path / "demo"))


def split_of(n: int) -> str:
    return {1: "validation", 2: "test"}.get(n % 4, "train") if n < 20 else "train"


def samples(flac) -> np.ndarray:
    data, rate = soundfile.read(io.BytesIO(flac) if isinstance(flac, bytes) else flac, dtype="float32")
    assert rate == RATE
    return data


def check(finished, found: dict[str, dict[str, np.ndarray]]) -> None:
    """Accepted clips exactly once, in their splits, with the samples of the enhanced shards. `found`: split, id, samples."""
    expected = {split: {i for i, t in finished.truth.items() if split_of(t["n"]) == split} for split in SPLITS}
    assert {split: set(clips) for split, clips in found.items()} == expected
    for clips in found.values():
        for clip_id, data in clips.items():
            np.testing.assert_array_equal(data, samples(finished.truth[clip_id]["bytes"]))


def hashes(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def published(finished) -> dict[str, dict]:
    return {clip.id: clip.row for clip in of_data_set(finished.data_set).read()}


def test_webdataset_reads_its_form(finished, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="reading back needs webdataset: pip install webdataset")
    export("webdataset", of_run(finished.folder), tmp_path / "out", shard_bytes=50_000)
    found, rows = {}, published(finished)
    for split in SPLITS:
        shards = [str(path) for path in sorted((tmp_path / "out").glob(f"{split}-*.tar"))]
        read = list(webdataset.WebDataset(shards, shardshuffle=False))
        assert all(json.loads(sample["json"]) == rows[sample["__key__"]] for sample in read)
        found[split] = {sample["__key__"]: samples(sample["flac"]) for sample in read}
        assert len(read) == len(found[split])
    check(finished, found)


def test_tar_shards_are_of_about_the_size_given_and_their_members_have_no_time_and_no_owner(finished, tmp_path):
    export("webdataset", of_run(finished.folder), tmp_path, shard_bytes=50_000)
    shards = sorted(tmp_path.glob("train-*"))
    assert [path.name for path in shards] == [f"train-{k:05d}.tar" for k in range(len(shards))]
    assert len(shards) > 3
    for path in shards[:-1]:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert 50_000 <= sum(member.size for member in members) < 70_000
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        assert [m.name.partition(".")[2] for m in members] == ["flac", "json"] * (len(members) // 2)


def test_lhotse_reads_its_form(finished, tmp_path):
    lhotse = pytest.importorskip("lhotse", reason="this form needs lhotse: pip install 'speechmill[lhotse]'")
    export("lhotse", of_run(finished.folder), tmp_path / "100%", shard_bytes=50_000)
    assert len(list((tmp_path / "100%" / "train").glob("cuts.*.jsonl.gz"))) > 3
    found, rows = {}, published(finished)
    for split in SPLITS:
        cuts = list(lhotse.CutSet.from_shar(in_dir=tmp_path / "100%" / split))
        for cut in cuts:
            lhotse.validate(cut)
        found[split] = {cut.id: cut.load_audio()[0] for cut in cuts}
        assert len(cuts) == len(found[split])
        for cut in cuts:
            row = rows[cut.id]
            (said,) = cut.supervisions
            assert (said.text, said.language, said.speaker) == (TEXT, row["language"], None)
            assert said.duration == cut.duration == pytest.approx(row["duration"])
            assert cut.sampling_rate == RATE
            assert (cut.snr_db, cut.closeness, cut.source_file) == (row["snr_db"], row["closeness"], row["source_file"])
    check(finished, found)


def test_nemo_manifests_are_as_documented(finished, tmp_path):
    """The fields and paths that NVIDIA's documentation names; the next test reads them with NeMo, where it is there."""
    export("nemo-manifest", of_run(finished.folder), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"audio", *(f"{split}_manifest.json" for split in SPLITS)}
    found, rows = {}, published(finished)
    for split in SPLITS:
        lines = [json.loads(line) for line in (tmp_path / f"{split}_manifest.json").read_text().splitlines()]
        found[split] = {line["id"]: samples(tmp_path / line["audio_filepath"]) for line in lines}
        assert len(lines) == len(found[split])
        for line in lines:
            row = rows[line["id"]]
            assert line["audio_filepath"] == f"audio/{row['id'][:2]}/{row['id']}.flac"
            assert (line["duration"], line["offset"], line["text"]) == (row["duration"], 0, TEXT)
            assert (line["lang"], line["sampling_rate"], line["snr_db"]) == (row["language"], RATE, row["snr_db"])
            assert None not in line.values()
    check(finished, found)


def test_nemo_reads_its_form(finished, tmp_path, monkeypatch):
    adapters = pytest.importorskip(
        "nemo.collections.common.data.lhotse.nemo_adapters", reason="needs NeMo: pip install 'nemo_toolkit[asr]'"
    )
    from nemo.collections.common.parts.preprocessing.manifest import item_iter

    export("nemo-manifest", of_run(finished.folder), tmp_path)
    found = {}
    for split in SPLITS:
        manifest = str(tmp_path / f"{split}_manifest.json")
        cuts = list(adapters.LazyNeMoIterator(manifest))
        found[split] = {cut.custom["id"]: cut.load_audio()[0] for cut in cuts}
        assert {cut.supervisions[0].text for cut in cuts} == {TEXT}
        assert [Path(item["audio_file"]).stem for item in item_iter(manifest)] == [c.custom["id"] for c in cuts]
    check(finished, found)


def test_a_clip_without_a_text_has_an_empty_one_for_nemo(finished, tmp_path):
    origin = of_run(finished.folder)
    without = [replace(clip, row=clip.row | {"text": None, "speaker_id": "s1"}) for clip in origin.read()]
    export("nemo-manifest", replace(origin, read=lambda: iter(without)), tmp_path)
    line = json.loads((tmp_path / "test_manifest.json").read_text().splitlines()[0])
    assert (line["text"], line["speaker"]) == ("", "s1")


def test_datasets_reads_an_audio_folder(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="reading back needs datasets: pip install datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    export("folder", of_run(finished.folder), tmp_path / "out")
    loaded = datasets.load_dataset("audiofolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    found, rows = {}, published(finished)
    for split, clips in loaded.items():
        clips = clips.cast_column("audio", datasets.Audio(decode=False))
        found[split] = {row["id"]: samples(row["audio"]["bytes"] or row["audio"]["path"]) for row in clips}
        assert clips.num_rows == len(found[split])
        for row in clips:
            assert {name: value for name, value in row.items() if name != "audio"} == rows[row["id"]]
    check(finished, found)


@pytest.mark.parametrize("form", ["folder", "webdataset", "lhotse"])
def test_our_own_sources_read_it(finished, tmp_path, form):
    if form == "lhotse":
        pytest.importorskip("lhotse", reason="this form needs lhotse: pip install 'speechmill[lhotse]'")
    out = tmp_path / "out"
    export(form, of_run(finished.folder), out)
    source = {"kind": {"lhotse": "lhotse_shar"}.get(form, form), "path": str(out)}
    if form == "folder":
        source |= {"metadata": str(out / "clips.jsonl"), "metadata_key": "file_name"}
    if form == "lhotse":
        source["columns"] = {"source_id": "source_id"}
    given = {"dataset": "again", "outdir": str(tmp_path / "work"), "source": source}
    opened = open_source(validate_config(given, CONFIG))
    passed_over: Counter[str] = Counter()
    plans = opened.plan(opened.list_files(), 1000, [])
    clips = [clip for plan in plans for clip in opened.read(plan, None, passed_over)]
    assert not passed_over
    assert Counter(row["source_id"] for row, _ in clips) == Counter(f"clip {t['n']}" for t in finished.truth.values())
    for row, audio in clips:
        assert row["text"] == TEXT
        assert json.loads(row["extra"])["variant"] == "enhanced"
        assert len(samples(audio if isinstance(audio, bytes) else str(audio)))


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_and_its_published_data_set_give_the_same_clips(finished, tmp_path, form):
    if form == "lhotse":
        pytest.importorskip("lhotse", reason="this form needs lhotse: pip install 'speechmill[lhotse]'")
    done = [
        export(form, origin, tmp_path / name)
        for name, origin in (("run", of_run(finished.folder)), ("data", of_data_set(finished.data_set)))
    ]
    assert {one.clips for one in done} == {len(finished.truth)}
    assert done[0].seconds == pytest.approx(sum(t["seconds"] for t in finished.truth.values()))
    assert len(hashes(tmp_path / "run")) == done[0].files == done[1].files
    run, data = ({c.id: (c.split, c.row, c.audio) for c in o.read()} for o in (of_run(finished.folder), of_data_set(finished.data_set)))  # fmt: skip
    assert run == data


@pytest.mark.parametrize("form", FORMATS)
def test_an_interrupted_export_has_whole_files_alone_and_the_next_completes_it(finished, tmp_path, form, monkeypatch):
    if form == "lhotse":
        pytest.importorskip("lhotse", reason="this form needs lhotse: pip install 'speechmill[lhotse]'")
    origin = of_run(finished.folder)
    export(form, origin, tmp_path / "undisturbed", shard_bytes=100_000)
    expected = hashes(tmp_path / "undisturbed")
    assert MARK not in expected
    out = tmp_path / "out"

    def failing():
        for number, clip in enumerate(origin.read()):
            if number == 25:
                raise OSError(28, "No space left on device")
            yield clip

    with pytest.raises(SpeechmillError, match=r"No space left.*run the same command again"):
        export(form, replace(origin, read=failing), out, shard_bytes=100_000)
    left = hashes(out)
    assert left.pop(MARK)
    assert left.items() < expected.items()
    monkeypatch.setattr("time.time", lambda: 2e9)
    export(form, origin, out, shard_bytes=100_000)
    assert hashes(out) == expected


def test_a_killed_export_is_completed_by_the_next(finished, tmp_path):
    export("nemo-manifest", of_run(finished.folder), tmp_path / "undisturbed")
    program = """
import os, signal, sys
from pathlib import Path
from speechmill.export import export, place, rows
real, calls = os.replace, iter(range(100))
def dying(*paths):
    if next(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*paths)
os.replace = dying
export("nemo-manifest", rows.of_run(Path(sys.argv[1])), Path(sys.argv[2]))
"""
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", program, finished.folder, out], check=False)
    assert done.returncode == -9
    assert len(list(out.rglob(".*.tmp"))) > 1
    clips = [path for path in out.rglob("*.flac") if not path.name.startswith(".")]
    assert all(path.read_bytes() == finished.truth[path.stem]["bytes"] for path in clips)
    before = {path: path.stat().st_mtime_ns for path in clips}
    export("nemo-manifest", of_run(finished.folder), out)
    assert {path: path.stat().st_mtime_ns for path in clips} == before
    assert hashes(out) == hashes(tmp_path / "undisturbed")


def test_a_folder_that_holds_something_else_is_refused(finished, tmp_path):
    origin = of_run(finished.folder)
    (tmp_path / "mine").write_text("mine")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(SpeechmillError, match="is not empty"):
            export("webdataset", origin, place)
    out = tmp_path / "out"
    with pytest.raises(LedgerError, match="were planned, 0 were read"):
        export("folder", replace(origin, read=lambda: iter(())), out)
    with pytest.raises(SpeechmillError, match=r"incomplete export \(folder of .*the format differs"):
        export("webdataset", origin, out)
    with pytest.raises(SpeechmillError, match="clips or shard sizes have changed"):
        export("folder", replace(origin, fingerprint="0"), out)
    export("folder", origin, out)
    with pytest.raises(SpeechmillError, match="is not empty"):
        export("folder", origin, out)
    with pytest.raises(SpeechmillError, match="a positive number"):
        export("webdataset", origin, tmp_path / "other", shard_bytes=0)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_run_that_is_not_finished_is_refused(copy):
    sentinel, summary = copy / "published" / "UPLOADED.json", copy / "report" / "summary.json"
    write_json(copy / "owner.json", {"host": os.uname().nodename, "boot": "", "pid": 1, "ticks": 0, "supervisor": None, "since": "x"})  # fmt: skip
    with pytest.raises(SpeechmillError, match=r"not finished: process 1 .* no longer runs.*speechmill resume"):
        of_run(copy)
    (copy / "owner.json").unlink()
    sentinel.unlink()
    with pytest.raises(SpeechmillError, match=r"not published yet .*speechmill resume"):
        of_run(copy)
    shutil.rmtree(copy / "published")  # publish.kind none
    content = read_json(summary)
    assert of_run(copy).clips == content["clips"]["accepted"]
    write_json(summary, content | {"failed_batches": {"b3": 5}})
    with pytest.raises(SpeechmillError, match=r"batches failed \(b3\).*failed_batches: publish"):
        of_run(copy)
    summary.unlink()
    with pytest.raises(SpeechmillError, match="no finished run here"):
        of_run(copy)


def test_a_run_whose_audio_is_gone_or_damaged_says_what_to_do(copy):
    sentinel, shard = copy / "published" / "UPLOADED.json", copy / "enhanced" / "b1.parquet"
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(SpeechmillError, match=r"1 enhanced shards .*--data-set .*published.dataset instead"):
        of_run(copy)
    write_json(sentinel, read_json(sentinel) | {"target": str(copy / "nowhere")})
    with pytest.raises(SpeechmillError, match=r"missing .*set keep_enhanced: true and run again"):
        of_run(copy)
    shard.write_bytes(b"PAR1 not")
    with pytest.raises(SpeechmillError, match=r"b1\.parquet is damaged: .*enhanced again"):
        of_run(copy)
    shard.write_bytes(data)
    origin = of_run(copy)
    at = pq.read_metadata(shard).row_group(0).column(pq.read_schema(shard).names.index("audio"))
    start = at.data_page_offset
    shard.write_bytes(data[:start] + bytes(400) + data[start + 400 :])
    with pytest.raises(SpeechmillError):
        list(origin.read())


def test_tables_that_disagree_are_refused(copy):
    shard, summary = copy / "enhanced" / "b0.parquet", copy / "report" / "summary.json"
    write_table(pq.read_table(shard).slice(5), shard)
    with pytest.raises(LedgerError, match=r"accepted clips are missing from .*b0\.parquet"):
        of_run(copy)
    content = read_json(summary)
    content["clips"]["accepted"] += 1
    write_json(summary, content)
    shutil.copy(copy / "enhanced" / "b1.parquet", shard)
    (copy / "manifest" / "batches.tsv").write_text("batch\tclips\nb1\t20\n")
    with pytest.raises(LedgerError, match="run again to update the report"):
        of_run(copy)
    (copy / "manifest" / "batches.tsv").write_text("batch\tclips\nb9\t20\n")
    with pytest.raises(SpeechmillError, match=r"b9\.parquet is missing: the run is not finished"):
        of_run(copy)


def test_no_clip_at_all_is_an_export_of_none(copy, tmp_path):
    for path in (copy / "ranking").glob("*.parquet"):
        table = pq.read_table(path)
        at = table.schema.get_field_index("state")
        states = pa.array(["rejected"] * table.num_rows)
        write_table(table.set_column(at, table.schema.field(at), states), path)
    content = read_json(copy / "report" / "summary.json")
    content["clips"]["accepted"] = 0
    write_json(copy / "report" / "summary.json", content)
    assert export("folder", of_run(copy), tmp_path / "out").clips == 0


class DataSet:
    """A small published data set of one file, to be written with a fault."""

    def __init__(self, folder: Path, finished):
        self.folder = folder
        self.file = folder / "data" / "train-00000-of-00001.parquet"
        one = next(iter(sorted((finished.data_set / "data").glob("train-*"))))
        self.rows = pq.read_table(one).slice(0, 2)

    def with_column(self, name: str, values: pa.Array) -> Path:
        at = self.rows.schema.get_field_index(name)
        table = self.rows.append_column(name, values) if at < 0 else self.rows.set_column(at, name, values)
        write_table(table, self.file)
        return self.folder


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["../../../etc/passwd", "0" * 24], "is not an id of speechmill"),
        (["a/b" * 8, "0" * 24], "is not an id of speechmill"),
        (["0" * 24 + "\n", "1" * 24], "is not an id of speechmill"),
        (["0" * 24, None], "is not an id of speechmill"),
        (["0" * 24, ""], "is not an id of speechmill"),
        (["0" * 24, "0" * 24], "have the same id"),
        (["0" * 24, "a" * 65], "is not an id of speechmill"),
        (["0" * 24, "a" * 24 + ".x"], "is not an id of speechmill"),
    ],
)
def test_hostile_ids_never_become_paths(finished, tmp_path, ids, message):
    made = DataSet(tmp_path, finished)
    with pytest.raises(SpeechmillError, match=message):
        of_data_set(made.with_column("id", pa.array(ids, pa.string())))


def test_data_sets_that_are_not_ours_or_not_whole_are_refused(finished, tmp_path):
    made = DataSet(tmp_path, finished)
    with pytest.raises(SpeechmillError, match=r"no data/\*\.parquet here"):
        of_data_set(tmp_path)
    made.with_column("duration", pa.array(["1", "2"]))
    with pytest.raises(SpeechmillError, match="unexpected column duration"):
        of_data_set(tmp_path)
    made.with_column("words", pa.array([["a"], ["b"]]))
    with pytest.raises(SpeechmillError, match="column words"):
        of_data_set(tmp_path)
    made.with_column("audio", pa.array([{"bytes": b"RIFF", "path": None}] * 2, ENHANCED.field("audio").type))
    with pytest.raises(SpeechmillError, match="has no FLAC audio"):
        list(of_data_set(tmp_path).read())
    made.with_column("snr_db", pa.array([float("nan"), 1.0]))
    assert [clip.row["snr_db"] for clip in of_data_set(tmp_path).read()] == [None, 1.0]
    (tmp_path / ".speechmill").touch()
    with pytest.raises(SpeechmillError, match=r"not complete \(README\.md is missing\)"):
        of_data_set(tmp_path)
    (tmp_path / ".speechmill").unlink()
    made.file.write_bytes(made.file.read_bytes()[:-20])
    with pytest.raises(SpeechmillError, match=r"is damaged: .*ownload"):
        of_data_set(tmp_path)
    made.file.rename(made.file.with_name("train-00000-of-00002.parquet"))
    with pytest.raises(SpeechmillError, match="1 files of train with -of-00002"):
        of_data_set(tmp_path)
    made.file.with_name("train-00000-of-00002.parquet").rename(made.file.with_name("part.parquet"))
    with pytest.raises(SpeechmillError, match="does not have the name of a published shard"):
        of_data_set(tmp_path)


def test_without_lhotse_its_form_says_what_to_install(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lhotse", None)
    monkeypatch.delitem(sys.modules, "speechmill.export.write_lhotse_shar", raising=False)
    with pytest.raises(SpeechmillError, match=r"pip install 'speechmill\[lhotse\]'"):
        export("lhotse", of_run(finished.folder), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speechmill.export, "PROGRESS_SECONDS", 0.0)
    run, out = str(finished.folder), str(tmp_path / "out")
    assert main(["export", "webdataset", run, out, "--shard-bytes", "100000"]) == 0
    said = capsys.readouterr()
    clips, files = len(finished.truth), len(list((tmp_path / "out").iterdir()))
    assert said.out == f"webdataset: {clips} clips, 0.00 h, {files} files in {out}\n"
    assert f"{clips} of {clips} clips" in said.err
    assert main(["export", "webdataset", "--data-set", str(finished.data_set), out + "2"]) == 0
    assert main(["export", "webdataset", run, out]) == 1
    assert main(["export", "webdataset", out]) == 1
    assert main(["export", "webdataset", run, out + "3", "--data-set", run]) == 1
    assert "export needs either the folder of a run or --data-set" in capsys.readouterr().err
