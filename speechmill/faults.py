"""Whose fault an error is: the clip's, or the machine's, and of what kind."""

from __future__ import annotations

import torch

# What torch, CUDA's libraries, onnxruntime and Python say when memory runs out...
MEMORY_WORDS = (
    *("out of memory", "can't allocate memory", "Cannot allocate memory", "Failed to allocate memory"),
    *("bad_alloc", "ALLOC_FAILED"),
    "unable to find an engine",  # cuDNN's, after every one of them had too little memory
)
# ... and when a device does not answer as it should.
DEVICE_WORDS = ("CUDA error", "CUDA driver error", "cuDNN error", "cuFFT error", "CUBLAS")
OTHER_WORDS = ("can't start new thread",)


def is_out_of_memory(error: BaseException) -> bool:
    """True where fewer clips at a time may work."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return not isinstance(error, OSError) and _says(error, MEMORY_WORDS)


def is_out_of_device_memory(error: BaseException) -> bool:
    """True where it is a GPU's memory that ran out, not the main memory beside it."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return is_out_of_memory(error) and _says(error, ("CUDA", "cuDNN", "cuFFT", "CUBLAS", "CUFFT", "find an engine"))


def is_device_fault(error: BaseException) -> bool:
    """True where a GPU does not answer as it should: nothing works any more in this process."""
    accelerator = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    if accelerator is not None and isinstance(error, accelerator):
        return not is_out_of_memory(error)
    return _says(error, DEVICE_WORDS) and not is_out_of_memory(error)


def is_machine_fault(error: BaseException) -> bool:
    """True where trying the same clip elsewhere may work: out of memory, a lost device, a full disk."""
    return isinstance(error, OSError) or is_out_of_memory(error) or is_device_fault(error) or _says(error, OTHER_WORDS)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    # Any type of exception: onnxruntime's derive from Exception alone.
    return any(word in str(error) for word in words)
