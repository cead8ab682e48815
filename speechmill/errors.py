"""Errors that people read, and the two ways in which one clip leaves the flow early.

`SpeechmillError` stops a job: its message says what is wrong, where, and what to do.
`ClipError` and `ClipRejection` never stop a job: the engine writes them to the ledger.
"""

from __future__ import annotations

NO_SPACE = ("No space left on device", "Disk quota exceeded")  # what the system says where there is no room on disk


class SpeechmillError(Exception):
    """A problem that stops a job or a run. The message is for a person and is complete in itself."""


class ConfigError(SpeechmillError):
    """The configuration, a data-set file or a ranking profile is not valid."""


class SourceError(SpeechmillError):
    """A corpus cannot be listed or read as a whole."""


class LedgerError(SpeechmillError):
    """The states of the clips do not balance: a clip was lost or counted twice."""


class ClipError(Exception):
    """One clip failed: it becomes `errored`.

    `error_class` is a short stable word that reports count by (`unreadable`, `truncated`,
    `non_finite`, ...); the message names what was found.
    """

    def __init__(self, error_class: str, message: str):
        super().__init__(message)
        self.error_class = error_class
        self.message = message


class ClipRejection(Exception):
    """One clip is judged unfit before it is scored: it becomes `rejected`.

    `criterion` is the measured quantity (`duration_s`, `speech_s`, ...), `value` its measured value and
    `threshold` the bound that it missed, in the same unit.
    """

    def __init__(self, criterion: str, value: float, threshold: float, message: str):
        super().__init__(message)
        self.criterion = criterion
        self.value = value
        self.threshold = threshold
        self.message = message
