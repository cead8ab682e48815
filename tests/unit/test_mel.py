"""Mel filters: torchaudio's, to the last bit."""

import pytest
import torch

from speechmill.metrics.mel import mel_filters

torchaudio = pytest.importorskip("torchaudio", reason="needs torchaudio: pip install 'speechmill[full]'")


@pytest.mark.parametrize("equal_area", [False, True])
@pytest.mark.parametrize(
    ("bins", "low", "high", "bands", "rate"),
    [
        (257, 60.0, 8000.0, 40, 16000),
        (129, 125.0, 7500.0, 23, 16000),
        (322, 0.0, 8000.0, 120, 16000),
        (2, 0, 999, 1, 2000),
    ],
)
def test_filters_are_those_of_torchaudio(bins, low, high, bands, rate, equal_area):
    norm = "slaney" if equal_area else None
    expected = torchaudio.functional.melscale_fbanks(bins, low, high, bands, rate, norm, "slaney")
    assert torch.equal(mel_filters(bins, low, high, bands, rate, equal_area), expected)
