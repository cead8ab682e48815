"""The corpora that config/datasets/ names, through the real workflow: small ones in the layouts of the real ones."""

import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr

from speechmill.storage.files import read_json

from .. import corpora
from .server import Repo
from .test_sources import files_of
from .test_workflow import HubRun


class ShippedRun(HubRun):
    """A run of a file of config/datasets/, with a model-free set of metrics and every clip accepted."""

    def __init__(self, directory, dataset, **changes):
        settings = {"batch_size": 4, "download": {"patience_minutes": 0.5}, "rank": {"threshold": 0}}
        super().__init__(directory, dataset=dataset, **settings | changes)
        self.results = directory / "results" / dataset


def published(run):
    data = [pq.read_table(path) for path in sorted((run.results / "published" / "dataset" / "data").glob("*.parquet"))]
    rows = [row for table in data for row in table.drop_columns(["audio"]).to_pylist()]
    return {row["source_id"]: row for row in rows}


def summary(run):
    return read_json(run.results / "report" / "summary.json")


def test_gigaspeech2_from_a_gated_repository(hub, tmp_path):
    corpora.gigaspeech2(tmp_path / "gs2", clips=2)
    hub.repos["speechcolab/gigaspeech2"] = repo = Repo(gated=True)
    repo.commit(files_of(tmp_path / "gs2"))
    run = ShippedRun(tmp_path / "run", "gigaspeech2", source={"metadata": None})
    done = run.start()
    assert done.jobs["fetch"] == done.jobs["enhance"] == 4  # archives: two of train, dev, test
    found = summary(run)
    assert found["clips"]["input"] == 7
    assert found["errored_by"] == {"no_audio": 1}
    assert found["passed_over"] == {"audio without a row in the table": 1}
    rows = published(run)
    assert rows["1-1-8"]["source_member"] == "1/1/1-1-8.wav"
    assert rows["1-1-8"]["text"] == corpora.THAI[3]
    assert {row["license"] for row in rows.values()} == {"apache-2.0"}
    names = {path.name.split("-")[0] for path in (run.results / "published" / "dataset" / "data").iterdir()}
    assert names == {"train", "validation", "test"}
    card = (run.results / "published" / "dataset" / "README.md").read_text()
    assert "may be given to colleagues" in card
    page = (run.results / "report" / "report.html").read_text()
    assert "audio without a row in the table" in page
    assert not (run.results / "raw").exists()


def test_common_voice_grows_from_release_to_release(hub, tmp_path):
    run = ShippedRun(
        tmp_path / "run",
        "mozilla_cv",
        source={"path": "cv.tar.gz", "metadata": None, "splits": ["validated", "dev", "test"]},
    )
    corpora.common_voice(run.directory / "cv.tar.gz")
    run.start()
    before, scores = published(run), run.hashes("scores")
    assert summary(run)["errored_by"] == {"no_audio": 1}
    assert before["common_voice_th_2.mp3"]["text_norm"] == "ต่างๆ นานา 123"
    assert before["common_voice_th_2.mp3"]["chars_per_second"] > 1
    assert not (run.results / "raw").exists()
    assert "Nothing to be done" in run.start().output
    corpora.common_voice(run.directory / "cv.tar.gz", release="26.0-2026-06-10", clips=11)
    done = run.start()
    assert done.jobs["enhance"] == 1
    after = published(run)
    # Clip 10 says what clip 4 of the dev split says, by the same speaker.
    assert len(after) == len(before) + 2
    assert summary(run)["rejected_by"]["held_out"] == 1
    assert {name: row["id"] for name, row in before.items()} == {name: after[name]["id"] for name in before}
    assert scores.items() <= run.hashes("scores").items()


def test_what_common_voice_holds_out_stays_out_of_the_other_corpus_and_its_copies_are_marked(hub, tmp_path):
    """processed-voice-th is mostly Common Voice: the same MP3, and some clips encoded anew."""
    first = ShippedRun(tmp_path / "cv", "mozilla_cv", source={"path": "cv.tar.gz", "metadata": None})
    corpora.common_voice(first.directory / "cv.tar.gz")
    first.start()
    theirs = published(first)
    wav = io.BytesIO()
    samples, rate = soundfile.read(io.BytesIO(corpora.encoded(1, "MP3", 48000)))
    soundfile.write(wav, soxr.resample(samples, rate, 22050) * 0.5, 22050, format="WAV")
    audio = [corpora.encoded(5, "MP3", 48000), wav.getvalue(), corpora.encoded(20)]  # its test clip, a copy, a new one
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": data, "path": f"{n}"} for n, data in enumerate(audio)], kind)
    pq.write_table(pa.table({"audio": column, "sentence": ["ก", "ข", "ค"]}), tmp_path / "train-00000.parquet")
    repo = hub.repos["Porameht/processed-voice-th-169k"] = Repo()
    repo.commit({"data/train-00000.parquet": (tmp_path / "train-00000.parquet").read_bytes()})
    other = str(first.results)
    second = ShippedRun(
        tmp_path / "second",
        "processed_voice_th",
        source={"metadata": None},
        held_out=[{"path": other}],
        compare_with=[other],
    )
    second.start()
    assert summary(second)["rejected_by"] == {"held_out": 1}
    assert summary(second)["near_duplicates"] == 1
    assert set(published(second)) == {"1", "2"}
    scores = pq.read_table(next((second.results / "published" / "dataset" / "scores").iterdir())).to_pylist()
    marks = {row["source_id"]: row["near_duplicate_of"] for row in scores}
    assert marks == {"0": None, "1": theirs["common_voice_th_1.mp3"]["id"], "2": None}
    assert not second.start("-n").jobs["dedup"]
    os.utime(first.results / "ledger" / "duplicates.parquet")  # as when that corpus has grown
    planned = second.start("-n").jobs
    assert planned["dedup"] == 1
    assert planned["enhance"] == 0


def test_webdataset_counts_its_samples_while_it_reads_them(hub, tmp_path):
    run = ShippedRun(tmp_path / "run", "demo", source={"kind": "webdataset", "path": "wds", "metadata": None})
    corpora.webdataset(run.directory / "wds" / "train-0.tar")
    corpora.webdataset(run.directory / "wds" / "train-1.tar", first=3, clips=4, cut=0.7)
    run.start()
    found = summary(run)
    assert found["clips"]["input"] == sum(found["clips"][s] for s in ("accepted", "rejected", "errored", "duplicate"))
    assert found["errored_by"]["no_audio"] == 1
    assert any("truncated" in what for what in found["passed_over"])
    assert {row["source_split"] for row in published(run).values()} == {"train"}
