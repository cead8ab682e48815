"""Build the demo corpus: real speech, mixed, re-encoded and damaged as a corpus comes in life. See demo/README.md.

python demo/build.py [--out demo/corpus] [--seed 0]
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import shutil
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import soxr

HERE = Path(__file__).parent
RATE = 16_000
NOISES = ("white", "pink", "hum", "babble", "music")
SNRS = (-5, -5, -2.5, 0, 0, 2.5, 5, 5, 7.5, 10, 10, 12.5, 15, 17.5, 20, 22.5, 25, 27.5, 30, 32.5, 35)
THAI = (
    "สวัสดีครับ ยินดีต้อนรับ",
    "วันนี้อากาศดีมาก",
    "กรุณารอสักครู่",
    "ขอบคุณที่โทรเข้ามา",
    "เรากำลังประมวลผลเสียงของคุณ",
    "โปรดกดหมายเลขที่ต้องการ",
    "รถไฟจะออกในอีกห้านาที",
    "ฉันชอบกินข้าวผัด",
    "พรุ่งนี้เจอกันที่สถานี",
    "น้ำในแม่น้ำใสสะอาด",
    "ขอโทษค่ะ ดิฉันได้ยินไม่ชัด",
    "ตลาดเปิดตั้งแต่หกโมงเช้า",
    "น้องสาวของผมเรียนอยู่ที่เชียงใหม่",
    "ช่วยพูดช้าลงหน่อยได้ไหม",
    "เมื่อคืนฝนตกหนักทั้งคืน",
)
TRUTH = (
    "path",
    "kind",
    "noise",
    "snr_db",
    "rt60_s",
    "clipped_share",
    "original",
    "offset_s",
    "duplicate_of",
    "expected",
)
METADATA = ("path", "sentence", "locale", "client_id")


@dataclass
class Item:
    """One file of the corpus: its bytes' recipe, its truth and its metadata."""

    path: str
    data: bytes
    truth: dict = field(default_factory=dict)
    text: str | None = None
    language: str = ""


@dataclass(frozen=True)
class Prompt:
    """A clean recording: float64 (n,) at 16 kHz."""

    file: str
    language: str
    text: str
    samples: np.ndarray


def load_prompts() -> list[Prompt]:
    """All prompts, English and Spanish interleaved."""
    with open(HERE / "speech" / "prompts.tsv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    prompts = [
        Prompt(r["file"], r["language"], r["text"], soundfile.read(HERE / "speech" / r["file"])[0]) for r in rows
    ]
    return sorted(prompts, key=lambda p: hashlib.sha256(p.file.encode()).hexdigest())


def encode(samples: np.ndarray, rate: int, kind: str, channels: int = 1) -> bytes:
    """float (n,) at 16 kHz -> an encoded file of another rate; kind is flac, wav, mp3 or ogg."""
    if rate != RATE:
        samples = soxr.resample(samples, RATE, rate, "VHQ")
    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    if channels > 1:
        pcm = np.repeat(pcm[:, None], channels, axis=1)
    data = io.BytesIO()
    # libsndfile garbles stereo MP3 that it is given as integers.
    soundfile.write(data, pcm / np.float32(32768) if kind == "mp3" else pcm, rate, format=kind.upper())
    return fixed_serial(data.getvalue()) if kind == "ogg" else data.getvalue()


def fixed_serial(ogg: bytes, serial: int = 1) -> bytes:
    """The same Ogg stream with a fixed serial number: the encoder draws one at random."""
    out, at = bytearray(ogg), 0
    while at < len(out):
        segments = out[at + 26]
        size = 27 + segments + sum(out[at + 27 : at + 27 + segments])
        struct.pack_into("<II", out, at + 14, serial, struct.unpack_from("<I", out, at + 18)[0])
        struct.pack_into("<I", out, at + 22, 0)
        struct.pack_into("<I", out, at + 22, ogg_crc(out[at : at + size]))
        at += size
    return bytes(out)


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def ogg_crc(page: bytes | bytearray) -> int:
    """The checksum of an Ogg page (RFC 3533, section 6)."""
    crc = 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ CRC_TABLE[(crc >> 24) ^ byte]
    return crc


def speech_power(samples: np.ndarray) -> float:
    """Mean square over the active frames: 20 ms frames within 30 dB of the loudest."""
    frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    power = (frames**2).mean(axis=1)
    return float(power[power > power.max() * 1e-3].mean())


def make_noise(kind: str, size: int, random: np.random.Generator, prompts: list[Prompt]) -> np.ndarray:
    """Noise of mean square 1, float (size,)."""
    time = np.arange(size) / RATE
    if kind == "white":
        noise = random.normal(size=size)
    elif kind == "pink":
        spectrum = np.fft.rfft(random.normal(size=size))
        noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), size)
    elif kind == "hum":
        tones = [np.sin(2 * np.pi * 50 * k * time + random.uniform(0, 2 * np.pi)) / k for k in range(1, 13)]
        noise = np.sum(tones, axis=0) + 0.02 * random.normal(size=size)
    elif kind == "babble":
        noise = np.zeros(size)
        for index in random.choice(len(prompts), 6, replace=False):
            voice = prompts[index].samples
            start = random.integers(len(voice))
            noise += np.resize(np.roll(voice, -start), size) / np.sqrt(speech_power(voice))
    else:
        noise = np.zeros(size)
        for onset in range(0, size, RATE // 4):
            span = min(RATE // 2, size - onset)
            for root in random.choice([220.0, 261.6, 329.6, 392.0, 440.0, 523.3], 3, replace=False):
                partials = [np.sin(2 * np.pi * root * k * time[:span]) / k for k in (1, 2, 3, 4)]
                noise[onset : onset + span] += np.sum(partials, axis=0) * np.exp(-3 * time[:span])
    return noise / np.sqrt((noise**2).mean())


def mix(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech plus noise at an SNR, attenuated together where it would clip."""
    noisy = samples + noise * np.sqrt(speech_power(samples) * 10 ** (-snr_db / 10))
    return noisy * min(1.0, 0.95 / np.abs(noisy).max())


def reverberate(samples: np.ndarray, rt60: float, random: np.random.Generator) -> np.ndarray:
    """Speech in a room of exponential noise: direct sound, and a tail that falls by 60 dB in rt60 seconds."""
    size = int(rt60 * RATE)
    response = random.normal(size=size) * 10 ** (-3 * np.arange(size) / size) * 0.06
    response[:40] = 0
    response[0] = 1
    wet = scipy.signal.fftconvolve(samples, response)[: len(samples)]
    return wet * 0.9 / np.abs(wet).max()


def wav_header(data_bytes: int, channels: int = 1, rate: int = RATE, bits: int = 16, float_: bool = False) -> bytes:
    """A plain WAV header that claims `data_bytes` of samples."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 3 if float_ else 1, channels, rate, rate * block, block, bits)
    riff = b"RIFF" + struct.pack("<I", min(36 + data_bytes, 0xFFFFFFF0)) + b"WAVE"
    return riff + b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", data_bytes)


CLEAN_FORMATS = [
    *[(16_000, "flac", 1)] * 12,
    *[(16_000, "wav", 1)] * 8,
    *[(44_100, "wav", 2)] * 5,
    *[(48_000, "flac", 1)] * 5,
    *[(22_050, "wav", 1)] * 4,
    *[(8_000, "wav", 1)] * 3,
    *[(44_100, "mp3", 2)] * 4,
    *[(48_000, "ogg", 1)] * 4,
]
NOISY_FORMATS = [(16_000, "flac", 1), (16_000, "wav", 1), (48_000, "flac", 2), (44_100, "wav", 1), (16_000, "ogg", 1)]
NOISY_FORMATS += [(16_000, "flac", 1), (22_050, "flac", 1), (48_000, "mp3", 1)]


class Builder:
    """Collects the corpus's items; every item draws from a generator of its own."""

    def __init__(self, seed: int):
        self.seed = seed
        self.prompts = load_prompts()
        self.items: list[Item] = []

    def random(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, len(self.items)])

    def prompt(self) -> Prompt:
        return self.prompts[len(self.items) % len(self.prompts)]

    def add(
        self, data: bytes, suffix: str, kind: str, prompt: Prompt | None = None, name: str = "", **truth: object
    ) -> Item:
        number = len(self.items)
        language = prompt.language if prompt else "xx"
        stem = name or (Path(prompt.file).stem if prompt else kind)
        if number % 9 == 4:
            stem = f"เสียงที่ {number} {stem}"
        elif number % 5 == 2:
            stem = stem.replace("-", " ")
        text = prompt.text if prompt else None
        if number % 11 == 3 and prompt:
            text, language = THAI[number % len(THAI)], "th"
        item = Item(f"{language}/{stem}-{number:03d}.{suffix}", data, {"kind": kind, **truth}, text, language)
        if prompt:
            item.truth.setdefault("original", prompt.file)
            item.truth.setdefault("offset_s", 0)
        self.items.append(item)
        return item

    def build(self) -> list[Item]:
        for rate, kind, channels in CLEAN_FORMATS:
            prompt = self.prompt()
            self.add(encode(prompt.samples, rate, kind, channels), kind, "clean", prompt)
        for noise in NOISES:
            for number, snr in enumerate(SNRS):
                prompt, (rate, kind, channels) = self.prompt(), NOISY_FORMATS[number % len(NOISY_FORMATS)]
                samples = mix(prompt.samples, make_noise(noise, len(prompt.samples), self.random(), self.prompts), snr)
                self.add(encode(samples, rate, kind, channels), kind, "noisy", prompt, noise=noise, snr_db=snr)
        self._degraded()
        self._duplicates()
        self._broken()
        return self.items

    def _degraded(self) -> None:
        for rt60 in (0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.2, 1.5):
            prompt = self.prompt()
            wet = reverberate(prompt.samples, rt60, self.random())
            self.add(encode(wet, RATE, "flac"), "flac", "reverberant", prompt, rt60_s=rt60)
        for gain in (1.5, 2, 3, 4, 6, 8, 12, 20):
            prompt = self.prompt()
            clipped = np.clip(prompt.samples / np.abs(prompt.samples).max() * gain, -1, 32767 / 32768)
            share = round(float((np.abs(clipped) >= 32767 / 32768).mean()), 4)
            self.add(encode(clipped, RATE, "wav"), "wav", "clipped", prompt, clipped_share=share)
        for offset in (0.05, -0.1, 0.2, -0.3):
            prompt = self.prompt()
            self.add(encode(prompt.samples * 0.6 + offset, RATE, "wav"), "wav", "dc", prompt)
        for before, after in ((1, 1), (2, 0), (0, 3), (3, 2), (1.5, 4), (5, 5)):
            prompt, random = self.prompt(), self.random()
            parts = [
                random.normal(0, 2e-4, int(before * RATE)),
                prompt.samples,
                random.normal(0, 2e-4, int(after * RATE)),
            ]
            self.add(encode(np.concatenate(parts), RATE, "flac"), "flac", "silence", prompt, offset_s=before)

    def _duplicates(self) -> None:
        clean = [item for item in self.items if item.truth["kind"] == "clean"]
        for item in clean[:3]:
            self._copy(item, item.data, "flac")
        for item in clean[3:6]:
            samples, rate = soundfile.read(io.BytesIO(item.data), dtype="int16")
            data = io.BytesIO()
            soundfile.write(data, np.stack([samples, samples], axis=1), rate, format="WAV")
            self._copy(item, data.getvalue(), "wav")
        for item in clean[12:15]:
            samples, rate = soundfile.read(io.BytesIO(item.data), dtype="int16")
            data = io.BytesIO()
            soundfile.write(data, samples, rate, format="FLAC")
            self._copy(item, data.getvalue(), "flac")
        # A lossy copy has other samples: no exact duplicate, and nobody may call it one.
        for item in clean[6:9]:
            prompt = next(p for p in self.prompts if p.file == item.truth["original"])
            self.add(encode(prompt.samples, 44_100, "mp3"), "mp3", "lossy copy", prompt)

    def _copy(self, item: Item, data: bytes, suffix: str) -> None:
        prompt = next(p for p in self.prompts if p.file == item.truth["original"])
        self.add(data, suffix, "duplicate", prompt, duplicate_of=item.path)

    def _broken(self) -> None:
        long = max(self.prompts, key=lambda p: len(p.samples))
        for kind in ("flac", "wav", "ogg"):
            data = encode(long.samples, RATE, kind)
            self.add(data[: len(data) * 6 // 10], kind, "broken", name=f"cut-{kind}", expected="errored:truncated")
        self.add(b"", "wav", "broken", name="empty", expected="errored:empty_file")
        self.add(
            "ไม่ใช่เสียง this is no audio\n".encode() * 40, "wav", "broken", name="text", expected="errored:unreadable"
        )
        self.add(encode(np.zeros(2 * RATE), RATE, "wav"), "wav", "broken", name="zeros", expected="rejected:speech_s")
        nan = long.samples.astype("<f4")
        nan[5000:5010] = np.nan
        data = wav_header(nan.nbytes, bits=32, float_=True) + nan.tobytes()
        self.add(data, "wav", "broken", name="nan", expected="errored:non_finite")
        short = encode(long.samples[8000:8320], RATE, "flac")
        self.add(short, "flac", "broken", name="20-ms", expected="rejected:speech_s|rejected:duration_s")
        self.add(hour_of_silence(), "flac", "broken", name="an-hour", expected="rejected:duration_s")
        pcm = (long.samples * 32767).astype("<i2").tobytes()
        self.add(wav_header(0x70000000) + pcm, "wav", "broken", name="liar", expected="errored:truncated")
        many = wav_header(1000 * 2 * 400, channels=1000) + bytes(1000 * 2 * 400)
        self.add(many, "wav", "broken", name="channels", expected="errored:too_many_channels")


def hour_of_silence() -> bytes:
    """An hour of zeros as FLAC: tens of kilobytes that decode to a hundred megabytes."""
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", RATE, 1, "PCM_16", format="FLAC") as file:
        for _ in range(60):
            file.write(np.zeros(60 * RATE, np.int16))
    return data.getvalue()


def write(items: list[Item], folder: Path, truth: Path) -> None:
    """Write the corpus, its metadata and, outside of it, the truth."""
    metadata = []
    for number, item in enumerate(items):
        path = folder / item.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.data)
        if number % 40 != 17:  # a few files have no metadata
            metadata.append((item.path, item.text or "", item.language, f"allison-{item.language}"))
    metadata.append(("en/there-is-no-such-file.wav", "lost", "en", "nobody"))
    write_tsv(folder / "metadata.tsv", METADATA, metadata)
    write_tsv(truth, TRUTH, [[{"path": i.path, **i.truth}.get(name, "") for name in TRUTH] for i in items])


def write_tsv(path: Path, header: tuple[str, ...], rows: list) -> None:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, delimiter="\t", lineterminator="\n").writerows([header, *rows])


def stamp_of(seed: int) -> str:
    """What the corpus is made of: this program, the prompts and the seed."""
    digest = hashlib.sha256(f"{seed}\n".encode() + Path(__file__).read_bytes())
    for path in sorted(p for p in (HERE / "speech").rglob("*") if p.is_file()):
        digest.update(path.relative_to(HERE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def stamp_text(digest: str, truth: Path) -> str:
    """The stamp also holds the truth table's checksum: it lies outside of what is renamed into place as a whole."""
    return f"{digest} {hashlib.sha256(truth.read_bytes()).hexdigest()}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "corpus")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    out: Path = options.out
    truth, stamp = out.with_name("truth.tsv"), out / ".stamp"
    digest = stamp_of(options.seed)
    if stamp.is_file() and truth.is_file() and stamp.read_text() == stamp_text(digest, truth):
        print(f"{out}: up to date")
        return 0
    print(f"{out}: building (seed {options.seed})", flush=True)
    items = Builder(options.seed).build()
    building = out.with_name(f".{out.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    write(items, building, truth)
    (building / ".stamp").write_text(stamp_text(digest, truth))
    shutil.rmtree(out, ignore_errors=True)
    building.rename(out)
    kinds: dict[str, int] = {}
    for item in items:
        kinds[item.truth["kind"]] = kinds.get(item.truth["kind"], 0) + 1
    print(f"{out}: {len(items)} files: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
