"""A clip's result does not depend on its batch-mates: enhanced and scored alone, and among clips of other lengths."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from speechmill.config import validate_config
from speechmill.enhance.enhance_batch import enhance_batch
from speechmill.metrics.score_batch import score_batch
from speechmill.preflight import preflight
from speechmill.sources import open_source
from speechmill.sources.manifest import build_manifest, describe_source
from speechmill.tables.batches import read_batches

from ..runs import ROOT, SPEECH

CLIPS = 64
ALONE = 6
DESCRIPTIVE = ("id", "variant", "variant_reason", "error_class", "message")


def enhanced_and_scored(corpus, directory, metrics, batch_seconds):
    """Rows of the enhanced shard and of the scores, by source file."""
    config = validate_config(
        {
            "dataset": "x",
            "source": {"kind": "folder", "path": str(corpus)},
            "enhance": {"batch_seconds": batch_seconds},
            "score": {"metrics": metrics, "batch_seconds": batch_seconds},
        },
        ROOT / "config",
    )
    source = open_source(config)
    build_manifest(source, describe_source(source, config), config, directory / "manifest")
    (batch,) = read_batches(directory / "manifest" / "batches.tsv")
    manifest = directory / "manifest" / f"{batch['batch']}.json"
    shard, ledger, scores = (directory / name for name in ("shard.parquet", "ledger.parquet", "scores.parquet"))
    found = preflight(config, directory)
    enhance_batch(manifest, source, None, config, found, "cpu", 2, shard, ledger)
    score_batch(shard, config, found, "cpu", 2, scores)
    rows = {row["source_file"]: row for row in pq.read_table(shard).to_pylist()}
    values = {row["id"]: row for row in pq.read_table(scores).to_pylist()}
    return rows, {name: values[row["id"]] for name, row in rows.items()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """64 clips of 0.9 to 20 s: prompts, cut, joined and in noise."""
    folder = tmp_path_factory.mktemp("batches") / "corpus"
    folder.mkdir()
    random = np.random.default_rng(7)
    prompts = [soundfile.read(path)[0] for path in sorted(SPEECH.rglob("*.flac"))]
    for number in range(CLIPS):
        samples = prompts[number]
        if number == 5:
            samples = np.concatenate(prompts[70:78])
        elif number % 7 == 3:
            samples = samples[: int(0.9 * 16000)]
        if number % 2:
            samples = samples + random.normal(
                0, np.sqrt(np.mean(samples**2)) * 10 ** (-random.uniform(0, 30) / 20), len(samples)
            )
        soundfile.write(folder / f"{number:02d}.wav", np.clip(samples, -1, 1), 16000, subtype="PCM_16")
    return folder


def test_a_clip_alone_and_in_a_batch_of_64(corpus, tmp_path):
    shard, scores = enhanced_and_scored(corpus, tmp_path / "together", "full", 2000)
    names = [*sorted(shard)[:: len(shard) // ALONE][:ALONE], "05.wav"]
    alone = tmp_path / "some"
    alone.mkdir()
    for name in set(names):
        (alone / name).write_bytes((corpus / name).read_bytes())
    # A budget below any clip's length: every clip is a batch of its own.
    shard_alone, scores_alone = enhanced_and_scored(alone, tmp_path / "alone", "full", 0.1)
    compared = 0
    for name, row in shard_alone.items():
        assert row["audio"] == shard[name]["audio"], name
        assert row["original"] == shard[name]["original"], name
        for metric, value in scores_alone[name].items():
            other = scores[name][metric]
            assert value == other, (name, metric)
            compared += value is not None and metric not in DESCRIPTIVE
    assert compared > ALONE * 15


def test_two_runs_of_the_same_job_write_the_same_bytes(corpus, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("00.wav", "01.wav", "03.wav"):
        (few / name).write_bytes((corpus / name).read_bytes())
    for run in ("a", "b"):
        enhanced_and_scored(few, tmp_path / run, "light", 30)
    for name in ("shard.parquet", "ledger.parquet", "scores.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
