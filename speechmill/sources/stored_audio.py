"""Audio in a column of a table: as `datasets` writes it, as plain bytes, as decoded samples, or named by a path."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from speechmill.errors import ClipError
from speechmill.utils.text import plain

MAX_RATE = 384_000  # Hz, of decoded samples
SAMPLE_COLUMNS = ("audio", "array", "samples", "waveform", "wav", "speech")  # names of columns of plain samples


def holds_audio(kind: pa.DataType) -> bool:
    """Whether a column type can contain audio.

    It can be bytes, a struct with `bytes`, a struct with decoded samples (`array`, `sampling_rate`), which `datasets`
    writes if the column is not declared as Audio, or a list of these. Each may be a dictionary or a view.
    """
    kind = _value_type(kind)
    if pa.types.is_struct(kind):
        fields = {child.name: _value_type(child.type) for child in kind}
        if "bytes" in fields:
            return _is_binary(fields["bytes"])
        samples = fields.get("array")
        return (
            samples is not None and "sampling_rate" in fields and _is_list(samples) and _is_number(samples.value_type)
        )
    if _is_list(kind):
        return pa.types.is_struct(_value_type(kind.value_type)) and holds_audio(kind.value_type)
    return _is_binary(kind)


def holds_samples(kind: pa.DataType) -> bool:
    """Whether a column type can be decoded samples, or bytes as a list of numbers."""
    return _is_list(kind) and (_is_number(kind.value_type) or pa.types.is_uint8(kind.value_type))


def sample_bits(kind: pa.DataType) -> int | None:
    """Bits of an integer sample in a column with audio; None if samples are floating-point, or there are none."""
    kind = _value_type(kind)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("array")
        return sample_bits(kind.field(index).type) if index >= 0 else None
    if _is_list(kind):
        return sample_bits(kind.value_type)
    return kind.bit_width if pa.types.is_signed_integer(kind) else None


def stored_audio(value: Any, rate: Any, bits: int | None, root: Path) -> tuple[bytes | Path, str | None]:
    """Encoded audio of a row or the file with it, and the file name that is stored with it.

    Decoded samples are encoded as WAV (32-bit float).

    Args:
        value: of the column with audio.
        rate: of the column `sampling_rate`, if there is one.
        bits: of a decoded integer sample (`sample_bits`).
        root: the folder below which a file may be named by path.

    Raises:
        ClipError: `no_bytes`, `bad_sampling_rate`, `bad_row`.
    """
    if isinstance(value, list):
        if value and not isinstance(value[0], dict):
            return (_wav(value, rate, bits) if rate is not None else bytes(value)), None
        if len(value) != 1:
            raise ClipError("bad_row", f"it holds a list of {len(value)} audio files; store one row for each")
        value = value[0]
    if not isinstance(value, dict):
        if not value:
            raise ClipError("no_bytes", "it holds no audio bytes")
        return value, None
    data, name = value.get("bytes"), value.get("path")
    if data is not None:
        return data, name
    if value.get("array") is not None:
        return _wav(value["array"], value.get("sampling_rate", rate), bits), name
    if not name:
        raise ClipError("no_bytes", "it holds no audio bytes")
    return _named_file(name, root), name


def _named_file(name: str, root: Path) -> Path:
    """The file of a row without bytes. Only files below `root` are read: a corpus must not name any file of the machine."""
    path = Path(os.path.realpath(root / name))
    if not path.is_relative_to(os.path.realpath(root)):
        there = "exists" if path.is_file() else "does not exist here"
        raise ClipError(
            "no_bytes",
            f"it holds no audio bytes, but the path {plain(name)} of a file, which {there}. Set source.audio_folder to the "
            "folder with the files, or store their bytes: Dataset.cast_column('audio', Audio(decode=False)), read each path",
        )
    if not path.is_file():
        raise ClipError("no_bytes", f"it holds no audio bytes, but a path, and {plain(str(path))} does not exist")
    return path


def _wav(samples: Any, rate: Any, bits: int | None) -> bytes:
    if not isinstance(rate, int) or not 0 < rate <= MAX_RATE:
        raise ClipError("bad_sampling_rate", f"sampling_rate is {plain(rate, 40)} for decoded samples")
    values = np.asarray(samples)
    if values.dtype.kind not in "if" or values.ndim not in (1, 2):
        raise ClipError("bad_row", "the decoded samples are not numbers in one or two dimensions")
    if bits is not None:
        bits = 16 if bits == 64 else bits  # what tools write that do not say how wide a sample is
        if values.size and max(-int(values.min()), int(values.max())) > 2 ** (bits - 1):
            raise ClipError("bad_row", f"the decoded samples are integers beyond {bits} bits")
        values = values / 2 ** (bits - 1)
    if values.ndim == 2 and values.shape[0] < values.shape[1]:  # channels first, as torchaudio has them
        values = values.T
    memory = io.BytesIO()
    soundfile.write(memory, values.astype(np.float32), rate, format="WAV", subtype="FLOAT")
    return memory.getvalue()


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def _is_number(kind: pa.DataType) -> bool:
    """Of a sample: mono, or a list for each frame or channel."""
    return (
        pa.types.is_floating(kind)
        or pa.types.is_signed_integer(kind)
        or (_is_list(kind) and _is_number(kind.value_type))
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
