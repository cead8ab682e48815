"""How tests run an enhancer over clips of several lengths."""

import numpy as np
import torch

from speechmill.engine.tensors import pad
from speechmill.enhance import Enhancer


def enhance(enhancer: Enhancer, clips: list[np.ndarray]) -> list[np.ndarray]:
    """Each clip as it comes out of one batch of all; nothing may stand after its end."""
    batch, lengths = pad(clips, "cpu")
    out = enhancer(batch, lengths)
    assert out.shape == batch.shape
    assert out.dtype == torch.float32
    for row, clip in zip(out, clips, strict=True):
        assert (row[len(clip) :] == 0).all()
    return [row[: len(clip)].numpy() for row, clip in zip(out, clips, strict=True)]
