"""Batches of clips of similar length, and the isolation of a clip that fails.

A batch is padded to its longest clip; every function that gets one also gets the true lengths and masks by
them, so a clip's result does not depend on its batch-mates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
import torch

from speechmill.errors import ClipError

Item = TypeVar("Item")
WINDOW_BATCHES = 8  # clips of this many device batches are held at a time: enough to find ones of similar length
# What torch, CUDA's libraries, onnxruntime and Python say when it is the machine that fails.
MACHINE_WORDS = (
    *("CUDA error", "cuDNN error", "cuFFT error", "CUBLAS", "out of memory", "can't allocate memory"),
    *("Cannot allocate memory", "Failed to allocate memory", "bad_alloc", "can't start new thread"),
)
Result = TypeVar("Result")


def exact_convolutions() -> AbstractContextManager[None]:
    """Around convolutions on a GPU: no TF32 and no algorithm whose result changes from call to call."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def windows(
    items: Iterable[Item], seconds: Callable[[Item], float], most: float, count: int = 1024
) -> Iterator[list[Item]]:
    """Consecutive items, cut where their seconds reach `most` or there are `count`: what is held at a time."""
    window: list[Item] = []
    held = 0.0
    for item in items:
        window.append(item)
        held += seconds(item)
        if held >= most or len(window) >= count:
            yield window
            window, held = [], 0.0
    if window:
        yield window


def length_batches(lengths: Sequence[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Indices grouped so that a group's padded size (longest x count) stays within `budget` samples.

    Longest first, ties by index, so the same lengths always give the same groups. A clip longer than the
    budget is a group of its own. `multiple` rounds the padded length up.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    room = 0
    for index in order:
        if not groups or room < 1:
            longest = -(-max(lengths[index], 1) // multiple) * multiple
            room = max(1, budget // longest)
            groups.append([])
        groups[-1].append(index)
        room -= 1
    return groups


def pad(clips: Sequence[np.ndarray], device: str, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (n_i,) float32 -> batch (B, S) float32 padded with zeros, lengths (B,) int64; S a multiple of `multiple`."""
    lengths = [len(clip) for clip in clips]
    size = -(-max(lengths, default=1) // multiple) * multiple
    batch = np.zeros((len(clips), max(size, multiple)), np.float32)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    return torch.from_numpy(batch).to(device), torch.tensor(lengths, dtype=torch.int64, device=device)


def isolate(
    function: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], error_class: str
) -> list[Result | ClipError]:
    """`function` over a batch; where it raises, over one clip at a time, so that one bad clip costs only itself.

    An error of the machine (memory, a dead device) is not a clip's fault and is raised.
    """
    try:
        return list(function(items))
    except Exception as error:
        if is_machine_fault(error) or not items:
            raise
        if isinstance(error, ClipError) and len(items) == 1:
            return [error]
        if len(items) == 1:
            return [
                ClipError(error_class, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            ]
    return [result for item in items for result in isolate(function, [item], error_class)]


def is_machine_fault(error: BaseException) -> bool:
    """True where trying the same clip elsewhere may work: out of memory, a lost device, a full disk."""
    if isinstance(error, (MemoryError, OSError)):
        return True
    accelerator = getattr(torch, "AcceleratorError", ())
    if isinstance(error, (torch.cuda.OutOfMemoryError, *([accelerator] if accelerator else []))):
        return True
    # Any type of exception: onnxruntime's derive from Exception alone.
    return any(words in str(error) for words in MACHINE_WORDS)
