"""The estimate of a run, against earlier runs whose jobs take known times."""

import json
import math
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from speechmill.cli.main import main
from speechmill.config import validate_config
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.estimate.run_estimate import earlier_runs, estimate, estimate_text
from speechmill.estimate.throughput import SPREAD, START
from speechmill.runlog.attempts import REPORTED
from speechmill.runs.plan import CHECKOUT, merged_config, slots_of
from speechmill.sources import Source
from speechmill.sources.fetch import fetch_file
from speechmill.sources.manifest import batch_identity, listing_of
from speechmill.sources.revision import asked_for
from speechmill.storage.files import write_json

from .runs_account import Account

SPEED = {"enhance": 0.05, "score": 0.02}  # seconds of a job per second of audio, after START
BATCH = 100  # clips


def configured(**changes):
    section = {"kind": "folder", "path": "/corpus"} | changes.pop("source", {})
    given = {"dataset": "demo", "source": section, "batch_size": BATCH, "score": {"metrics": "light"}}
    return validate_config(given | changes, CHECKOUT / "config")


def made(run_dir, config, audio, done=None, device="CPU", speed=SPEED, hung=()):
    """A run of batches with so many seconds of audio each, of which the first `done` were enhanced and scored."""
    account = Account(run_dir)
    write_json(run_dir / "preflight.json", {"enhancer": "rnnoise", "metric_groups": ["signal", "dnsmos_p808"]})
    write_json(run_dir / "source.json", {"asked_for": asked_for(config["source"]), "bytes": 10**9, "files": []})
    (run_dir / "manifest").mkdir()
    rows = "".join(f"b{number}\t{BATCH}\t{seconds}\t\t\n" for number, seconds in enumerate(audio))
    (run_dir / "manifest" / "batches.tsv").write_text("batch\tclips\tseconds\tsource_file\tfetched_as\n" + rows)
    write_json(run_dir / "manifest" / "b0.json", {"identity": batch_identity(config)})
    account.begin(0)
    at = 0.0
    for number, seconds in enumerate(audio[:done]):
        for stage in speed:
            took = (START[device if device == "CPU" else "GPU"] + speed[stage] * seconds) * (
                100 if number in hung else 1
            )
            account.submit(at, stage, f"b{number}")
            at += took
            told = {"clips": {"passed": BATCH}, "audio_seconds": {"passed": seconds}, "device": device}
            account.finish(at, stage, f"b{number}", seconds=took, began=account.time(at - took), **told)
        (run_dir / "enhanced").mkdir(exist_ok=True)
        pq.write_table(pa.table({"original": [b""]}), run_dir / "enhanced" / f"b{number}.parquet")
    return run_dir


def job_seconds(audio, speed=SPEED, device="CPU"):
    return [math.fsum(START[device] + slope * each for each in audio) for slope in speed.values()]


def test_the_rate_of_another_corpus_holds_for_longer_batches_and_a_hung_job_does_not_count(tmp_path):
    config = configured()
    first = made(tmp_path / "others" / "first", config, [400, 600, 1000, 700, 900, 1200], hung=[1])
    other = configured(source={"path": "/another"})
    second = made(tmp_path / "second", other, [2000, 3000, 500] * 4, done=0)
    found = estimate(other, second, [first], profile="local")
    assert [stage.job_seconds for stage in found.stages] == pytest.approx(job_seconds([2000, 3000, 500] * 4))
    assert all(stage.is_measured and "6 jobs" in stage.basis for stage in found.stages)
    assert [stage.job_seconds_range for stage in found.stages] == [None, None]
    assert found.gpu_hours.value == 0


def test_what_is_left_is_counted_at_the_rate_of_what_is_done(tmp_path):
    config = configured()
    run = made(tmp_path / "demo", config, [600.0] * 10, done=4)
    found = estimate(config, run, [], profile="local")
    assert [stage.jobs for stage in found.stages] == [6, 6]
    assert [stage.job_seconds for stage in found.stages] == pytest.approx(job_seconds([600.0] * 6))
    assert (found.batches.value, found.batches_left.value, found.audio_hours.value) == (10, 6, pytest.approx(10 / 6))


def test_the_wall_clock_is_that_of_busy_workers_and_of_other_jobs(tmp_path):
    config = configured(cluster={"workers": 3, "gpus_per_worker": 0}, publish={"kind": "none"})
    run = made(tmp_path / "demo", config, [600.0] * 40, done=4)
    heavy = sum(job_seconds([600.0] * 36)) / 3
    found = estimate(config, run, [], profile="slurm")
    assert found.workers.value == 3
    assert heavy < found.wall_hours.value * 3600 < heavy + 40
    assert found.wall_hours.range is None
    assert "queue" in estimate_text(found)


def test_the_longest_batch_bounds_the_wall_clock(tmp_path):
    config = configured(cluster={"workers": 100, "gpus_per_worker": 0}, publish={"kind": "none"})
    run = made(tmp_path / "demo", config, [600.0] * 4 + [9000.0], done=4)
    found = estimate(config, run, [], profile="slurm")
    assert 0 < found.wall_hours.value * 3600 - sum(job_seconds([9000.0])) < 10


def test_what_no_job_has_measured_has_a_range(tmp_path):
    config = configured(expected={"clips": 5000, "hours": 1000}, publish={"kind": "none"}, source={"path": "/none"})
    for device, gpus in (("CPU", 0), ("GPU", 1)):
        about = config | {"cluster": config["cluster"] | {"gpus_per_worker": gpus}}
        found = estimate(about, tmp_path / "demo", [], profile="slurm")
        for stage in found.stages:
            assert not stage.is_measured
            assert "not measured" in stage.basis
            assert stage.job_seconds_range == pytest.approx(
                (stage.job_seconds / SPREAD[device], stage.job_seconds * SPREAD[device])
            )
        low, high = found.wall_hours.range
        assert low < found.wall_hours.value < high
    low, high = found.gpu_hours.range
    assert high / found.gpu_hours.value == pytest.approx(found.gpu_hours.value / low) == SPREAD["GPU"]
    assert f" to {high:.2f} GPU-h: job-hours" in estimate_text(found)
    assert found.disk_bytes["enhanced"].range == (0, 1000 * 3600 * 16_000 * 2)  # uncompressed


def test_nothing_is_left_of_a_finished_run(tmp_path):
    config = configured(publish={"kind": "none"})
    run = made(tmp_path / "demo", config, [600.0] * 3)
    for path in (
        "ledger/duplicates.parquet",
        "ledger/near_duplicates.parquet",
        "ranking/ranked.tsv",
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
    assert on_gpu.gpu_hours.value * 3600 == pytest.approx(sum(job_seconds([600.0] * 2, device="GPU")))
    assert [stage.is_measured for stage in on_cpu.stages] == [False, False]
    assert on_cpu.gpu_hours.value == 0
    unmeasured = estimate(config, made(tmp_path / "cpu", config, [600.0] * 6, done=4), [], profile="slurm")
    assert all("no GPU was measured" in stage.basis for stage in unmeasured.stages)


def test_the_first_run_with_such_jobs_gives_the_rate(tmp_path):
    config = configured()
    slow = {stage: 10 * slope for stage, slope in SPEED.items()}
    first = made(tmp_path / "first", configured(source={"path": "/another"}), [600.0] * 6)
    second = made(tmp_path / "second", config, [600.0] * 6, speed=slow)
    assert earlier_runs(tmp_path / "demo") in ([first, second], [second, first])
    own = made(tmp_path / "demo", config, [600.0] * 6, done=0)
    for history, speed in (([first, second], SPEED), ([second, first], slow)):
        found = estimate(config, own, history, profile="local")
        assert [stage.job_seconds for stage in found.stages] == pytest.approx(job_seconds([600.0] * 6, speed))
        assert str(history[0]) in found.stages[0].basis


def test_what_is_not_known_is_none_and_says_why(tmp_path):
    config = configured(
        source={"kind": "hf_parquet", "path": None, "repo": "a/b"}, publish={"kind": "hub", "repo": "a/c"}
    )
    found = estimate(config, tmp_path / "demo", [], profile="slurm")
    unknown = (found.clips, found.audio_hours, found.batches, found.wall_hours, found.gpu_hours, found.upload_bytes)
    assert all(figure.value is None for figure in unknown)
    assert "expected" in found.audio_hours.basis
    assert json.loads(json.dumps(asdict(found)))["wall_hours"]["value"] is None
    told = estimate(config | {"expected": {"clips": 250, "hours": 2}}, tmp_path / "demo", [], profile="slurm")
    assert (told.clips.value, told.audio_hours.value, told.batches.value) == (250, pytest.approx(2), 3)
    assert told.upload_bytes.value == pytest.approx(2 * 70e6)
    assert "downloads are assumed to keep up" in told.wall_hours.basis
    assert "no earlier run" in told.stages[0].basis


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
    with pytest.raises(SpeechmillError, match="no run here"):
        estimate(configured(), tmp_path / "demo", [tmp_path], profile="local")


def test_slots_are_those_of_the_profile():
    config = configured(cluster={"workers": 5})
    slurm = slots_of(config, "slurm")
    assert (slurm.device, slurm.workers, slurm.downloads) == ("GPU", 5, 4)
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
    assert set(told) <= set(REPORTED)
