"""RNNoise in torch against the C library, and that neither batch-mates, padding nor the size of blocks touch a clip."""

import ctypes

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from torch.utils._python_dispatch import TorchDispatchMode

from speechmill.audio.resample import resample
from speechmill.engine.tensors import pad
from speechmill.enhance import rnnoise_torch, rnnoise_weights
from speechmill.enhance.rnnoise import DELAY, FRAME, HIGH_PASS, RNNoise, _library, denoise
from speechmill.enhance.rnnoise_pitch import _chain
from speechmill.enhance.rnnoise_torch import RNNoiseTorch, _HighPass, _slow_decay
from speechmill.errors import SpeechmillError
from tests.unit.enhancing import enhance
from tests.unit.metric_clips import speech_clips, with_noise


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On a busy machine threads wait for each other at every small product."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def enhancer() -> RNNoiseTorch:
    return RNNoiseTorch()


@pytest.fixture(scope="module")
def noisy() -> list[np.ndarray]:
    """2 s of speech at 48 kHz, clean, in white and in pink noise, with digital silence inside and at the end."""
    clips = speech_clips(8)
    spoilt = [with_noise(c, 12 - 2 * i, seed=i, pink=i % 2 == 1) for i, c in enumerate(clips[2:])]
    clips = [resample(clip[:32_000], 16_000, 48_000) for clip in (*clips[:2], *spoilt)]
    clips[1][30_000:50_000] = 0
    clips[2][-20_000:] = 0
    return clips


def agreement_db(reference: np.ndarray, found: np.ndarray) -> float:
    difference = reference.astype(np.float64) - found
    return float(10 * np.log10(np.mean(reference.astype(np.float64) ** 2) / max(np.mean(difference**2), 1e-30)))


def test_it_agrees_with_the_library(enhancer, noisy):
    found = [agreement_db(denoise(clip), out) for clip, out in zip(noisy, enhance(enhancer, noisy), strict=True)]
    assert np.median(found) > 60
    assert min(found) > 40


def test_it_bears_the_library_s_name(enhancer):
    library = RNNoise()
    for field in ("name", "version", "native_rate", "weights_sha256"):
        assert getattr(enhancer, field) == getattr(library, field)


@pytest.mark.parametrize("block", [(8, 128), (3, 16)])
def test_alone_and_among_longer_and_shorter_clips(noisy, block):
    """To the last bit, at any place in a batch: more clips than a block has, in another order, in pairs."""
    enhancer = RNNoiseTorch(block=block)
    clips = [*noisy[:3], noisy[3][:10_001], noisy[4][:480], noisy[5][:70_000], noisy[6][: 128 * FRAME - DELAY]]
    alone = [enhance(enhancer, [clip])[0] for clip in clips]
    for members in ([0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [3, 0], [6, 4]):
        for i, together in zip(members, enhance(enhancer, [clips[i] for i in members]), strict=True):
            assert np.array_equal(alone[i], together), (i, members)


@pytest.mark.parametrize("block", [(2, 1), (2, 37), (5, 700)])
def test_the_size_of_blocks_matters_little(enhancer, noisy, block):
    clips = [clip[:30_000] for clip in noisy[2:4]]
    blocks = enhance(RNNoiseTorch(block=block), clips)
    for expected, found in zip(enhance(enhancer, clips), blocks, strict=True):
        assert agreement_db(expected, found) > 100


def test_beside_clicks_too():
    """With windows and spectra in float32, whose rounding a click makes as loud as what is beside it, 92 dB."""
    clip = resample(speech_clips(31, 1.5, 7.0)[30], 16_000, 48_000)
    random = np.random.default_rng(30)
    clicks = random.standard_normal(len(clip)) * (random.random(len(clip)) < 2e-4)
    clicks *= np.sqrt(np.mean(clip**2) / np.mean(clicks**2) / 10)
    clip = (clip + clicks)[:24_000].astype(np.float32)
    whole, blocks = (enhance(RNNoiseTorch(block=(1, frames)), [clip])[0] for frames in (60, 25))
    assert agreement_db(whole, blocks) > 100


def test_rubbish_behind_a_clip_and_a_broken_clip_touch_no_other(enhancer, noisy):
    batch, lengths = pad([noisy[0][:60_000], noisy[1][:40_000], noisy[2][:50_000]], "cpu")
    expected = enhancer(batch, lengths)
    batch[1, 40_000:] = 0.5
    batch[2, 7_000] = torch.nan
    found = enhancer(batch, lengths)
    assert torch.equal(found[:2], expected[:2])
    assert found[2].isnan().any()


@pytest.mark.parametrize("size", [1, 479, 480, 481, 960, 2000])
def test_short_clips_and_silence(enhancer, size):
    noise = np.random.default_rng(1).uniform(-1, 1, size).astype(np.float32)
    short, silent, empty = enhance(enhancer, [noise, np.zeros(size, np.float32), np.zeros(0, np.float32)])
    np.testing.assert_allclose(short, denoise(noise), atol=1e-4)  # next to nothing is left
    assert (silent == 0).all()
    assert empty.shape == (0,)


def test_nothing_at_all(enhancer):
    assert enhancer(torch.zeros(0, 100), torch.zeros(0, dtype=torch.int64)).shape == (0, 100)
    assert enhancer(torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64)).shape == (2, 0)


def test_it_stays_on_the_device_and_waits_for_no_value(monkeypatch):
    """Tensors without data refuse to meet others, and to say what they hold. Torch's own GRU is slow on them."""
    monkeypatch.setattr(torch.nn.GRU, "forward", lambda self, x, state: (x, state))
    batch = torch.zeros(2, 3 * FRAME, device="meta")
    ends = torch.zeros(2, 1, dtype=torch.int64, device="meta")
    with torch.inference_mode():
        out = RNNoiseTorch("meta")._denoise(batch, ends, 4, 2 * FRAME)
    assert out.device.type == "meta"
    assert out.shape == batch.shape


class Largest(TorchDispatchMode):
    """The most bytes of any tensor that is made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.untyped_storage().nbytes())
        return out


def test_memory_is_that_of_a_block(noisy):
    sizes = []
    for repeats in (1, 4):
        batch, lengths = pad([np.tile(noisy[0][:48_000], repeats)], "cpu")
        with Largest() as largest:
            RNNoiseTorch(block=(16, 10))(batch, lengths)
        sizes.append(largest.size)
    longer = 3 * 4 * 48_000  # of the output
    assert sizes[1] <= sizes[0] + longer


def test_the_high_pass_is_the_recursive_one():
    signal = np.random.default_rng(0).standard_normal((3, 9600)) + 1
    high_pass = _HighPass()
    memory = high_pass.at_rest(3)
    found = []
    for block in torch.from_numpy(signal).split(960, 1):
        out, memory = high_pass(block, memory)
        found.append(out)
    np.testing.assert_allclose(torch.cat(found, 1).numpy(), lfilter(*HIGH_PASS, signal), atol=1e-9)


def test_gains_decay_as_step_by_step():
    """With changes of energy over 20 orders of magnitude, and silent frames between."""
    random = torch.Generator().manual_seed(0)
    shape = (3, 301, 32)
    gains = torch.rand(shape, generator=random)
    change = 10 ** (5 * torch.randn(shape, generator=random))
    active = torch.rand(shape[:2], generator=random) < 0.7
    last = torch.rand(3, 1, 32, generator=random)
    found, after = _slow_decay(gains, change, active, last)
    for t in range(shape[1]):
        expected = torch.maximum(gains[:, t], 0.6 * last[:, 0])
        torch.testing.assert_close(found[:, t], expected, rtol=1e-4, atol=1e-7)
        last = torch.where(active[:, t, None], (expected * change[:, t]).clamp_max(1), last[:, 0])[:, None]
    torch.testing.assert_close(after, last, rtol=1e-4, atol=1e-7)


def test_choices_chain_as_step_by_step():
    maps = torch.randint(12, (4, 77, 12), generator=torch.Generator().manual_seed(0))
    maps[:, 0] = maps[:, 0, :1]
    found = _chain(maps)[..., 0]
    choice = maps[:, 0, 0]
    for t in range(maps.shape[1]):
        choice = maps[:, t].gather(1, choice[:, None])[:, 0] if t else choice
        assert torch.equal(found[:, t], choice)


def test_tables_are_the_library_s(enhancer):
    library, _ = _library()
    edges = (ctypes.c_int * 34).in_dll(library, "eband20ms")
    window = np.array((ctypes.c_float * FRAME).in_dll(library, "rnn_half_window"))
    cosine = np.array((ctypes.c_float * 1024).in_dll(library, "rnn_dct_table")).reshape(32, 32)
    assert tuple(edges) == rnnoise_torch.EDGES
    np.testing.assert_allclose(enhancer.denoiser.window[:FRAME].numpy(), window, atol=1e-7)
    np.testing.assert_allclose(enhancer.denoiser.cosine.numpy(), cosine * np.sqrt(2 / 22), atol=1e-7)


def test_another_library_is_refused(monkeypatch):
    monkeypatch.setattr(rnnoise_weights, "_library", lambda: (ctypes.CDLL(None), "0" * 64))
    with pytest.raises(SpeechmillError, match=r"pyrnnoise .*: not a known RNNoise library, it has no rnnoise_arrays"):
        RNNoiseTorch()


def test_weights_of_another_shape_are_refused(monkeypatch):
    monkeypatch.setattr("speechmill.enhance.rnnoise_network.read_weights", rnnoise_weights.read_weights)
    monkeypatch.setattr(rnnoise_weights, "FEATURES", 42)
    with pytest.raises(SpeechmillError, match="not a known RNNoise library, conv1_weights_float is not 16128 values"):
        RNNoiseTorch()
