"""What a run will take: held against runs whose jobs obey a known law, and against another way to count."""

import json
import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from speechmill.attempts import TOLD
from speechmill.cli import main
from speechmill.config import validate_config
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.estimate import earlier_runs, estimate, estimate_text, makespan, slots_of
from speechmill.fetch import fetch_file
from speechmill.files import write_json
from speechmill.manifest import batch_identity, listing_of
from speechmill.runs import CHECKOUT, merged_config
from speechmill.sources import Source
from speechmill.sources.revision import asked_for
from speechmill.throughput import fit

from .runs_account import Account

LAW = {"enhance": (20.0, 0.05), "score": (10.0, 0.02)}  # seconds of a job, and per second of audio
AROUND = 3.0
BATCH = 100  # clips


def configured(**changes):
    section = {"kind": "folder", "path": "/corpus"} | changes.pop("source", {})
    given = {"dataset": "demo", "source": section, "batch_size": BATCH, "score": {"metrics": "light"}}
    return validate_config(given | changes, CHECKOUT / "config")


def made(run_dir, config, audio, done=None, device="CPU", law=LAW, noise=0.0):
    """A run of batches with so many seconds of audio each, of which the first `done` were enhanced and scored."""
    account = Account(run_dir)
    drawn = random.Random(1)
    write_json(run_dir / "preflight.json", {"enhancer": "rnnoise", "metric_groups": ["signal", "dnsmos_p808"]})
    write_json(run_dir / "source.json", {"asked_for": asked_for(config["source"]), "bytes": 10**9, "files": []})
    (run_dir / "manifest").mkdir()
    rows = "".join(f"b{number}\t{BATCH}\t{seconds}\t\t\n" for number, seconds in enumerate(audio))
    (run_dir / "manifest" / "batches.tsv").write_text("batch\tclips\tseconds\tsource_file\tfetched_as\n" + rows)
    write_json(run_dir / "manifest" / "b0.json", {"identity": batch_identity(config)})
    account.begin(0)
    at = 0.0
    for number, seconds in enumerate(audio[:done]):
        for stage, (overhead, slope) in law.items():
            took = (overhead + slope * seconds) * (1 + noise * drawn.uniform(-1, 1))
            account.submit(at, stage, f"b{number}")
            at += took + AROUND
            told = {"clips": {"passed": BATCH}, "audio_seconds": {"passed": seconds}, "device": device}
            account.finish(at, stage, f"b{number}", seconds=took, began=account.time(at - took), **told)
        (run_dir / "enhanced").mkdir(exist_ok=True)
        pq.write_table(pa.table({"original": [b""]}), run_dir / "enhanced" / f"b{number}.parquet")
    return run_dir


def job_seconds(audio, law=LAW):
    return [math.fsum(overhead + slope * each for each in audio) for overhead, slope in law.values()]


def test_another_corpus_with_longer_batches_takes_what_the_law_of_the_jobs_says(tmp_path):
    config = configured()
    first = made(tmp_path / "others" / "first", config, [400, 600, 1000, 700, 900, 1200], noise=0.05)
    other = configured(source={"path": "/another"})
    second = made(tmp_path / "second", other, [2000, 3000, 500] * 4, done=0)
    found = estimate(other, second, [first], profile="local")
    assert [stage.job_seconds for stage in found.stages] == pytest.approx(job_seconds([2000, 3000, 500] * 4), rel=0.1)
    assert all(stage.is_measured and "6 jobs" in stage.basis for stage in found.stages)
    assert found.gpu_hours.value == 0


def test_jobs_of_equal_batches_are_predicted_though_they_do_not_tell_start_from_speed(tmp_path):
    config = configured()
    run = made(tmp_path / "demo", config, [600.0] * 10, done=4)
    found = estimate(config, run, [], profile="local")
    assert [stage.jobs for stage in found.stages] == [6, 6]
    assert [stage.job_seconds for stage in found.stages] == pytest.approx(job_seconds([600.0] * 6))
    assert (found.batches.value, found.batches_left.value, found.audio_hours.value) == (10, 6, pytest.approx(10 / 6))


def test_wall_clock_is_the_makespan_of_the_workers_and_what_comes_after(tmp_path):
    config = configured(cluster={"workers": 3, "gpus_per_worker": 0}, publish={"kind": "none"})
    run = made(tmp_path / "demo", config, [600.0] * 40, done=4)
    (enhance,), (score,) = ([each] for each in job_seconds([600.0]))
    heavy = makespan([(enhance + AROUND, score + AROUND)] * 36, 3)
    found = estimate(config, run, [], profile="slurm")
    assert found.workers.value == 3
    assert heavy < found.wall_hours.value * 3600 < heavy + 40
    assert "queue" in estimate_text(found)


def test_nothing_is_left_of_a_finished_run(tmp_path):
    config = configured(publish={"kind": "none"})
    run = made(tmp_path / "demo", config, [600.0] * 3)
    for path in (
        "ledger/duplicates.parquet",
        "ledger/near_duplicates.parquet",
        "ranking/advice.json",
        "report/summary.json",
    ):
        write_json(run / path, {})
    found = estimate(config, run, [], profile="local")
    assert (found.wall_hours.value, found.batches_left.value) == (0, 0)
    assert [figure.value for figure in found.disk_bytes.values()] == [0] * 4


@pytest.mark.parametrize(
    ("changes", "measured", "left"),
    [
        ({}, [True, True], [2, 2]),
        ({"score": {"metrics": "full"}}, [True, False], [2, 6]),
        ({"enhance": {"enhancer": "none"}}, [False, True], [6, 6]),
        ({"batch_size": 50}, [True, True], [12, 12]),
        ({"rank": {"profile": "tts"}}, [True, True], [2, 2]),
    ],
)
def test_jobs_with_other_settings_measure_nothing_and_their_results_are_not_done(tmp_path, changes, measured, left):
    run = made(tmp_path / "demo", configured(), [600.0] * 6, done=4)
    found = estimate(configured(**changes), run, [], profile="local")
    assert [stage.is_measured for stage in found.stages] == measured
    assert [stage.jobs for stage in found.stages] == left


def test_jobs_on_a_gpu_say_nothing_about_a_cpu_and_the_table_says_that_no_gpu_was_measured(tmp_path):
    config = configured(cluster={"gpus_per_worker": 1})
    run = made(tmp_path / "demo", config, [600.0] * 6, done=4, device="NVIDIA H200")
    on_gpu = estimate(config, run, [], profile="slurm")
    on_cpu = estimate(config | {"device": "cpu"}, run, [], profile="slurm")
    assert [stage.is_measured for stage in on_gpu.stages] == [True, True]
    assert on_gpu.gpu_hours.value * 3600 == pytest.approx(sum(job_seconds([600.0] * 2)))
    assert [stage.is_measured for stage in on_cpu.stages] == [False, False]
    assert on_cpu.gpu_hours.value == 0
    unmeasured = estimate(config, made(tmp_path / "cpu", config, [600.0] * 6, done=4), [], profile="slurm")
    assert all("no GPU was ever measured" in stage.basis for stage in unmeasured.stages)


def test_a_run_of_the_same_corpus_is_believed_before_others(tmp_path):
    config = configured()
    slow = {stage: (10 * overhead, 10 * slope) for stage, (overhead, slope) in LAW.items()}
    other = made(tmp_path / "other", configured(source={"path": "/another"}), [600.0] * 6, law=slow)
    same = made(tmp_path / "same", config, [600.0] * 6)
    assert earlier_runs(tmp_path / "demo") in ([other, same], [same, other])
    found = estimate(config, tmp_path / "demo", [other, same], profile="local")
    assert [stage.job_seconds for stage in found.stages] == pytest.approx(job_seconds([600.0] * 6))
    assert "manifest" in found.audio_hours.basis  # the size is that run's, too


def test_what_is_not_known_is_none_and_says_why(tmp_path):
    config = configured(
        source={"kind": "hf_parquet", "path": None, "repo": "a/b"}, publish={"kind": "hub", "repo": "a/c"}
    )
    found = estimate(config, tmp_path / "demo", [], profile="slurm")
    unknown = (found.clips, found.audio_hours, found.batches, found.wall_hours, found.gpu_hours, found.upload_bytes)
    assert all(figure.value is None for figure in unknown)
    assert "expected" in found.audio_hours.basis
    assert json.loads(json.dumps(found.as_dict()))["wall_hours"]["value"] is None
    told = estimate(config | {"expected": {"clips": 250, "hours": 2}}, tmp_path / "demo", [], profile="slurm")
    assert (told.clips.value, told.audio_hours.value, told.batches.value) == (250, pytest.approx(2), 3)
    assert told.upload_bytes.value == pytest.approx(2 * 70e6)
    assert "no earlier run" in told.wall_hours.basis


def test_downloads_bound_the_wall_clock_where_they_are_slower_than_the_workers(tmp_path):
    config = configured(source={"kind": "hf_parquet", "path": None, "repo": "a/b"})
    run = made(tmp_path / "demo", config, [60.0] * 4, done=2)
    account = Account.__new__(Account)
    account.run_dir, account.start = run, "2026"
    account.line(0, "submitted", "fetch", None, file="x")
    account.line(0, "finished", "fetch", None, file="x", seconds=500.0, bytes=10**6, transfer_seconds=10.0)
    found = estimate(config, run, [], profile="slurm")  # half of 10^9 bytes at 10^5 a second, four at a time
    assert 1250 < found.wall_hours.value * 3600 < 1300
    assert "bound by downloads" in found.wall_hours.basis
    assert found.disk_bytes["downloads"].value == 5e8


def test_a_folder_and_parquet_files_are_looked_at_and_hostile_headers_do_not_count(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "rows").mkdir()
    for number in range(30):
        soundfile.write(tmp_path / "corpus" / f"{number}.wav", np.zeros(8000 * (1 + number % 3), np.int16), 8000)
    header = bytearray((tmp_path / "corpus" / "0.wav").read_bytes())
    header[24:28] = (1).to_bytes(4, "little")  # of 8,000 seconds, as its rate says
    (tmp_path / "corpus" / "long.wav").write_bytes(header)
    (tmp_path / "corpus" / "broken.flac").write_bytes(b"no audio")
    clips = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted((tmp_path / "corpus").iterdir())]
    pq.write_table(pa.table({"audio": clips}), tmp_path / "rows" / "train.parquet")
    for kind, path in (("folder", "corpus"), ("parquet", "rows")):
        config = configured(source={"kind": kind, "path": path})
        found = estimate(config, tmp_path / "results" / "demo", [], profile="local", directory=tmp_path)
        assert (found.clips.value, found.audio_hours.value) == (32, pytest.approx(60 / 3600))


def test_a_manifest_whose_headers_lie_is_corrected_by_what_was_decoded(tmp_path):
    config = configured()
    run = made(tmp_path / "demo", config, [600.0] * 3, done=1)
    table = (run / "manifest" / "batches.tsv").read_text().replace("b0\t100\t600.0", "b0\t100\t9e9")
    (run / "manifest" / "batches.tsv").write_text(table)
    pq.write_table(pa.table({"header_duration": [30.0, None, 1e9]}), run / "manifest" / "b1.parquet")
    found = estimate(config, run, [], profile="local")
    assert found.audio_hours.value * 3600 == pytest.approx(600 + 30 + 600)


def test_batches_that_nobody_has_measured_are_parts_of_what_is_expected_until_one_was_read(tmp_path):
    config = configured(expected={"clips": 5000, "hours": 2})
    for done, clips, seconds in ((0, 5000, 7200), (1, 4 * BATCH, 4 * 600)):
        run = made(tmp_path / f"{done}" / "demo", config, [600.0] * 4, done=done)
        table = (run / "manifest" / "batches.tsv").read_text().replace("100\t600.0", "\t")
        (run / "manifest" / "batches.tsv").write_text(table)
        found = estimate(config, run, [], profile="local")
        assert (found.batches.value, found.clips.value) == (4, clips)
        assert found.audio_hours.value * 3600 == pytest.approx(seconds)


def test_a_shard_that_is_gone_is_made_and_scored_again(tmp_path):
    config = configured()
    run = made(tmp_path / "demo", config, [600.0] * 6, done=4)
    (run / "enhanced" / "b1.parquet").unlink()
    assert [stage.jobs for stage in estimate(config, run, [], profile="local").stages] == [3, 3]
    kept = estimate(config | {"keep_enhanced": False}, run, [], profile="local")
    assert [stage.jobs for stage in kept.stages] == [2, 2]


def test_a_history_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(SpeechmillError, match="there is no run here"):
        estimate(configured(), tmp_path / "demo", [tmp_path], profile="local")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12), st.integers(1, 4))
def test_the_makespan_is_that_of_workers_that_are_watched_second_by_second(work, workers):
    waiting = [pair for pair in work if pair[0]]
    ready = [(0, score) for enhance, score in work if not enhance and score]
    at_work: list[tuple[int, int]] = []  # end of a job, and what its batch needs then
    now = 0
    while waiting or ready or at_work:
        ready += [(now, score) for end, score in at_work if end == now and score]
        at_work = [each for each in at_work if each[0] > now]
        ready.sort()
        while len(at_work) < workers and (ready or waiting):
            if ready:
                at_work.append((now + ready.pop(0)[1], 0))
            else:
                enhance, score = waiting.pop(0)
                at_work.append((now + enhance, score))
        now += 1 if at_work else 0
    assert makespan(work, workers) == now


def test_a_fit_is_not_led_astray_by_a_job_that_hung():
    law = [(audio, 20 + 0.05 * audio) for audio in (100, 300, 500, 700, 900, 1500)]
    overhead, slope = fit([*law, (400, 9000.0)], 3.0)
    assert overhead == pytest.approx(20, abs=2)
    assert slope == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("points", [[(0.0, 4.0), (100.0, 14.0)], [(100.0, 14.0)], [(100.0, 15.0), (200.0, 14.0)] * 3])
def test_no_fit_is_of_negative_speed(points):
    overhead, slope = fit(points, 3.0)
    assert overhead >= 0
    assert slope > 0


def test_slots_are_those_of_the_profile():
    config = configured(cluster={"workers": 5})
    slurm = slots_of(config, "slurm")
    assert (slurm.device, slurm.workers, slurm.downloads, slurm.uploads) == ("GPU", 5, 4, 2)
    assert slots_of(configured(cluster={"workers": 5, "gpus_per_worker": 0}), "slurm").device == "CPU"
    assert slots_of(configured(cluster={"workers": 9999}), "slurm").workers == 500
    with pytest.raises(ConfigError, match="there is no profile"):
        slots_of(config, "none")


def test_local_workers_share_the_cores_and_the_gpus(monkeypatch, tmp_path):
    (tmp_path / "config.yaml").write_text("cores: 8\nresources:\n  - download_slots=2\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots_of(configured(), str(tmp_path)).workers == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    found = slots_of(configured(), str(tmp_path))
    assert (found.device, found.workers) == ("GPU", 3)


@pytest.mark.parametrize("name", ["gigaspeech2", "mozilla_cv", "processed_voice_th"])
def test_every_large_corpus_has_a_plan_before_it_was_seen(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = merged_config([f"dataset={name}"])["expected"]
    assert (found["clips"]["value"], found["audio_hours"]["value"]) == (
        expected["clips"],
        pytest.approx(expected["hours"]),
    )
    assert found["wall_hours"]["value"] > 0
    assert main(["plan", name]) == 0
    assert "wall clock" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_fetch_tells_what_it_took_without_the_wait(tmp_path):
    class Stub(Source):
        def __init__(self):
            pass

        def pin(self, revision):
            pass

        def fetch(self, file, target):
            target.write_bytes(b"x" * file.size)

    files = [{"path": "a.tar", "size": 1000, "sha256": "0" * 64}]
    listed = {"revision": "1", "files": files, "tables": []}
    write_json(tmp_path / "source.json", listed)
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "batches.tsv").write_text("batch\tfetched_as\n")
    key = listing_of(listed).files[0].key
    told = fetch_file(Stub(), tmp_path / "source.json", key, tmp_path / "raw" / key, 1)
    assert told["bytes"] == 1000
    assert 0 < told["transfer_seconds"] < 60
    assert set(told) <= set(TOLD)
