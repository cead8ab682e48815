"""Restart: only unfinished, new or changed work is done, and the bytes are those of an undisturbed run."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from speechmill.storage.files import read_json
from speechmill.tables.parquet_io import write_table

from ..patience import seconds
from ..runs import MODULES, RESULTS, ROOT, SPEECH, Run, kill_group, make_corpus, wait_for


@pytest.mark.everyday
def test_a_run_from_nothing_reaches_the_sentinel_and_balances(finished):
    of_run = ("preflight", "source", "manifest", "dedup", "rank", "report", "publish", "all")
    assert finished.first.jobs == dict.fromkeys(of_run, 1) | dict.fromkeys(("enhance", "score"), 3)
    summary = read_json(finished.results / "report" / "summary.json")
    clips = summary["clips"]
    assert clips["input"] == 10
    assert clips["input"] == clips["accepted"] + clips["rejected"] + clips["errored"] + clips["duplicate"]
    assert clips["duplicate"] == 1
    assert summary["errored_by"] == {"truncated": 1, "unreadable": 1}
    assert summary["rejected_by"]["speech_s"] == 1
    ranking = pq.read_table(finished.results / "report" / "ranking.parquet")
    assert ranking.num_rows == 10
    assert (finished.results / "published" / "UPLOADED.json").is_file()
    assert not list(finished.results.rglob("*.tmp"))


@pytest.mark.everyday
def test_snakemake_itself_imports_no_package_of_the_jobs(finished):
    """Whether it starts a run or submits one job on a node of a cluster: torch alone takes 3 s of a CPU."""
    imported = set((finished.directory / MODULES).read_text().split())
    assert "speechmill.runs.session" in imported
    assert not imported & {"torch", "scipy", "matplotlib", "soxr", "onnxruntime", "onnx", "huggingface_hub.hf_api"}


@pytest.mark.everyday
def test_the_published_folder_is_a_data_set_that_datasets_reads(finished, tmp_path):
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(finished.results / "published" / "dataset"), cache_dir=str(tmp_path))
    rows = [row for split in found.values() for row in split.cast_column("audio", datasets.Audio(decode=False))]
    sentinel = read_json(finished.results / "published" / "UPLOADED.json")
    assert len(rows) == sentinel["accepted"] > 0
    assert all(row["audio"]["bytes"][:4] == b"fLaC" for row in rows)


@pytest.mark.everyday
def test_a_second_run_does_nothing(finished, tmp_path):
    run = finished.copy(tmp_path / "again")
    before = run.hashes(*RESULTS, "report")
    again = run.start()
    assert "Nothing to be done" in again.output
    assert run.hashes(*RESULTS, "report") == before


@pytest.mark.everyday
def test_added_files_are_the_only_ones_processed(finished, tmp_path):
    run = finished.copy(tmp_path / "grown")
    before = run.hashes("enhanced", "scores", "ranking")
    shutil.copy(sorted(SPEECH.rglob("*.flac"))[20], run.directory / "corpus" / "a new one.flac")
    grown = run.start()
    assert grown.jobs["enhance"] == grown.jobs["score"] == 1
    after = run.hashes("enhanced", "scores", "ranking")
    assert set(after) - set(before) == {f"{f}/clips-00003.parquet" for f in ("enhanced", "scores", "ranking")}
    unchanged = [name for name in before if name not in ("ranking/advice.json", "ranking/ranked.tsv")]
    assert {n: after[n] for n in unchanged} == {n: before[n] for n in unchanged}
    assert read_json(run.results / "report" / "summary.json")["clips"]["input"] == 11


@pytest.mark.everyday
def test_a_changed_threshold_ranks_and_publishes_without_touching_audio(finished, tmp_path):
    run = finished.copy(tmp_path / "threshold")
    audio = run.hashes("enhanced", "scores", "ledger")
    run.change(rank={"threshold": 1.0})
    again = run.start()
    assert again.jobs == {"rank": 1, "report": 1, "publish": 1, "all": 1}  # and no model is loaded
    assert run.hashes("enhanced", "scores", "ledger") == audio
    assert read_json(run.results / "report" / "summary.json")["clips"]["accepted"] == 0
    assert read_json(run.results / "published" / "UPLOADED.json")["accepted"] == 0


def test_a_finished_run_is_complete_in_another_checkout(finished, tmp_path):
    run = finished.copy(tmp_path / "moved")
    run.checkout = tmp_path / "checkout"
    for part in ("rules", "scripts", "config", "speechmill", "docs", "envs"):
        shutil.copytree(ROOT / part, run.checkout / part)
    shutil.copy(ROOT / "Snakefile", run.checkout)
    assert "Nothing to be done" in run.start().output


def test_a_lost_clip_stops_the_run(finished, tmp_path):
    run = finished.copy(tmp_path / "lost")
    ledger = run.results / "ledger" / "clips-00001.enhance.parquet"
    write_table(pq.read_table(ledger).slice(1), ledger)
    done = run.start(check=False)
    assert done.status != 0
    assert "speechmill: batch clips-00001" in done.output
    assert "Traceback" not in done.output


def _processes(directory: Path, needle: str) -> list[int]:
    """Process ids whose command line names both the directory and the needle."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                cwd = os.readlink(entry / "cwd")
            except OSError:
                continue
            if needle in command and str(directory) in (cwd + command) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker through /proc, which Linux has")
@pytest.mark.everyday
def test_a_killed_worker_is_repeated_with_the_same_bytes(finished, tmp_path):
    run = Run(tmp_path / "worker")
    make_corpus(run.directory / "corpus")
    process = run.popen()
    try:
        wait_for(lambda: [log for log in (run.results / "logs" / "enhance").glob("*.log") if log.stat().st_size])
        workers = wait_for(lambda: _processes(run.directory, "enhance.py"))
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        status = process.wait(timeout=seconds(1200))
    finally:
        kill_group(process)
    log = (run.directory / "snakemake.log").read_text()
    assert status == 0, log[-4000:]
    assert "Trying to restart job" in log
    assert run.hashes(*RESULTS) == finished.hashes(*RESULTS)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="cleans up orphans through /proc, which Linux has")
def test_snakemake_killed_at_random_moments_ends_with_the_same_bytes(finished, tmp_path, draw):
    run = Run(tmp_path / "controller")
    make_corpus(run.directory / "corpus")
    moments = random.Random(3 + draw)
    for after in ("enhance", "score"):
        process = run.popen()
        try:
            wait_for(lambda after=after: list((run.results / "logs" / after).glob("*.log")))
            time.sleep(moments.uniform(0, 8))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        finally:
            kill_group(process)
        run.start("--unlock")
    run.start()
    assert run.hashes(*RESULTS) == finished.hashes(*RESULTS)
    assert not list(run.results.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("manifest/batches.tsv", "manifest"),
        ("ledger/duplicates.parquet", "dedup"),
        ("ranking/profile.json", "rank"),
        ("ledger/clips-00001.enhance.parquet", "enhance"),
        ("scores/clips-00001.parquet", "score"),
        ("ranking/clips-00001.parquet", "rank"),
        ("ranking/advice.json", "report"),
    ],
)
def test_what_is_missing_between_complete_results_is_made_again(finished, tmp_path, path, rule):
    """A job that fails when it is repeated has lost its old output: the next start must not call that finished."""
    run = finished.copy(tmp_path / "run")
    (run.results / path).unlink()
    assert run.start("-n").jobs[rule] == 1


def test_damaged_ranking_tables_are_made_again_and_nothing_is_published_anew(finished, tmp_path):
    run = finished.copy(tmp_path / "run")
    before = run.hashes("ranking", "published")
    table = run.results / "ranking" / "clips-00001.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    again = run.start()
    assert "ranking again: 1 ranking tables are missing or were changed: clips-00001" in again.output
    assert again.jobs == {"rank": 1, "report": 1, "publish": 1, "all": 1}
    assert run.hashes("ranking", "published") == before
    assert "Nothing to be done" in run.start().output
