"""Classify an exception: bad clip, out of memory, or device failure."""

from __future__ import annotations

import torch

from speechmill.runlog.failures import DEVICE_WORDS, MEMORY_WORDS

OTHER_WORDS = ("can't start new thread",)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, so that a smaller device batch may succeed."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return not isinstance(error, OSError) and _message_contains(error, MEMORY_WORDS)


def is_out_of_device_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU ran out, not the main memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return is_out_of_memory(error) and _message_contains(
        error, ("CUDA", "cuDNN", "cuFFT", "CUBLAS", "CUFFT", "find an engine")
    )


def is_device_error(error: BaseException) -> bool:
    """Whether a GPU failed. This process cannot use it any more."""
    accelerator = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    if accelerator is not None and isinstance(error, accelerator):
        return not is_out_of_memory(error)
    return _message_contains(error, DEVICE_WORDS) and not is_out_of_memory(error)


def is_machine_error(error: BaseException) -> bool:
    """Whether the machine failed and not the clip.

    Out of memory, device failure, full disk. A retry elsewhere may succeed.
    """
    return (
        isinstance(error, OSError)
        or is_out_of_memory(error)
        or is_device_error(error)
        or _message_contains(error, OTHER_WORDS)
    )


def _message_contains(error: BaseException, words: tuple[str, ...]) -> bool:
    # Compare messages, because onnxruntime's exceptions have no common base class.
    return any(word in str(error) for word in words)
