"""A device for each job: its own GPU where it asks for one, turns where there are too few, the CPU only unasked."""

import subprocess
import sys
import time

import pytest

from speechmill.engine.devices import device_of, take_one, visible_gpus
from speechmill.errors import SpeechmillError

from ..patience import seconds

HOLD = """
import sys, time
from pathlib import Path
from speechmill.engine.devices import take_one
print(take_one(int(sys.argv[1]), Path(sys.argv[2]), poll_seconds=0.05), flush=True)
time.sleep(float(sys.argv[3]))
"""


def hold(folder, count, period):
    command = [sys.executable, "-c", HOLD, str(count), str(folder), str(period)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_gpu_that_is_asked_for_is_never_replaced_by_the_cpu():
    torch = pytest.importorskip("torch")
    assert device_of(0) == "cpu"
    assert device_of(1, "cpu") == "cpu"  # said in so many words
    if torch.cuda.is_available():
        assert device_of(1) == "cuda:0"
    else:
        with pytest.raises(SpeechmillError, match=r"torch .* sees none"):
            device_of(1)


def test_four_jobs_on_four_gpus_have_one_each(tmp_path):
    jobs = [hold(tmp_path, 4, 600) for _ in range(4)]
    try:
        assert sorted(int(job.stdout.readline()) for job in jobs) == [0, 1, 2, 3]
    finally:
        for job in jobs:
            job.kill()


def test_jobs_on_one_gpu_take_turns_even_after_a_kill(tmp_path):
    first = hold(tmp_path, 1, 600)
    assert first.stdout.readline() == "0\n"
    second = hold(tmp_path, 1, 0)
    time.sleep(0.5)
    assert second.poll() is None
    first.kill()
    assert second.communicate(timeout=seconds(100))[0] == "0\n"


def test_a_taken_device_is_passed_over_by_name(tmp_path, monkeypatch):
    """Jobs that see devices 2,3 and 3 mean the same 3."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert take_one(1, tmp_path) == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    assert take_one(2, tmp_path) == 1


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), ("GPU-8a9,GPU-77c", 2)])
def test_gpus_are_counted_as_cuda_does(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == count
