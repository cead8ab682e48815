"""The weights of RNNoise v0.2, read from the C library inside the pyrnnoise wheel."""

from __future__ import annotations

import ctypes
import importlib.metadata

import numpy as np
import torch

from speechmill.enhance.rnnoise import _library
from speechmill.errors import SpeechmillError

FEATURES = 65  # 32 cepstra of the frame, 32 of its correlation with the pitch-shifted frame, the pitch period
BANDS = 32
FIRST, WIDTH = 128, 384  # channels of the first convolution, and of every later layer
TAPS = 3  # frames of a convolution
MOST_ARRAYS = 256  # upper bound of the library's list, which ends with an entry without a name
FLOAT = 0  # WEIGHT_TYPE_float of nnet.h
GROUP = (4, 8)  # inputs x outputs of a tile of a recurrent layer's weights


class _Entry(ctypes.Structure):
    """WeightArray of nnet.h."""

    _fields_ = (("name", ctypes.c_char_p), ("type", ctypes.c_int), ("size", ctypes.c_int), ("data", ctypes.c_void_p))


def read_weights() -> tuple[dict[str, torch.Tensor], str]:
    """The network's float32 weights, and the sha256 of the library's file.

    Products are inputs @ weight: conv1 (195, 128) and conv2 (384, 384), with the oldest of three frames first;
    gain (1536, 32); `*_bias`. GRUs have torch's layout: gru{1,2,3}_{weight,bias}_{ih,hh}, (1152, 384) and (1152,).

    Raises:
        SpeechmillError: the library is missing, or its network is not known.
    """
    library, digest = _library()
    arrays = _Arrays(library)
    weights = {
        "conv1": arrays.floats("conv1_weights_float", TAPS * FEATURES, FIRST),
        "conv1_bias": arrays.floats("conv1_bias", FIRST),
        "conv2": arrays.floats("conv2_weights_float", TAPS * FIRST, WIDTH),
        "conv2_bias": arrays.floats("conv2_bias", WIDTH),
        "gain": arrays.floats("dense_out_weights_float", 4 * WIDTH, BANDS),
        "gain_bias": arrays.floats("dense_out_bias", BANDS),
    }
    # Order of a GRU's gates: update, reset, new in the library; reset, update, new in torch.
    order = np.r_[WIDTH : 2 * WIDTH, :WIDTH, 2 * WIDTH : 3 * WIDTH]
    for layer in ("gru1", "gru2", "gru3"):
        into = arrays.tiled(f"{layer}_input")
        back = arrays.tiled(f"{layer}_recurrent")
        # The library stores the diagonal of the recurrent matrix separately.
        diagonal = arrays.floats(f"{layer}_recurrent_weights_diag", 3 * WIDTH)
        back[np.arange(3 * WIDTH) % WIDTH, np.arange(3 * WIDTH)] += diagonal
        weights[f"{layer}_weight_ih"] = into.T[order]
        weights[f"{layer}_weight_hh"] = back.T[order]
        weights[f"{layer}_bias_ih"] = arrays.floats(f"{layer}_input_bias", 3 * WIDTH)[order]
        weights[f"{layer}_bias_hh"] = arrays.floats(f"{layer}_recurrent_bias", 3 * WIDTH)[order]
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()}, digest


class _Arrays:
    """The weight arrays of a library by name (`rnnoise_arrays`)."""

    def __init__(self, library: ctypes.CDLL):
        try:
            entries = (_Entry * MOST_ARRAYS).in_dll(library, "rnnoise_arrays")
        except ValueError as error:  # stripped, or an RNNoise older than 0.2
            raise _unknown("it has no rnnoise_arrays") from error
        self.entries: dict[str, _Entry] = {}
        for entry in entries:  # stop at the entry that ends the list: the memory after it belongs to something else
            if not entry.name:
                break
            self.entries[entry.name.decode()] = entry

    def _read(self, name: str, kind: type[np.generic], count: int) -> np.ndarray:
        entry = self.entries.get(name)
        size = np.dtype(kind).itemsize * count
        if entry is None or entry.size != size or (kind is np.float32) != (entry.type == FLOAT):
            raise _unknown(f"{name} is not {count} values of {np.dtype(kind).name}")
        return np.frombuffer(ctypes.string_at(entry.data, size), kind).copy()

    def floats(self, name: str, *shape: int) -> np.ndarray:
        return self._read(name, np.float32, int(np.prod(shape))).reshape(shape)

    def tiled(self, name: str) -> np.ndarray:
        """A GRU's matrix, dense (384, 1152).

        Stored as tiles of 4 inputs x 8 outputs: for each 8 outputs, the number of tiles and the first input of each.
        """
        inputs, outputs = GROUP
        tiles = self._read(f"{name}_weights_float", np.float32, WIDTH * 3 * WIDTH).reshape(-1, inputs, outputs)
        index = self._read(f"{name}_weights_idx", np.int32, len(tiles) + 3 * WIDTH // outputs)
        dense = np.zeros((WIDTH, 3 * WIDTH), np.float32)
        at = used = 0
        for column in range(0, 3 * WIDTH, outputs):
            count = int(index[at])
            rows = index[at + 1 : at + 1 + count, None] + np.arange(inputs)
            if used + count > len(tiles) or (rows < 0).any() or (rows >= WIDTH).any():
                raise _unknown(f"{name}_weights_idx points outside of the matrix")
            dense[rows, column : column + outputs] = tiles[used : used + count]
            at, used = at + 1 + count, used + count
        return dense


def _unknown(what: str) -> SpeechmillError:
    version = importlib.metadata.version("pyrnnoise")
    return SpeechmillError(f"pyrnnoise {version}: not a known RNNoise library, {what}; pip install pyrnnoise==0.4.5")
