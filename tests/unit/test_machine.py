"""Slurm's variables, of this process and of another one."""

import os
import subprocess
import sys

from speechmill.runlog.job_context import job_location
from speechmill.utils.machine import environment_of, node_name, slurm_job


def test_a_slurm_job_is_known_by_its_number(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm_job() is None
    assert "slurm_job" not in job_location()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (slurm_job(), slurm_job({"SLURM_JOB_ID": "78"}), slurm_job({})) == ("77", "78", None)
    assert {"slurm_job": "77", "gpus": "none"}.items() <= job_location().items()


def test_a_node_has_the_name_that_slurm_calls_it(monkeypatch):
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert node_name() == os.uname().nodename
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    assert node_name() == "gpu-17"


def test_the_environment_of_another_process():
    command = [sys.executable, "-c", "print(flush=True); input()"]
    child = subprocess.Popen(
        command, env={"NAME": "a=b\nc", "EMPTY": ""}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        assert environment_of(child.pid).items() >= {"NAME": "a=b\nc", "EMPTY": ""}.items()
    finally:
        child.communicate(b"\n")
    assert environment_of(child.pid) == {}
