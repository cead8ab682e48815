"""The Slurm profile: a corpus from its files to the sentinel on a real cluster, and what the profile must not say."""

import re
from collections import defaultdict
from pathlib import Path

import yaml

from speechmill.runlog.joblog import read

from ..runs import RESULTS, ROOT
from . import cluster


def test_the_published_bytes_are_those_of_a_local_run(ended, finished):
    assert (ended.results / "published" / "UPLOADED.json").is_file()
    assert ended.hashes(*RESULTS) == finished.hashes(*RESULTS)


def test_small_rules_take_no_place_in_the_queue(ended):
    stages = {row.work.split(" ")[0] for row in ended.accounted()}
    assert stages == {"source", "manifest", "enhance", "score", "report", "publish"}


def test_sacct_agrees_with_the_workflows_own_account(ended):
    ours = {(line["slurm_job"], line["stage"], line["batch"]) for line in ended.attempts() if line["slurm_job"]}
    theirs = {(row.id, *([*row.work.split(" "), None])[:2]) for row in ended.accounted()}
    assert ours == theirs
    assert len(ended.attempts("finished")) == len(ended.attempts())
    assert {row.state for row in ended.accounted()} == {"COMPLETED"}


def test_workers_ran_at_the_same_time_on_several_nodes_each_with_a_gpu_of_its_own(ended):
    workers = [row for row in ended.accounted() if row.work.startswith("enhance")]
    assert len(workers) == 3
    assert all("gres/gpu=1" in row.tres.split(",") for row in workers)
    assert len({row.node for row in workers}) >= 2
    assert max(row.start for row in workers) < min(row.end for row in workers)
    held = defaultdict(set)
    for row in workers:
        log = read(ended.results / "logs" / "batches" / f"{row.work.split(' ')[1]}.log")
        (begin,) = (line for line in log if line.get("event") == "begin" and line.get("slurm_job") == row.id)
        assert begin["node"] == row.node
        assert begin["gpus"] in ("0", "1")  # one, not "0,1"
        held[row.node].add(begin["gpus"])
    assert sum(map(len, held.values())) == len(workers)
    assert not any(
        "gres/gpu" in row.tres for row in ended.accounted() if row.work.split(" ")[0] in ("source", "publish")
    )


def test_names_tell_corpus_stage_and_batch(ended):
    assert ended.prefix.startswith("speechmill-demo-")
    assert len({row.work for row in ended.accounted() if row.work.startswith("enhance clips-0000")}) == 3
    assert f"SLURM run ID: {ended.prefix}_" in ended.first.output


def test_no_secret_reaches_a_job_log(ended):
    assert "a-secret-token" not in "".join(
        path.read_text(errors="replace")
        for folder in (ended.results / "logs", ended.directory / ".snakemake")
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_a_finished_run_leaves_one_log_per_batch_and_an_efficiency_report(ended):
    logs = ended.results / "logs"
    assert sorted(p.name for p in logs.rglob("clips-*.log")) == [f"clips-0000{n}.log" for n in range(3)]
    assert list(logs.glob("efficiency_report_*.csv"))
    assert not (ended.results / "owner.json").exists()


def test_panoptes_shows_the_run_once_with_its_slurm_jobs(ended, panoptes):
    (found,) = panoptes.workflows()  # jobs tell nothing: only Snakemake itself
    assert (found["status"], found["jobs_done"]) == ("Done", found["jobs_total"])
    jobs = panoptes.jobs(found["id"]).values()
    assert {job["status"] for job in jobs} == {"Done"}
    logs = [str(job["log"]) for job in jobs if job["name"] == "enhance"]
    for row in ended.accounted():
        if row.work.startswith("enhance"):
            assert len([log for log in logs if f"Slurm job {row.id}" in log]) == 1


def test_the_account_has_what_each_job_asked_for_and_used(ended):
    asked = {line["slurm_job"]: line["asked"] for line in ended.attempts() if line["slurm_job"]}
    enhanced = [line["clips"] for line in ended.attempts("finished") if line["stage"] == "enhance"]
    assert sum(sum(clips.values()) for clips in enhanced) == 10
    for line in ended.attempts("finished"):
        if line["stage"] in ("enhance", "score"):
            assert asked[line["slurm_job"]]["mem_mb"] == 2048
            assert asked[line["slurm_job"]]["gpu"] == 1
            assert line["node"] in cluster.NODES
            assert line["gpus"] in ("0", "1")
            assert line["device"] == "CPU"  # as configured
            assert 50 < line["peak_mb"] < 4000


def test_neither_profile_nor_rules_use_what_breaks_runs():
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    assert profile["retries"] == 3
    assert profile["slurm-status-command"] == "squeue"
    assert not {"slurm-array-jobs", "groups", "group-components", "verbose", "quiet", "set-resources"} & set(profile)
    assert not any(word in str(profile) for word in ("slurm_account", "slurm_partition", "qos", "constraint"))
    rules = "".join(path.read_text() for path in [ROOT / "Snakefile", *Path(ROOT / "rules").glob("*.smk")])
    assert not re.search(r"^\s+(retries: *[^0 ]|group:)", rules, re.MULTILINE)  # none at all is no retry
