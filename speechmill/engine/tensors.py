"""Clips as padded tensors, and convolutions with reproducible results."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

_exact_lock = threading.Lock()
_exact_depth = 0
_exact_before: tuple[bool, bool, bool] | None = None


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Disable TF32 and non-deterministic cuDNN algorithms in the block.

    The flags are per process, so `torch.backends.cudnn.flags` in one thread would reset them for another.
    """
    global _exact_depth, _exact_before
    cudnn = torch.backends.cudnn
    with _exact_lock:
        if _exact_depth == 0:
            _exact_before = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
            cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
        _exact_depth += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_depth -= 1
            if _exact_depth == 0 and _exact_before is not None:
                cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = _exact_before


def pad(clips: Sequence[np.ndarray], device: str, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (n_i,) float32 -> batch (B, S) float32 padded with zeros, lengths (B,) int64; S a multiple of `multiple`.

    The copy to a GPU is asynchronous, from pinned memory.
    """
    lengths = [len(clip) for clip in clips]
    size = -(-max(lengths, default=1) // multiple) * multiple
    on_gpu = device.startswith("cuda")
    batch = torch.empty((len(clips), max(size, multiple)), pin_memory=on_gpu)
    for row, clip in zip(batch.numpy(), clips, strict=True):
        row[: len(clip)] = clip
        row[len(clip) :] = 0
    return batch.to(device, non_blocking=on_gpu), torch.tensor(lengths, dtype=torch.int64, device=device)
