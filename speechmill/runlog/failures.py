"""Classify a failed attempt: by the exception's class where there is one, else by what other programs print.

The words below are those of other programs, which offer no code. No message of this package is searched for words.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator

from speechmill.errors import Failure, SpeechmillError

OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_SPACE_TEXT = re.compile("No space left on device|Disk quota exceeded")  # of the operating system (strerror)
# What torch, CUDA's libraries, onnxruntime and Python say when memory runs out...
MEMORY_WORDS = (
    *("out of memory", "can't allocate memory", "Cannot allocate memory", "Failed to allocate memory"),
    *("bad_alloc", "ALLOC_FAILED"),
    "unable to find an engine",  # cuDNN's, after every one of them had too little memory
)
# ... and when a device does not answer as it should.
DEVICE_WORDS = ("CUDA error", "CUDA driver error", "cuDNN error", "cuFFT error", "CUBLAS")
# Slurm's daemon on the node, and srun, on why a job ended; the daemon knows more.
SLURM_PREFIXES = ("slurmstepd", "srun: error:")
SLURM_WORDS = (
    (Failure.OUT_OF_MEMORY, re.compile("oom.?kill|out.?of.?memory|exceeded (job|step) memory limit", re.IGNORECASE)),
    (Failure.TIMEOUT, re.compile("DUE TO TIME LIMIT")),
)


def failure_of(error: BaseException) -> Failure:
    """The code of an exception: its own, or that of the exception that caused it."""
    return next((code for each in _chain(error) if (code := _code(each)) is not Failure.PROGRAM), Failure.PROGRAM)


def says_no_space(text: str) -> bool:
    """Whether the output of another program has the operating system's message about a full disk."""
    return NO_SPACE_TEXT.search(text) is not None


def slurm_reason(output: Iterable[str]) -> str | None:
    """The line of a Slurm job's output that says why Slurm ended the job: the first, because the others follow."""
    lines = list(output)
    return next((line for prefix in SLURM_PREFIXES for line in lines if line.startswith(prefix)), None)


def failure_of_output(output: Iterable[str]) -> Failure | None:
    """The code of a job that could not record its own, from what Slurm and the system printed."""
    lines = list(output)
    of_slurm = [line for line in lines if line.startswith(SLURM_PREFIXES)]
    for code, words in SLURM_WORDS:
        if any(words.search(line) for line in of_slurm):
            return code
    return Failure.NO_SPACE if any(map(says_no_space, lines)) else Failure.KILLED if of_slurm else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, then what it was raised from, as a traceback shows it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _code(error: BaseException) -> Failure:
    if isinstance(error, SpeechmillError):
        return error.failure
    if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
        return Failure.NO_SPACE
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return Failure.OUT_OF_MEMORY
    if isinstance(error, TimeoutError):
        return Failure.TIMEOUT
    text = str(error)  # of a library whose exceptions have no code
    if says_no_space(text):
        return Failure.NO_SPACE
    if isinstance(error, OSError):
        return Failure.PROGRAM
    if any(word in text for word in MEMORY_WORDS):
        return Failure.OUT_OF_MEMORY
    return Failure.DEVICE_LOST if any(word in text for word in DEVICE_WORDS) else Failure.PROGRAM
