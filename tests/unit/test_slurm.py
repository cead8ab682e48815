"""What is asked of Slurm, and how its answers are read. The commands are scripts that answer as Slurm 22.05 does."""

import stat

import pytest

from speechmill.cluster import slurm
from speechmill.cluster.slurm import Job, failing_nodes, job_resources, megabytes, parse_minutes, run_prefix

CLUSTER = {
    "account": "speech",
    "cpu_partition": "batch",
    "gpu_partition": "a100",
    "qos": None,
    "constraint": "nvme",
    "gpu_type": None,
    "workers": 20,
    "gpus_per_worker": 1,
    "memory_per_worker": "64G",
    "hours": 24,
    "retry_delay_seconds": 300,
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Make commands of Slurm that print a text; clears what was remembered of their answers."""
    monkeypatch.setenv("PATH", str(tmp_path))  # and nothing of a Slurm that this machine may have
    slurm.partition_limits.cache_clear()

    def make(name, text, status=0):
        script = tmp_path / name
        script.write_text(
            f"#!/bin/sh\nwhile IFS= read -r line; do echo \"$line\"; done <<'END'\n{text}\nEND\nexit {status}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    yield make
    slurm.partition_limits.cache_clear()


def resources(gpus=1, **changes):
    return job_resources(CLUSTER | changes, gpus, 65536, "speechmill-x", lambda: True, print)


def test_a_command_for_which_there_is_no_process_left_is_slurm_that_does_not_answer(monkeypatch):
    def full(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(slurm.subprocess, "run", full)
    with pytest.raises(slurm.SlurmError, match="temporarily unavailable"):
        slurm.jobs("speechmill-x")


def test_a_worker_asks_for_one_gpu_in_the_gpu_partition(command):
    asked = resources()
    assert asked["gres"] == "gpu:1"
    assert (asked["slurm_partition"], asked["slurm_account"], asked["constraint"]) == ("a100", "speech", "nvme")
    assert not {"qos", "gpu_model"} & set(asked)
    assert resources(gpu_type="h100")["gres"] == "gpu:h100:1"


def test_other_jobs_ask_for_none(command):
    asked = resources(gpus=0)
    assert asked["slurm_partition"] == "batch"
    assert not {"gres", "constraint"} & set(asked)


def test_memory_and_time_grow_with_the_attempt_up_to_what_the_cluster_has(command):
    command("sinfo", "a100|2-12:00:00|200000+\na100|2-12:00:00|150000")
    command("squeue", "")
    asked = resources()
    assert [asked["mem_mb"]({}, n) for n in (1, 2, 3, 4)] == [65536, 131072, 196608, 200000]
    assert [asked["runtime"]({}, n) for n in (1, 2, 3, 4)] == [1440, 2880, 3600, 3600]
    assert asked["slurm_extra"]({}, 1) == ""
    assert asked["slurm_extra"]({}, 2) == "--begin=now+300"


def test_a_slurm_that_does_not_answer_stops_no_retry(command, monkeypatch):
    monkeypatch.setattr(slurm, "PATIENCE", 0.2)
    command("sinfo", "slurm_load_partitions: Unable to contact slurm controller", 1)
    command("squeue", "slurm_load_jobs error: Unable to contact slurm controller", 1)
    asked = resources(retry_delay_seconds=0)
    assert asked["mem_mb"]({}, 2) == 131072
    assert asked["slurm_extra"]({}, 2) == ""


def test_a_retry_waits_for_the_controller(command, monkeypatch, tmp_path):
    monkeypatch.setattr(slurm, "PATIENCE", 2)
    command("squeue", "slurm_load_jobs error: Unable to contact slurm controller", 1)
    said = []

    def warn(message):
        said.append(message)
        command("squeue", "7|RUNNING|speechmill-x_1|n2|None|rule_report")  # it is back

    assert [job.id for job in slurm.jobs_patiently("speechmill-x", warn)] == ["7"]
    assert "Unable to contact" in said[0]


def test_a_run_without_slurm_asks_nothing_of_it(command):
    """Not even on a machine that has its commands."""
    command("sinfo", "it was asked", 1)
    command("squeue", "it was asked", 1)
    said = []
    asked = job_resources(CLUSTER, 1, 65536, "speechmill-x", lambda: False, said.append)
    assert (asked["mem_mb"]({}, 2), asked["slurm_extra"]({}, 2), said) == (131072, "", [])


def test_a_failing_node_is_left_out_of_retries_and_named(command):
    lines = [f"{n}|FAILED|speechmill-x_1|n1|NonZeroExitCode|rule_enhance_wildcards_b{n}" for n in range(2)]
    command("squeue", "\n".join([*lines, "7|COMPLETED|speechmill-x_1|n2|None|rule_enhance_wildcards_b7"]))
    said = []
    asked = job_resources(CLUSTER, 1, 1, "speechmill-x", lambda: True, said.append)
    assert asked["slurm_extra"]({}, 2) == "--begin=now+300 --exclude=n1"
    assert "n1" in said[0]


def ended(state, node, work, number=1):
    return Job(str(number), state, node, "", work)


@pytest.mark.parametrize(
    ("found", "nodes"),
    [
        ([ended("FAILED", "n1", "a"), ended("FAILED", "n1", "b"), ended("COMPLETED", "n2", "c")], ["n1"]),
        ([ended("FAILED", "n1", "a"), ended("FAILED", "n1", "b")], []),  # nobody does better
        ([ended("FAILED", "n1", "a"), ended("FAILED", "n1", "a"), ended("COMPLETED", "n2", "c")], []),  # one batch
        (
            [
                *(ended("FAILED", "n1", "a"), ended("FAILED", "n1", "b"), ended("FAILED", "n2", "a")),
                *(ended("FAILED", "n2", "b"), ended("COMPLETED", "n3", "c")),
            ],
            [],  # these batches fail everywhere
        ),
        ([ended("FAILED", "n1", "a"), ended("FAILED", "n1", "b"), ended("COMPLETED", "n1", "c")], []),
        ([ended("OUT_OF_MEMORY", "n1", w) for w in "ab"] + [ended("COMPLETED", "n2", "c")], []),
    ],
)
def test_which_nodes_are_to_blame(found, nodes):
    assert failing_nodes(found) == nodes


def test_jobs_of_a_run_are_told_from_others(command):
    command(
        "squeue",
        "1|RUNNING|speechmill-x_8f|n1|None|rule_enhance_wildcards_clips-00001\n"
        "2|PENDING|speechmill-xy_8f||Priority|rule_score_wildcards_clips-00001\n"
        "3|PENDING|speechmill-x_8f||JobHeldAdmin|rule_report",
    )
    found = slurm.jobs("speechmill-x")
    assert [job.id for job in found] == ["1", "3"]
    assert [job.work for job in found] == ["enhance clips-00001", "report"]


def test_problems_are_said_all_at_once(command):
    command("scontrol", "Configuration data\nMinJobAge               = 60 sec")
    command("sinfo", "")
    command("squeue", "5|RUNNING|speechmill-x_8f|n1|None|rule_enhance_wildcards_clips-00001")
    said = "\n".join(slurm.problems(CLUSTER, "speechmill-x", 40, "squeue"))
    for part in ("MinJobAge", "no partition a100", "has a GPU", "speechmill resume"):
        assert part in said


def test_more_than_the_cluster_has_is_said_before_the_first_job(command):
    command("scontrol", "MinJobAge               = 300 sec")
    command("squeue", "")
    command("sinfo", "batch*|1-00:00:00|4000")  # whatever is asked: partition, time limit, memory
    said = "\n".join(slurm.problems(CLUSTER | {"gpus_per_worker": 0, "hours": 36}, "speechmill-x", 40, "squeue"))
    assert "cluster.memory_per_worker asks for 65536 MB, the largest node of partition batch has 4000 MB" in said
    assert "cluster.hours is 36, partition batch allows 24" in said
    assert "8000 MB" in said


def test_without_slurm_the_message_says_where_to_go(command):
    (said,) = slurm.problems(CLUSTER, "speechmill-x", 40, "squeue")
    assert "not installed here" in said
    assert "login node" in said


def test_the_environment_fills_what_the_configuration_leaves_open(monkeypatch):
    monkeypatch.setenv("SPEECHMILL_SLURM_QOS", "long")
    monkeypatch.setenv("SPEECHMILL_SLURM_ACCOUNT", "other")
    assert slurm.cluster_settings(CLUSTER) == CLUSTER | {"qos": "long"}


def test_prefixes_are_short_safe_and_tell_runs_apart(tmp_path):
    prefixes = {run_prefix(name, tmp_path / where) for name in ("demo", "x" * 64) for where in "ab"}
    assert len(prefixes) == 4
    assert all(len(prefix) <= 50 for prefix in prefixes)


@pytest.mark.parametrize(
    ("text", "minutes"), [("infinite", None), ("1-00:00:00", 1440), ("2:30:00", 150), ("30:00", 30), ("n/a", None)]
)
def test_slurms_times(text, minutes):
    assert parse_minutes(text) == minutes


def test_slurms_sizes():
    assert megabytes("64G") == 65536
    assert megabytes("500M") == 500
