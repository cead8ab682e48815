"""The demo corpus is what its truth table says, and is the same every time."""

import csv
import hashlib
import importlib.util
import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize("noise", ["white", "pink", "hum", "babble", "music"])
def test_mixtures_have_the_snr_that_the_truth_says(noise, corpus, truth):
    rows = [r for r in truth if r["noise"] == noise and r["path"].endswith(".flac")][:8]
    assert len(rows) >= 5
    for row in rows:
        mixed = quality.mono_16k(*soundfile.read(corpus / row["path"]))
        clean = soundfile.read(ROOT / "demo" / "speech" / row["original"])[0]
        size = min(len(clean), len(mixed))
        # The mixture is scale * (clean + noise): the scale that leaves the least behind is that of the speech.
        scale = (mixed[:size] @ clean[:size]) / (clean[:size] @ clean[:size])
        rest = mixed[:size] / scale - clean[:size]
        snr = 10 * np.log10(build.speech_power(clean) / (rest**2).mean())
        # Chance correlation of speech and noise moves the fitted scale where the noise is loud.
        assert snr == pytest.approx(float(row["snr_db"]), abs=0.5 if float(row["snr_db"]) >= 0 else 1.5), row["path"]


def test_broken_files_are_broken_as_they_claim(corpus, truth):
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
