"""Exceptions and what other programs print, as codes."""

import errno

import pyarrow as pa
import pytest

from speechmill.engine.memory import DeviceError, DeviceMemoryError
from speechmill.errors import ConfigError, Failure, SourceTimeoutError, SpeechmillError
from speechmill.runlog.failures import failure_of, failure_of_output, slurm_reason
from speechmill.storage.hub_client import HubRefusedError


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (OSError(errno.ENOSPC, "x"), Failure.NO_SPACE),
        (OSError(errno.EDQUOT, "x"), Failure.NO_SPACE),
        (OSError(errno.ENOENT, "x"), Failure.PROGRAM),
        (OSError(errno.ENOMEM, "x"), Failure.OUT_OF_MEMORY),
        (MemoryError(), Failure.OUT_OF_MEMORY),
        (TimeoutError(), Failure.TIMEOUT),
        (RuntimeError("IO error: No space left on device (os error 28)"), Failure.NO_SPACE),  # of a Rust library
        (RuntimeError("CUDA out of memory. Tried to allocate"), Failure.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: unspecified launch failure"), Failure.DEVICE_LOST),
        (ValueError("x"), Failure.PROGRAM),
        (ConfigError("x"), Failure.PROGRAM),
        (DeviceError("x"), Failure.DEVICE_LOST),
        (DeviceMemoryError("x"), Failure.OUT_OF_MEMORY),
        (HubRefusedError("x"), Failure.HUB_REFUSED),
        (SourceTimeoutError("x"), Failure.TIMEOUT),
        (SpeechmillError("No space left on device; the Hub refuses"), Failure.PROGRAM),  # words of our own are no code
    ],
)
def test_the_code_of_an_exception(error, failure):
    assert failure_of(error) == failure


def test_an_exception_has_the_code_of_what_caused_it():
    def raised(first, hides=False):
        try:
            try:
                raise first
            except type(first) as error:
                raise SpeechmillError("said for people") from None if hides else error
        except SpeechmillError as error:
            return error

    assert failure_of(raised(OSError(errno.ENOSPC, "x"))) == Failure.NO_SPACE
    assert failure_of(raised(HubRefusedError("x"))) == Failure.HUB_REFUSED
    assert failure_of(raised(OSError(errno.ENOSPC, "x"), hides=True)) == Failure.PROGRAM


def test_a_circle_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert failure_of(first) == Failure.PROGRAM


def test_a_disk_that_is_full_under_arrow():
    """The kernel's own refusal, as the library passes it on."""
    with pytest.raises(OSError, match="space") as full, pa.OSFile("/dev/full", "wb") as file:
        file.write(b"x" * 100_000)
    assert failure_of(full.value) == Failure.NO_SPACE


def test_what_slurm_prints():
    killed = ["srun: error: n1: task 0: Killed", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0"]
    assert slurm_reason(killed) == killed[1]  # the daemon knows more than srun
    assert failure_of_output(killed) == Failure.OUT_OF_MEMORY
    assert failure_of_output(killed[:1]) == Failure.KILLED
    assert failure_of_output(["Building DAG of jobs..."]) is None
