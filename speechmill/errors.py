"""Errors for the user, and the two exceptions that end the processing of one clip.

`SpeechmillError` stops a job. Its message says what is wrong, where, and what to do.
`ClipError` and `ClipRejection` never stop a job: the engine writes them to the ledger.
"""

from __future__ import annotations

from enum import StrEnum


class Failure(StrEnum):
    """Why an attempt failed: the machine-readable code in the job log and in the attempt log."""

    NO_SPACE = "no_space"  # the file system or the quota is full
    OUT_OF_MEMORY = "out_of_memory"  # of the machine, the job or the GPU
    DEVICE_LOST = "device_lost"  # the GPU fails
    TIMEOUT = "timeout"  # the job's time limit, or no answer from a server
    HUB_REFUSED = "hub_refused"  # repeating the call would change nothing
    KILLED = "killed"  # the process ended without an exception
    NOT_STARTED = "not_started"  # the job's own code did not run
    MISSING_OUTPUT = "missing_output"  # the job succeeded, but Snakemake does not see its files
    UNKNOWN = "unknown"  # the job's log cannot be read
    PROGRAM = "program"  # any other exception


class SpeechmillError(Exception):
    """A problem that stops a job or a run. The message is for the user, and complete without a traceback."""

    failure = Failure.PROGRAM


class ConfigError(SpeechmillError):
    """The configuration, a data-set file or a ranking profile is not valid."""


class SourceError(SpeechmillError):
    """A corpus cannot be listed or read as a whole."""


class SourceTimeoutError(SourceError):
    """A server did not answer within the configured time."""

    failure = Failure.TIMEOUT


class LedgerError(SpeechmillError):
    """The states of the clips do not balance: a clip is missing or counted twice."""


class ClipError(Exception):
    """One clip could not be processed: it becomes `errored`.

    `error_class` is a short stable word by which reports count (`unreadable`, `truncated`, `non_finite`, ...). The
    message gives the details.
    """

    def __init__(self, error_class: str, message: str):
        super().__init__(message)
        self.error_class = error_class
        self.message = message


class ClipRejection(Exception):
    """One clip is unfit before it is scored: it becomes `rejected`.

    `criterion` is the measured quantity (`duration_s`, `speech_s`, ...), `value` its value and `threshold` the bound
    that it failed, in the same unit.
    """

    def __init__(self, criterion: str, value: float, threshold: float, message: str):
        super().__init__(message)
        self.criterion = criterion
        self.value = value
        self.threshold = threshold
        self.message = message
