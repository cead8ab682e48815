"""FLAC of our own, and sampling rates."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from speechmill.audio.encode import decode_flac, encode_flac
from speechmill.audio.resample import resample
from speechmill.errors import ClipError


@settings(max_examples=60)
@given(arrays.arrays(np.int16, st.integers(1, 3000)), st.sampled_from([16_000, 22_050, 48_000]))
def test_sixteen_bit_samples_survive(pcm: np.ndarray, rate: int) -> None:
    samples = pcm.astype(np.float32) / 32768
    data = encode_flac(samples, rate)
    again, found = decode_flac(data)
    assert found == rate
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, samples)
    assert encode_flac(again, rate) == data


@settings(max_examples=40)
@given(arrays.arrays(np.float32, st.integers(1, 2000), elements=st.floats(-1, 1, width=32)))
def test_no_sample_moves_by_more_than_half_a_step(samples: np.ndarray) -> None:
    again, _ = decode_flac(encode_flac(samples, 16_000))
    np.testing.assert_allclose(again, np.minimum(samples, 32767 / 32768), rtol=0, atol=0.5 / 32768)


def test_rounding_is_half_to_even_and_clips() -> None:
    steps = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, 32766.5, 32767.5, 40000, -32768.5, -1e9], np.float32)
    expected = [0, 2, 2, 0, -2, 0, 32766, 32767, 32767, -32768, -32768]
    data = encode_flac(steps / np.float32(32768), 16_000)
    pcm, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    assert pcm.tolist() == expected


def test_flac_is_mono_sixteen_bit_and_compressed() -> None:
    tone = 0.3 * np.sin(np.arange(32_000) / 9).astype(np.float32)
    data = encode_flac(tone, 16_000)
    info = soundfile.info(io.BytesIO(data))
    assert (info.format, info.subtype, info.channels, info.frames) == ("FLAC", "PCM_16", 1, 32_000)
    assert len(data) < tone.size  # half of 16 bits
    assert data == encode_flac(tone.copy(), 16_000)


@pytest.mark.parametrize(
    ("samples", "error_class"), [([], "empty_audio"), ([0, np.nan], "non_finite"), ([np.inf], "non_finite")]
)
def test_what_cannot_be_written(samples: list[float], error_class: str) -> None:
    with pytest.raises(ClipError) as caught:
        encode_flac(np.array(samples, np.float32), 16_000)
    assert caught.value.error_class == error_class


def test_a_damaged_flac_is_a_clip_error() -> None:
    data = encode_flac(np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32), 16_000)
    for broken in (data[: len(data) // 2], b"", b"text"):
        with pytest.raises(ClipError):
            decode_flac(broken)


@settings(max_examples=60)
@given(
    st.integers(0, 5000),
    st.sampled_from([8_000, 11_025, 22_050, 44_100, 48_000]),
    st.sampled_from([16_000, 24_000, 48_000]),
)
def test_resampled_length(size: int, from_rate: int, to_rate: int) -> None:
    out = resample(np.ones(size, np.float32), from_rate, to_rate)
    assert out.dtype == np.float32
    assert len(out) == round(size * to_rate / from_rate)


@pytest.mark.parametrize(
    ("from_rate", "to_rate"), [(48_000, 16_000), (44_100, 16_000), (22_050, 16_000), (8_000, 16_000), (16_000, 48_000)]
)
def test_resampling_keeps_a_tone_in_place(from_rate: int, to_rate: int) -> None:
    def tone(rate: int) -> np.ndarray:
        return (0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)).astype(np.float32)

    inside = slice(to_rate // 10, -to_rate // 10)
    np.testing.assert_allclose(resample(tone(from_rate), from_rate, to_rate)[inside], tone(to_rate)[inside], atol=1e-5)


def test_resampling_removes_what_the_rate_cannot_hold() -> None:
    high = np.sin(2 * np.pi * 9_500 * np.arange(48_000) / 48_000).astype(np.float32)
    assert np.abs(resample(high, 48_000, 16_000)[1000:-1000]).max() < 1e-4


def test_equal_rates_change_nothing() -> None:
    samples = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    np.testing.assert_array_equal(resample(samples, 16_000, 16_000), samples)
