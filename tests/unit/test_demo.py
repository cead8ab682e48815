"""The demo corpus is what its truth table says, and is the same every time."""

import csv
import hashlib
import importlib.util
import io
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

ROOT = Path(__file__).parents[2]


def load_by_path(path: Path):
    """A program outside of the package as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


build = load_by_path(ROOT / "demo" / "build.py")
quality = load_by_path(ROOT / "benchmarks" / "demo_quality.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    assert build.main(["--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def truth(corpus):
    with open(corpus.with_name("truth.tsv"), encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def test_the_speech_is_small_and_attributed():
    speech = ROOT / "demo" / "speech"
    assert sum(p.stat().st_size for p in speech.rglob("*")) <= 6_000_000
    assert len(list(speech.rglob("*.flac"))) == 120
    for file in speech.rglob("*.flac"):
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    assert "Allison Smith" in (speech / "LICENSE").read_text()


def test_two_builds_give_the_same_bytes(corpus):
    items = {item.path: hashlib.sha256(item.data).hexdigest() for item in build.Builder(0).build()}
    assert items == {path: hashlib.sha256((corpus / path).read_bytes()).hexdigest() for path in items}


def test_a_second_build_has_nothing_to_do(corpus, capsys):
    before = (corpus / "metadata.tsv").stat().st_mtime_ns
    build.main(["--out", str(corpus)])
    assert "up to date" in capsys.readouterr().out
    assert (corpus / "metadata.tsv").stat().st_mtime_ns == before


def test_the_truth_covers_every_file_and_stays_outside(corpus, truth):
    files = {p.relative_to(corpus).as_posix() for p in corpus.rglob("*") if p.is_file()} - {"metadata.tsv", ".stamp"}
    assert {row["path"] for row in truth} == files
    assert not list(corpus.rglob("truth*"))


def test_the_corpus_has_all_that_a_corpus_has_in_life(corpus, truth):
    kinds = Counter(row["kind"] for row in truth)
    assert kinds["clean"] >= 40
    assert kinds["noisy"] >= 100
    assert all(kinds[kind] for kind in ("reverberant", "clipped", "dc", "silence", "duplicate", "lossy copy", "broken"))
    infos = [soundfile.info(corpus / row["path"]) for row in truth if row["kind"] not in ("broken",)]
    assert {info.format for info in infos} == {"FLAC", "WAV", "MP3", "OGG"}
    assert {info.samplerate for info in infos} == {8000, 16000, 22050, 44100, 48000}
    assert {info.channels for info in infos} == {1, 2}
    assert {row["noise"] for row in truth if row["kind"] == "noisy"} == {"white", "pink", "hum", "babble", "music"}
    assert any("ส" in row["path"] and " " in row["path"] for row in truth)
    assert any("ครับ" in line for line in (corpus / "metadata.tsv").read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def prompts():
    return build.load_prompts()


def realised_snr(row, corpus, prompts):
    """SNR of an encoded mixture: both parts' levels by least squares, so that chance correlation plays no part."""
    clean = soundfile.read(ROOT / "demo" / "speech" / row["original"])[0]
    number = int(Path(row["path"]).stem.rsplit("-", 1)[1])
    noise = build.make_noise(row["noise"], len(clean), np.random.default_rng([0, number]), prompts)
    mixed = quality.mono_16k(*soundfile.read(corpus / row["path"]))[: len(clean)]
    parts = np.stack([clean, noise], axis=1)[: len(mixed)]
    (speech, rest), *_ = np.linalg.lstsq(parts, mixed, rcond=None)
    return 10 * np.log10(speech**2 * build.speech_power(clean) / (rest**2 * (noise**2).mean()))


@pytest.mark.parametrize("noise", ["white", "pink", "hum", "babble", "music"])
def test_mixtures_have_the_snr_that_the_truth_says(noise, corpus, truth, prompts):
    rows = [r for r in truth if r["noise"] == noise and r["path"].endswith((".flac", ".wav"))][::2]
    assert len(rows) >= 5
    for row in rows:
        assert realised_snr(row, corpus, prompts) == pytest.approx(float(row["snr_db"]), abs=0.5), row["path"]


def test_silence_around_speech_changes_no_snr(prompts):
    samples = prompts[0].samples
    padded = np.concatenate([np.zeros(32_000), samples, np.zeros(48_000)])
    assert build.speech_power(padded) == pytest.approx(build.speech_power(samples), rel=0.03)


def test_clipped_clips_are_clipped_by_the_share_that_the_truth_says(corpus, truth):
    for row in (r for r in truth if r["kind"] == "clipped"):
        pcm = soundfile.read(corpus / row["path"], dtype="int16")[0].astype(int)
        assert (np.abs(pcm) >= 32767).mean() == pytest.approx(float(row["clipped_share"]), abs=2e-4)
        assert float(row["clipped_share"]) > 0.001


def test_everything_else_decodes(corpus, truth):
    for row in (r for r in truth if r["kind"] != "broken"):
        samples = soundfile.read(corpus / row["path"])[0]
        assert len(samples)
        assert np.isfinite(samples).all(), row["path"]


def test_broken_files_are_broken_as_they_claim(corpus, truth, prompts):
    paths = {
        Path(row["path"]).stem.rsplit("-", 1)[0].split(" ")[-1]: corpus / row["path"]
        for row in truth
        if row["kind"] == "broken"
    }
    assert paths["empty"].stat().st_size == 0
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(paths["text"])
    assert soundfile.info(paths["an-hour"]).duration == 3600
    assert paths["an-hour"].stat().st_size < 200_000
    assert soundfile.info(paths["channels"]).channels == 1000
    assert not np.isfinite(soundfile.read(paths["nan"])[0]).all()
    assert not soundfile.read(paths["zeros"])[0].any()
    assert soundfile.info(paths["20-ms"]).frames == 320
    longest = max(len(prompt.samples) for prompt in prompts)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(paths["cut-flac"])
    # libsndfile reads what is left of these without a word: that is why they are in the corpus.
    assert len(soundfile.read(paths["cut-ogg"])[0]) < longest
    for name, claimed in (("cut-wav", longest * 2), ("liar", 0x70000000)):
        data = paths[name].read_bytes()
        assert int.from_bytes(data[40:44], "little") == claimed > len(data)


def test_a_damaged_truth_is_mended(tmp_path, monkeypatch):
    item = build.Item("xx/a.wav", b"a", {"kind": "broken"})
    monkeypatch.setattr(build.Builder, "build", lambda self: [item])
    truth = tmp_path / "truth.tsv"
    build.main(["--out", str(tmp_path / "corpus")])
    whole = truth.read_bytes()
    truth.write_bytes(whole[: len(whole) // 2])
    build.main(["--out", str(tmp_path / "corpus")])
    assert truth.read_bytes() == whole


def test_duplicates_have_the_same_samples_and_lossy_copies_do_not(corpus, truth):
    for row in truth:
        if row["kind"] in ("duplicate", "lossy copy"):
            samples, rate = soundfile.read(corpus / row["path"], dtype="float32")
            samples = samples if samples.ndim == 1 else samples.mean(axis=1)
            if row["kind"] == "duplicate":
                original, original_rate = soundfile.read(corpus / row["duplicate_of"], dtype="float32")
                assert rate == original_rate
                assert np.array_equal(samples, original if original.ndim == 1 else original.mean(axis=1))


def test_the_ogg_checksum_is_that_of_the_encoder():
    data = io.BytesIO()
    soundfile.write(data, np.zeros(4000, np.float32), 16000, format="OGG")
    serial = int.from_bytes(data.getvalue()[14:18], "little")
    assert build.fixed_serial(data.getvalue(), serial) == data.getvalue()


def test_si_sdr_is_that_of_its_definition():
    random = np.random.default_rng(0)
    clean, noise = random.normal(size=(2, 160_000))
    noise -= noise.mean() + (noise @ clean) / (clean @ clean) * clean
    noisy = 0.3 * (clean + noise * np.sqrt((clean @ clean) / (noise @ noise)) * 10 ** (-12 / 20))
    assert quality.si_sdr(clean, noisy) == pytest.approx(12, abs=0.01)
    delayed = np.concatenate([np.zeros(100), noisy])[: len(noisy)]
    assert quality.aligned_si_sdr(clean, delayed, 0) == pytest.approx(12, abs=0.1)


class Results:
    """Fabricated results of a run that does everything right: it publishes the clean recording itself."""

    def __init__(self, corpus, truth, folder):
        self.folder = folder
        (folder / "corpus").symlink_to(corpus)
        noisy = [r for r in truth if r["kind"] == "noisy"][::7]
        pairs = [r for r in truth if r["duplicate_of"]][::4]
        clean = [r for r in truth if r["path"] in {p["duplicate_of"] for p in pairs}]
        clean += [r for r in truth if r["kind"] == "clean" and r not in clean][:9]
        self.truth = [*noisy, *clean, *pairs, *(r for r in truth if r["kind"] == "broken")]
        self.rows = {r["path"]: self.row(r) for r in self.truth}
        self.audio = {r["path"]: ROOT / "demo" / "speech" / r["original"] for r in self.truth if r["original"]}

    @staticmethod
    def row(truth):
        row = dict.fromkeys(["criterion", "error_class", "duplicate_of", "closeness"])
        row |= {"id": truth["path"], "source_file": truth["path"], "state": "accepted"}
        if truth["kind"] == "noisy":
            row["closeness"] = 0.5 + float(truth["snr_db"]) / 100
        elif truth["duplicate_of"]:
            row |= {"state": "duplicate", "duplicate_of": truth["duplicate_of"]}
        elif truth["expected"]:
            row["state"], why = truth["expected"].split("|")[0].split(":")
            row["error_class" if row["state"] == "errored" else "criterion"] = why
        return row

    def lose(self, row, state="rejected"):
        """The clip leaves before it has a shard."""
        self.rows[row["path"]] |= {"state": state, "closeness": None, "criterion": "speech_s"}
        del self.audio[row["path"]]

    def evaluate(self):
        for name in ("report", "enhanced"):
            (self.folder / name).mkdir()
        rows = list(self.rows.values())
        pq.write_table(pa.Table.from_pylist(rows), self.folder / "report" / "ranking.parquet")
        clips = Counter(row["state"] for row in rows) | {"input": len(rows)}
        (self.folder / "report" / "summary.json").write_text(json.dumps({"clips": clips}))
        shards = [
            {"id": path, "audio": {"bytes": file.read_bytes()}, "variant": "enhanced", "trim_start_s": 0.0}
            for path, file in self.audio.items()
        ]
        pq.write_table(pa.Table.from_pylist(shards), self.folder / "enhanced" / "clips-00000.parquet")
        build.write_tsv(
            self.folder / "truth.tsv", build.TRUTH, [[row[name] for name in build.TRUTH] for row in self.truth]
        )
        return quality.evaluate(self.folder, self.folder / "truth.tsv")


@pytest.fixture
def results(corpus, truth, tmp_path):
    return Results(corpus, truth, tmp_path)


def test_perfect_results_meet_every_target(results):
    found = results.evaluate()
    assert found["problems"] == []
    assert found["spearman_closeness_true_snr"] == pytest.approx(1)
    assert found["si_sdr_gain_db_below_15_db"] > 40
    assert found["clean_kept_share"] == found["noisy_measured_share"] == 1
    json.dumps(found, allow_nan=False)


def test_lost_clean_clips_count_as_not_kept(results):
    clean = [r for r in results.truth if r["kind"] == "clean"]
    for row in clean[:3]:
        results.lose(row)
    found = results.evaluate()
    assert found["clean_kept_share"] == pytest.approx(1 - 3 / len(clean))
    assert any("clean_kept_share" in problem for problem in found["problems"])


def test_losing_the_hardest_clips_is_no_gain(results):
    for row in [r for r in results.truth if r["kind"] == "noisy" and float(r["snr_db"]) < 5]:
        results.lose(row, "errored")
    assert any("noisy_measured_share" in problem for problem in results.evaluate()["problems"])


def test_harmed_clean_clips_and_wrong_order_are_told(results, tmp_path):
    harmed = next(r for r in results.truth if r["kind"] == "clean")
    samples = soundfile.read(results.audio[harmed["path"]])[0]
    noise = np.random.default_rng(0).normal(0, 0.1 * samples.std(), len(samples))
    soundfile.write(tmp_path / "harmed.flac", samples + noise, 16_000)
    results.audio[harmed["path"]] = tmp_path / "harmed.flac"
    for row in results.rows.values():
        row["closeness"] = row["closeness"] and 1 - row["closeness"]
    found = results.evaluate()
    assert found["spearman_closeness_true_snr"] == pytest.approx(-1)
    assert found["clean_kept_share"] < 1


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("duplicate", {"state": "accepted"}, "was not found"),
        ("clean", {"state": "duplicate", "duplicate_of": "somewhere"}, "it is none"),
        ("broken", {"state": "errored", "error_class": "unknown"}, "expected"),
    ],
)
def test_wrong_ends_are_told(kind, change, message, results):
    twins = {r["duplicate_of"] for r in results.truth}
    row = next(r for r in results.truth if r["kind"] == kind and r["path"] not in twins)
    results.rows[row["path"]] |= change
    assert any(row["path"] in p and message in p for p in results.evaluate()["problems"])


def test_nothing_to_measure_is_a_miss_and_no_nan(results):
    results.truth = [r for r in results.truth if r["kind"] == "broken"]
    results.rows = {r["path"]: results.rows[r["path"]] for r in results.truth}
    found = results.evaluate()
    assert len([p for p in found["problems"] if "not measurable" in p]) == 4
    json.dumps(found, allow_nan=False)
