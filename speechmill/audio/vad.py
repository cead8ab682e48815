"""Voice activity detection by Silero VAD 6.2 over whole batches of clips, at 16 kHz.

The package's own function runs the network on one clip, 32 ms at a time. Here the convolutional encoder processes all
chunks of all clips together, and one LSTM runs over time. Only the weights come from the package. Segments equal
those of `silero_vad.get_speech_timestamps`; probabilities agree up to rounding.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from speechmill.engine.tensors import exact_convolutions
from speechmill.errors import SpeechmillError
from speechmill.storage.files import sha256_file

RATE = 16_000  # Hz; also of the guard and of all metrics
CHUNK = 512  # samples per speech probability
CONTEXT = 64  # samples of the previous chunk at the start of the network's input
# Chunks per call of the encoder. The number is constant because the size of a product selects the kernel, and with it
# the order of summation, and a clip's probabilities must not depend on its batch. On a CPU, the block fits its caches.
ENCODER_BLOCK = {"cpu": 512, "cuda": 8192}
# Clips and chunks per call of the LSTM, constant for the same reason. A CPU takes whole batches: there the order of
# summation is the same for any number of clips above one.
LSTM_BLOCK: dict[str, tuple[int, int] | None] = {"cpu": None, "cuda": (256, 256)}
# sha256 of silero_vad.jit -> package version with this network. Compare other files before you add them.
KNOWN_NETWORKS = {"e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720": "6.2.3"}


def _network() -> tuple[Path, str]:
    """File and sha256 of the network in the installed package. Importing the package would set torch to one thread."""
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        raise SpeechmillError("silero-vad is not installed: pip install 'silero-vad>=6.2.3'")
    path = Path(spec.origin).parent / "data" / "silero_vad.jit"
    if not path.is_file() or (digest := sha256_file(path)) not in KNOWN_NETWORKS:
        found = digest if path.is_file() else "no such file"
        version = importlib.metadata.version("silero-vad")
        raise SpeechmillError(
            f"silero-vad {version}: {path} is not a known Silero VAD network (sha256 {found}); "
            f"pip install silero-vad=={max(KNOWN_NETWORKS.values())}"
        )
    return path, digest


def vad_versions() -> dict[str, str]:
    """The network's name and its sha256, like `MetricGroup.versions`.

    Raises:
        SpeechmillError: the package is not installed, or its network is not known.
    """
    path, digest = _network()
    return {f"silero-vad/{path.name}": digest}


def _weights() -> dict[str, torch.Tensor]:
    """The 16 kHz network's weights."""
    state = torch.jit.load(str(_network()[0]), map_location="cpu").state_dict()
    return {name.removeprefix("_model."): value.float() for name, value in state.items() if name.startswith("_model.")}


class SileroVad:
    """Silero VAD's network on a device."""

    def __init__(self, device: str = "cpu"):
        weights = {name: value.to(device) for name, value in _weights().items()}
        self.device = device
        # The package's basis is a Hann-windowed DFT of shape (258, 1, 256). Its first row is the window.
        self.window = weights["stft.forward_basis_buffer"][0, 0]
        kernels = [weights[f"encoder.{i}.reparam_conv.weight"] for i in range(4)]  # (channels out, channels in, 3)
        # As products: (taps x channels in, channels out). The strides reduce 4 frames to 2, then 1, so the first tap of
        # the third layer and the outer taps of the fourth only see padding, and are left out.
        taps = [slice(0, 3), slice(0, 3), slice(1, 3), slice(1, 2)]
        self.layers = [
            (
                kernel[:, :, kept].permute(2, 1, 0).reshape(-1, kernel.shape[0]).contiguous(),
                weights[f"encoder.{i}.reparam_conv.bias"],
            )
            for i, (kernel, kept) in enumerate(zip(kernels, taps, strict=True))
        ]
        self.lstm = torch.nn.LSTM(128, 128).to(device).eval()
        with torch.no_grad():
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(self.lstm, f"{name}_l0").copy_(weights[f"decoder.rnn.{name}"])
        self.out_weight = weights["decoder.decoder.2.weight"].reshape(128)
        self.out_bias = weights["decoder.decoder.2.bias"]

    @torch.inference_mode()
    def probabilities(self, batch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Speech probabilities of padded clips.

        batch: (B, S) float32 at 16 kHz, zeros after a clip's end. lengths: (B,) int64 samples.
        Returns (B, ceil(S / 512)) float32 in 0..1, zero from the first chunk after a clip's end.
        """
        size = batch.shape[1]
        steps = max(1, -(-size // CHUNK))
        padded = functional.pad(batch, (CONTEXT, steps * CHUNK - size))
        chunks = padded.unfold(1, CHUNK + CONTEXT, CHUNK)  # (B, T, 576)
        valid = torch.arange(steps, device=batch.device)[None] < (-(-lengths // CHUNK))[:, None]
        # At least two rows: a product with a single row is summed in another order than one with more.
        encoded = batch.new_zeros(max(2, batch.shape[0]), steps, 128)
        # Chunks that are only padding are skipped: the encoder is nine tenths of the work.
        present = chunks[valid]
        with exact_convolutions():
            encoded[: batch.shape[0]][valid] = self._encoded(present)
            hidden = self._recurrent(encoded)[: batch.shape[0]]
        # No matrix product and no torch.sigmoid: both use other instructions at the end of an array than before it.
        logits = (functional.relu(hidden) * self.out_weight).sum(-1) + self.out_bias
        return 1 / (1 + torch.exp(-logits)) * valid

    def _recurrent(self, encoded: torch.Tensor) -> torch.Tensor:
        """The LSTM over (B, T, 128) -> (B, T, 128)."""
        block = LSTM_BLOCK[encoded.device.type]
        if block is None:
            return self.lstm(encoded.transpose(0, 1))[0].transpose(0, 1)
        count, steps = block
        out = torch.empty_like(encoded)
        for first in range(0, len(encoded), count):
            clips = slice(first, first + count)
            state = (encoded.new_zeros(1, count, 128), encoded.new_zeros(1, count, 128))
            for start in range(0, encoded.shape[1], steps):
                part = encoded[clips, start : start + steps]
                filled = functional.pad(part, (0, 0, 0, steps - part.shape[1], 0, count - part.shape[0]))
                hidden, state = self.lstm(filled.transpose(0, 1).contiguous(), state)
                out[clips, start : start + steps] = hidden.transpose(0, 1)[: part.shape[0], : part.shape[1]]
        return out

    def _encoded(self, chunks: torch.Tensor) -> torch.Tensor:
        """(N, 576) -> (N, 128), in blocks of constant size."""
        block = ENCODER_BLOCK[chunks.device.type]
        padded = functional.pad(chunks, (0, 0, 0, -len(chunks) % block))
        blocks = [self._encode(part) for part in padded.split(block)] if len(chunks) else []
        return torch.cat([*blocks, chunks.new_zeros(0, 128)])[: len(chunks)]

    def _encode(self, chunks: torch.Tensor) -> torch.Tensor:
        """(N, 576) -> (N, 128): magnitudes of 4 frames, then four convolutions that end in one step."""
        count = len(chunks)
        samples = torch.cat([chunks, chunks[:, -65:-1].flip(1)], 1)  # reflected at the end
        spectra = torch.fft.rfft(samples.unfold(1, 256, 128) * self.window).abs()  # (N, 4, 129)
        first, second, third, fourth = self.layers
        x = _convolve(functional.pad(spectra, (0, 0, 1, 1)), *first, stride=1)  # (N, 4, 128)
        x = _convolve(functional.pad(x, (0, 0, 1, 0)), *second, stride=2)  # (N, 2, 64)
        x = functional.relu(torch.addmm(third[1], x.reshape(count, -1), third[0]))
        return functional.relu(torch.addmm(fourth[1], x, fourth[0]))


def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int) -> torch.Tensor:
    """Three taps over time as one product, then ReLU. x: (N, T, C), weight: (3 C, D) -> (N, (T - 3) // stride + 1, D)."""
    count, steps, channels = x.shape
    rows = x.as_strided((count, (steps - 3) // stride + 1, 3 * channels), (steps * channels, stride * channels, 1))
    out = torch.addmm(bias, rows.reshape(-1, 3 * channels), weight)
    return functional.relu(out).view(count, -1, len(bias))


@dataclass(frozen=True)
class VadOptions:
    """Parameters of silero_vad.get_speech_timestamps."""

    threshold: float = 0.5
    min_speech_ms: int = 250
    min_silence_ms: int = 100
    pad_ms: int = 30


def speech_segments(
    probabilities: np.ndarray, samples: int, options: VadOptions = VadOptions()
) -> list[tuple[int, int]]:
    """Start and end of speech segments in samples, equal to silero_vad.get_speech_timestamps.

    probabilities: (T,), one per 512 samples; samples: length of the clip. Speech starts where the probability
    reaches the threshold and ends where it stays 0.15 below it for `min_silence_ms`.
    """
    low = max(options.threshold - 0.15, 0.01)
    min_speech = RATE * options.min_speech_ms / 1000
    min_silence = RATE * options.min_silence_ms / 1000
    segments: list[list[int]] = []
    start: int | None = None
    quiet_since: int | None = None
    for step, probability in enumerate(probabilities.tolist()):
        now = step * CHUNK
        if probability >= options.threshold:
            quiet_since = None
            start = now if start is None else start
        elif probability < low and start is not None:
            quiet_since = now if quiet_since is None else quiet_since
            if now - quiet_since >= min_silence:
                if quiet_since - start > min_speech:
                    segments.append([start, quiet_since])
                start = quiet_since = None
    if start is not None and samples - start > min_speech:
        segments.append([start, samples])
    _pad(segments, samples, RATE * options.pad_ms // 1000)
    return [(a, b) for a, b in segments]


def _pad(segments: list[list[int]], samples: int, pad: int) -> None:
    """Widen segments in place by `pad` on both sides. Two that would overlap meet in the middle."""
    for i, segment in enumerate(segments):
        if i == 0:
            segment[0] = max(0, segment[0] - pad)
        if i == len(segments) - 1:
            segment[1] = min(samples, segment[1] + pad)
            continue
        gap = segments[i + 1][0] - segment[1]
        share = gap // 2 if gap < 2 * pad else pad
        segment[1] = min(samples, segment[1] + share)
        segments[i + 1][0] = max(0, segments[i + 1][0] - share)


def speech_seconds(segments: list[tuple[int, int]]) -> float:
    """Total seconds of speech."""
    return sum(stop - start for start, stop in segments) / RATE


def longest_pause_s(segments: list[tuple[int, int]]) -> float:
    """Seconds of the longest gap between two segments; 0 if there are fewer than two."""
    gaps = (b[0] - a[1] for a, b in itertools.pairwise(segments))
    return max(gaps, default=0) / RATE
