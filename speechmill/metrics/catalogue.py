"""Declarations of all metrics and metric groups (docs/metrics.md). Loads no model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from speechmill.metrics.base import Metric

INPUT_PREFIX = "input_"  # measured on the decoded input, because enhancement can hide a defect

_P835 = "DNSMOS P.835 (Reddy et al. 2022), speechmos"
_SQUIM = "SQUIM objective (Kumar et al. 2023), torchaudio"

SNR = Metric(
    "snr_db",
    "dB",
    -20,
    80,
    "benefit",
    "Level of speech over the noise floor",
    "sub-band quantiles, speech by Silero VAD",
)
BANDWIDTH = Metric(
    "bandwidth_hz", "Hz", 0, 8000, "benefit", "Highest frequency within 50 dB of the peak", "-50 dB rule"
)
REVERB_DECAY = Metric(
    "reverb_decay_db_s",
    "dB/s",
    0,
    1000,
    "benefit",
    "Fastest sub-band decays after speech; slow is reverberant",
    "sub-band slopes",
)
SPEECH_RATIO = Metric("speech_ratio", "1", 0, 1, "benefit", "Share of the clip that is speech", "Silero VAD")
LOUDNESS = Metric("loudness_lufs", "LUFS", -70, 5, "target", "Integrated loudness", "ITU-R BS.1770-4")
CLIP_RATIO = Metric("clip_ratio", "1", 0, 1, "cost", "Share of samples in flat runs at the clip's peak", "peak runs")

GROUP_METRICS: dict[str, tuple[Metric, ...]] = {
    "signal": (SNR, BANDWIDTH, REVERB_DECAY, SPEECH_RATIO, LOUDNESS, CLIP_RATIO),
    "dnsmos_p808": (
        Metric(
            "dnsmos_p808",
            "MOS",
            1,
            5,
            "benefit",
            "Predicted overall quality (P.808)",
            "DNSMOS (Reddy et al. 2021), speechmos",
        ),
    ),
    "dnsmos_p835": (
        Metric("dnsmos_sig", "MOS", 1, 5, "benefit", "Predicted quality of the speech signal (P.835 SIG)", _P835),
        Metric("dnsmos_bak", "MOS", 1, 5, "benefit", "Predicted absence of background noise (P.835 BAK)", _P835),
        Metric("dnsmos_ovrl", "MOS", 1, 5, "benefit", "Predicted overall quality (P.835 OVRL)", _P835),
    ),
    "distillmos": (
        Metric("distillmos", "MOS", 1, 5, "benefit", "Predicted overall quality", "Distill-MOS (Stahl & Gamper 2025)"),
    ),
    "squim": (
        Metric("squim_stoi", "1", 0, 1, "benefit", "Predicted intelligibility (STOI)", _SQUIM),
        Metric("squim_pesq", "MOS", 1, 4.65, "benefit", "Predicted wide-band PESQ", _SQUIM),
        Metric("squim_si_sdr", "dB", -30, 50, "benefit", "Predicted SI-SDR", _SQUIM),
    ),
}


@dataclass(frozen=True)
class Loader:
    """The class or function that loads a group, in a module of this package that is imported on first use."""

    module: str
    name: str
    arguments: tuple[str, ...] = ()  # `device` and `squim_weights` in this order, or some of them


GROUPS: dict[str, Loader] = {
    "signal": Loader("signal", "SignalGroup"),
    "dnsmos_p808": Loader("dnsmos", "load_p808", ("device",)),
    "dnsmos_p835": Loader("dnsmos", "load_p835", ("device",)),
    "distillmos": Loader("distillmos", "load_distillmos", ("device",)),
    "squim": Loader("squim", "load_squim", ("device", "squim_weights")),
}

SETS: dict[str, tuple[str, ...]] = {
    "light": ("signal", "dnsmos_p808"),
    "full": ("signal", "dnsmos_p808", "dnsmos_p835", "distillmos", "squim"),
}

# By name: columns that the enhance stage measures on the input, at 16 kHz, the last four at the native rate.
INPUT_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(
            replace(metric, name=INPUT_PREFIX + metric.name, description=f"{metric.description} (of the input)")
            for metric in (SNR, BANDWIDTH, REVERB_DECAY, SPEECH_RATIO, LOUDNESS, CLIP_RATIO)
        ),
        Metric("input_peak_dbfs", "dBFS", -90, 0, "target", "Highest sample of the input", "sample peak"),
        Metric("input_dc_offset", "1", 0, 1, "cost", "Absolute mean of the input's samples, full scale 1", "mean"),
        Metric(
            "input_channel_correlation",
            "1",
            -1,
            1,
            "benefit",
            "Lowest correlation of two channels of the input; -1 is opposite phase, missing for one channel",
            "Pearson correlation",
        ),
    )
}

ENHANCE_METRICS: dict[str, Metric] = INPUT_METRICS | {
    "denoise_removed_db": Metric(
        "denoise_removed_db",
        "dB",
        0,
        20,
        "cost",
        "Level that denoising removed within speech, 0 where the original is published",
        "enhance stage",
    ),
    "longest_pause_s": Metric("longest_pause_s", "s", 0, 60, "cost", "Longest pause between speech", "Silero VAD"),
    "chars_per_second": Metric(
        "chars_per_second",
        "1/s",
        0,
        100,
        "target",
        "Letters and digits of the transcript per second of speech; marks above and below a letter do not count",
        "transcript, Silero VAD",
    ),
}


def all_metrics() -> dict[str, Metric]:
    """Every metric by name, whether or not this machine can measure it."""
    return {metric.name: metric for group in GROUP_METRICS.values() for metric in group} | ENHANCE_METRICS
