"""RNNoise v0.2 as a batched torch program for GPUs: computes all frames of many clips together, unlike `rnnoise`.

J.-M. Valin, "A Hybrid DSP/Deep Learning Approach to Real-Time Full-Band Speech Enhancement", MMSP 2018. After
src/denoise.c and src/rnn.c of xiph/rnnoise; the weights are read from the library in the pyrnnoise wheel.

Only the network's GRUs step through time. All other recurrences are associative, so they need one step per doubling of
the frames. The output agrees with the library's to about 70 dB: the library computes tanh and sigmoid to four digits,
and its high-pass in float32. Rarely a pitch decision differs, which reduces the agreement of a clip by 20 dB.

RNNoise is distributed under the BSD-3-Clause licence:

Copyright (c) 2007-2017, 2024 Jean-Marc Valin
Copyright (c) 2023 Amazon
Copyright (c) 2017, Mozilla
Copyright (c) 2005-2017, Xiph.Org Foundation
Copyright (c) 2003-2004, Mark Borgerding

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:

- Redistributions of source code must retain the above copyright notice, this list of conditions and the following
  disclaimer.
- Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
  disclaimer in the documentation and/or other materials provided with the distribution.
- Neither the name of the Xiph.Org Foundation nor the names of its contributors may be used to endorse or promote
  products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE FOUNDATION OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL,
EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF
USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT,
STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN
IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from speechmill.engine.memory import is_large
from speechmill.enhance.rnnoise import DELAY, FRAME, HIGH_PASS, RATE, SCALE
from speechmill.enhance.rnnoise_network import Network, NetworkState
from speechmill.enhance.rnnoise_pitch import BUFFER, Last, pitch_periods
from speechmill.enhance.rnnoise_weights import BANDS

WINDOW = 2 * FRAME
BINS = FRAME + 1
PAST = BUFFER - FRAME  # samples before a frame that its pitch search reads
# Edges of the 32 triangular bands in bins: band i begins at edge i, peaks at edge i + 1 and ends at edge i + 2.
EDGES = (
    *(0, 2, 4, 6, 8, 10, 12, 15, 18, 21, 24, 28, 32, 36, 41, 47, 53, 60, 68, 77, 87, 98, 110, 124, 140, 157, 176),
    *(198, 223, 251, 282, 317, 356, 400),
)
SILENCE = 0.04  # total energy below which the network skips a frame and keeps its state
DECAY = 0.6  # lowest ratio of a band's gain to its gain in the frame before
SPAN = 48  # samples per step of the high-pass
# (clips, frames) per block. The size is constant because it selects kernels, and with them the order of summation, and
# a clip's result must not depend on its batch. It also limits memory: 65 kB per frame.
CPU_BLOCK = (8, 128)
GPU_BLOCK = (64, 64)
LARGE_GPU_BLOCK = (256, 256)


class RNNoiseTorch:
    """RNNoise as an `Enhancer`, on the device of its input.

    A clip's result is the same to the last bit alone and in any batch (tested on CPUs). Blocks of another size change
    it by rounding errors, more than 100 dB below the signal (at least 120 dB for 400 clips on a CPU).
    """

    name = "rnnoise"
    version = "0.2"
    native_rate = RATE

    def __init__(self, device: str | torch.device = "cpu", block: tuple[int, int] | None = None) -> None:
        """block: clips and frames computed together; None selects a size for the device."""
        self.denoiser = _Denoiser().to(device)
        self.high_pass = _HighPass().to(device)
        self.weights_sha256: str | None = self.denoiser.network.sha256
        self.block = block or _block(str(device))

    def __call__(self, batch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, S) float32, lengths (B,) -> denoised (B, S), zero after a clip's end."""
        clips, frames = self.block
        out = torch.zeros_like(batch)
        with torch.inference_mode():
            for first in range(0, len(batch), clips):
                group, sizes = batch[first : first + clips], lengths[first : first + clips].to(batch.device)
                longest = int(sizes.max()) if batch.shape[1] else 0
                denoised = self._denoise(group[:, :longest], sizes[:, None], clips, frames * FRAME)
                out[first : first + clips, :longest] = denoised
        return out

    def _denoise(self, batch: torch.Tensor, ends: torch.Tensor, clips: int, step: int) -> torch.Tensor:
        """(B, S), (B, 1) -> (B, S), in blocks of `clips` clips (filled up with silence) by `step` samples."""
        rows, size = batch.shape
        total = step * -(-(size + DELAY) // step)
        answer = batch.new_zeros(rows, total + DELAY)
        state, memory = _State.at_rest(clips, batch.device), self.high_pass.at_rest(clips)
        for start in range(0, total, step):
            stop = start + step
            block = functional.pad(batch[:, start:stop], (0, stop - max(start, min(stop, size))))
            block = SCALE * torch.where(_positions(start, stop, block) < ends, block, 0.0)
            block, memory = self.high_pass(_filled(block, clips), memory)
            answer[:, start:stop] = self.denoiser(block, state)[:rows]
        return self._in_phase(answer[:, DELAY:], ends, clips, step)[:, :size]

    def _in_phase(self, answer: torch.Tensor, ends: torch.Tensor, clips: int, step: int) -> torch.Tensor:
        """Apply the high-pass backwards to (B, n) in place, from the end of each clip's last frame, and scale."""
        last = -(-ends // FRAME) * FRAME
        memory = self.high_pass.at_rest(clips)
        for start in reversed(range(0, answer.shape[1], step)):
            stop = start + step
            at = _positions(start, stop, answer)
            block = _filled(torch.where(at < last, answer[:, start:stop], 0.0), clips)
            block, memory = self.high_pass(block.flip(1), memory)
            answer[:, start:stop] = torch.where(at < ends, block.flip(1)[: len(answer)] / SCALE, 0.0)
        return answer


def _filled(block: torch.Tensor, clips: int) -> torch.Tensor:
    """(B, n) -> (clips, n), filled up with silence."""
    return functional.pad(block, (0, 0, 0, clips - len(block)))


def _block(device: str) -> tuple[int, int]:
    if not device.startswith("cuda"):
        return CPU_BLOCK
    return LARGE_GPU_BLOCK if is_large(device) else GPU_BLOCK


def _positions(start: int, stop: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(start, stop, device=like.device)[None]


class _HighPass(torch.nn.Module):
    """The recursive filter HIGH_PASS over blocks, in float64: its poles are so near 1 that float32 errors are audible.

    The library steps y = x + m0, m' = A m + b x with a memory m of two values. Over a span of samples that is the sum
    of two small products: the span with the impulse response, and the memory with its response.
    """

    response: torch.Tensor  # (48, 48), in x out
    fade: torch.Tensor  # (2, 48)
    gather: torch.Tensor  # (48, 2)
    step: torch.Tensor  # (2, 2), over a span

    def __init__(self) -> None:
        super().__init__()
        (_, b1, b2), (_, a1, a2) = HIGH_PASS  # both begin with 1
        step = torch.tensor([[-a1, 1], [-a2, 0]], dtype=torch.float64)
        enter = torch.tensor([b1 - a1, b2 - a2], dtype=torch.float64)
        powers = [torch.eye(2, dtype=torch.float64)]
        for _ in range(SPAN):
            powers.append(step @ powers[-1])
        response = torch.stack([torch.ones((), dtype=torch.float64), *((p @ enter)[0] for p in powers[: SPAN - 1])])
        delay = torch.arange(SPAN)[None] - torch.arange(SPAN)[:, None]
        self.register_buffer("response", torch.where(delay >= 0, response[delay.clamp_min(0)], 0.0))
        self.register_buffer("fade", torch.stack([p[0] for p in powers[:SPAN]], 1))
        self.register_buffer("gather", torch.stack([p @ enter for p in reversed(powers[:SPAN])]))
        self.register_buffer("step", powers[SPAN].T.contiguous())

    def at_rest(self, clips: int) -> torch.Tensor:
        """The memory (B, 2) before the first sample."""
        return self.step.new_zeros(clips, 2)

    def forward(self, block: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, n), n a multiple of SPAN, and the memory before it -> filtered (B, n) float64, the memory after it."""
        spans = block.double().unflatten(1, (-1, SPAN))
        # Memory before each span: the decayed contributions of all earlier spans, joined over 1, 2, 4 ... spans.
        memories = torch.cat([memory[:, None], spans @ self.gather], 1)
        reach, power = 1, self.step
        while reach < memories.shape[1]:
            joined = memories[:, reach:] + memories[:, :-reach] @ power
            memories = torch.cat([memories[:, :reach], joined], 1)
            reach, power = 2 * reach, power @ power
        filtered = spans @ self.response + memories[:, :-1] @ self.fade
        return filtered.flatten(1), memories[:, -1]


class _Frame(NamedTuple):
    """Analysis of frames, each (B, T, .)."""

    spectrum: torch.Tensor  # 962: real and imaginary part of each bin in turn
    shifted: torch.Tensor  # 962, of the signal a pitch period earlier
    energy: torch.Tensor  # 32
    shifted_energy: torch.Tensor  # 32
    likeness: torch.Tensor  # 32, of the two spectra


@dataclass
class _State:
    """State between blocks of frames."""

    signal: torch.Tensor  # (B, PAST) float64, high-passed
    pitch: Last
    frame: _Frame  # the last one
    gain: torch.Tensor  # (B, 1, 32) of the last frame that was not silent, corrected for the change of energy
    overlap: torch.Tensor  # (B, FRAME)
    network: NetworkState

    @classmethod
    def at_rest(cls, clips: int, device: torch.device) -> _State:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, device=device)

        return cls(
            signal=zeros(clips, PAST).double(),
            pitch=(zeros(clips, 1).long(), zeros(clips, 1).double()),
            frame=_Frame(*(zeros(clips, 1, count) for count in (2 * BINS, 2 * BINS, BANDS, BANDS, BANDS))),
            gain=zeros(clips, 1, BANDS),
            overlap=zeros(clips, FRAME),
            network=NetworkState.at_rest(clips, device),
        )


class _Denoiser(torch.nn.Module):
    """The library's steps after its high-pass, over blocks of whole frames."""

    window: torch.Tensor  # float64
    cosine: torch.Tensor
    sums: torch.Tensor
    spread: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        rise = torch.sin(0.5 * math.pi * (torch.arange(FRAME, dtype=torch.float64) + 0.5) / FRAME) ** 2
        half = torch.sin(0.5 * math.pi * rise)
        self.register_buffer("window", torch.cat([half, half.flip(0)]))
        band = torch.arange(BANDS, dtype=torch.float64)
        cosine = torch.cos((band[:, None] + 0.5) * band * math.pi / BANDS) * math.sqrt(2 / 22)
        cosine[:, 0] *= math.sqrt(0.5)
        self.register_buffer("cosine", cosine.float())
        sums, spread = _bands()
        self.register_buffer("sums", sums)
        self.register_buffer("spread", spread)
        self.network = Network()

    def forward(self, block: torch.Tensor, state: _State) -> torch.Tensor:
        """High-passed (B, T * FRAME) float64 at 16-bit scale -> denoised, delayed by DELAY. Updates the state."""
        signal = torch.cat([state.signal, block], 1)
        periods, state.pitch = pitch_periods(signal, FRAME, state.pitch)
        frame = self._analyse(signal, periods)
        active = frame.energy.sum(-1) >= SILENCE
        gains = self.network(self._features(frame, periods), active, state.network)
        # The network looks ahead by one frame, so gains apply to the frame before.
        late = _Frame(*(torch.cat([old, new[:, :-1]], 1) for old, new in zip(state.frame, frame, strict=True)))
        combed = self._comb(late, gains)
        gains, state.gain = _slow_decay(gains, (late.energy + 1e-3) / (frame.energy + 1e-3), active, state.gain)
        spectrum = torch.where(active[..., None], combed * (gains @ self.spread), late.spectrum)
        out, state.overlap = self._synthesise(spectrum, state.overlap)
        state.signal, state.frame = signal[:, -PAST:], _Frame(*(new[:, -1:] for new in frame))
        return out

    def _analyse(self, signal: torch.Tensor, periods: torch.Tensor) -> _Frame:
        """(B, PAST + T * FRAME), (B, T) -> windows that end with each frame, and those a period earlier."""
        spectrum = self._spectrum(signal[:, PAST - FRAME :].unfold(1, WINDOW, FRAME))
        starts = PAST - FRAME + torch.arange(0, FRAME * periods.shape[1], FRAME, device=signal.device) - periods
        clips = torch.arange(len(signal), device=signal.device)[:, None]
        shifted = self._spectrum(signal.unfold(1, WINDOW, 1)[clips, starts])
        energy, shifted_energy = spectrum**2 @ self.sums, shifted**2 @ self.sums
        likeness = (spectrum * shifted) @ self.sums / torch.sqrt(1e-3 + energy * shifted_energy)
        return _Frame(spectrum, shifted, energy, shifted_energy, likeness)

    def _spectrum(self, windows: torch.Tensor) -> torch.Tensor:
        """(B, T, 960) float64 -> (B, T, 962) float32.

        Computed in float64: with a click in the window, the rounding of float32, which depends on the batch, would be
        as loud as the quiet bands and change their correlation.
        """
        return torch.view_as_real(torch.fft.rfft(windows * self.window, norm="forward")).flatten(2).float()

    def _features(self, frame: _Frame, periods: torch.Tensor) -> torch.Tensor:
        """(B, T, 65): cepstra of the energies, with limited slopes, and of the correlation; the period."""
        level = functional.pad(torch.log10(1e-2 + frame.energy), (1, 0), value=-2.0)
        # At least the highest level so far minus 7, the band before minus 1.5, and the one before that minus 3.
        highest = level.cummax(-1).values[..., :-1]
        drop = torch.arange(-4, 1, device=level.device) * 1.5
        recent = (functional.pad(level, (3, 0), value=-torch.inf).unfold(-1, 5, 1) + drop).amax(-1)
        cepstrum = torch.maximum(highest - 7, recent) @ self.cosine
        cepstrum[..., 0] -= 12
        cepstrum[..., 1] -= 4
        return torch.cat([cepstrum, frame.likeness @ self.cosine, 0.01 * (periods[..., None] - 300)], -1)

    def _comb(self, frame: _Frame, gains: torch.Tensor) -> torch.Tensor:
        """Add the spectrum a period earlier, with more weight for a high correlation and a low gain; keep energies."""
        like, clear = frame.likeness**2, gains**2
        share = (like * (1 - clear) / (1e-3 + clear * (1 - like))).clamp(0, 1).sqrt()
        share = torch.where(frame.likeness > gains, 1.0, share)
        share = share * torch.sqrt(frame.energy / (1e-8 + frame.shifted_energy))
        summed = frame.spectrum + (share @ self.spread) * frame.shifted
        level = torch.sqrt(frame.energy / (1e-8 + summed**2 @ self.sums))
        return summed * (level @ self.spread)

    def _synthesise(self, spectrum: torch.Tensor, overlap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, 962) and the overlap of the last window (B, FRAME) -> (B, T * FRAME), and the new overlap."""
        bins = torch.view_as_complex(spectrum.unflatten(2, (BINS, 2)))
        windows = torch.fft.irfft(bins, WINDOW, norm="forward") * self.window.float()
        begin, end = windows[..., :FRAME], windows[..., FRAME:]
        out = begin + torch.cat([overlap[:, None], end[:, :-1]], 1)
        return out.flatten(1), end[:, -1]


def _bands() -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices from squared bins (real and imaginary parts) to band energies, (962, 32), and from band gains to bins,
    (32, 962)."""
    bins = torch.arange(BINS, dtype=torch.float64)
    edges = torch.tensor(EDGES, dtype=torch.float64)
    begin, peak, end = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - begin) / (peak - begin), (end - bins) / (end - peak)
    triangles = torch.where(bins < peak, rising, falling).clamp_min(0)
    spread, sums = triangles.clone(), triangles.T.clone()
    # The first and the last band extend by half a triangle: gains are flat there, energies are scaled by two thirds.
    spread[0, : EDGES[1]] = 1
    spread[-1, EDGES[-2] : EDGES[-1]] = 1
    sums[: EDGES[1], 0] = sums[EDGES[-2] : EDGES[-1], -1] = 1
    sums[:, [0, -1]] *= 2 / 3
    return sums.float().repeat_interleave(2, 0), spread.float().repeat_interleave(2, 1)


def _slow_decay(
    gains: torch.Tensor, change: torch.Tensor, active: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gains (B, T, 32) that fall at most by the factor DECAY per frame, and the last gain after the block.

    The library computes gain = max(gain, DECAY * last), then last = min(1, gain * change); silent frames do not change
    it. So last becomes min(1, max(low, slope * last)). The composition of two such steps has the same form, min(high,
    max(low, slope * last)), so they are joined over 1, 2, 4 ... frames.
    """
    loud = active[..., None]
    low = torch.where(loud, (gains * change).clamp_max(1), 0.0)
    slope = torch.where(loud, DECAY * change, 1.0)
    high = torch.ones_like(low)
    reach = 1
    while reach < gains.shape[1]:
        then = low[:, reach:], slope[:, reach:], high[:, reach:]
        first = low[:, :-reach], slope[:, :-reach], high[:, :-reach]
        joined = (
            torch.maximum(then[0], then[1] * first[0]).clamp_max(1),
            (then[1] * first[1]).clamp_max(1e30),  # finite: infinity times zero is NaN
            torch.minimum(then[2], torch.maximum(then[0], then[1] * first[2])),
        )
        low, slope, high = (
            torch.cat([whole[:, :reach], part], 1) for whole, part in zip((low, slope, high), joined, strict=True)
        )
        reach *= 2
    after = torch.minimum(high, torch.maximum(low, slope * last))
    before = torch.cat([last, after[:, :-1]], 1)
    return torch.maximum(gains, DECAY * before), after[:, -1:]
