"""Versions of what the stages compute. Raise a number to have exactly that stage's files made anew.

The workflow passes them as parameters of its rules and does not watch the code itself: a refactoring must not
repeat thousands of GPU hours, a changed algorithm must.
"""

from __future__ import annotations

from importlib import metadata

ENHANCE = 5
SCORE = 3
DEDUP = 2
RANK = 2  # decisions and closeness; published shards are named after it
RANKING_TABLE = 2  # the other columns of the ranking tables
REPORT = 4
PUBLISH = 6

PACKAGES = (
    "speechmill torch torchaudio numpy scipy soundfile av soxr pyarrow onnx onnxruntime silero-vad pyrnnoise speechmos "
    "distillmos matplotlib snakemake"
).split()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
