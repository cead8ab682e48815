"""Versions of what the stages compute. Raise a number to have exactly that stage's files made anew.

The workflow passes them as parameters of its rules and does not watch the code itself: a refactoring must not
repeat thousands of GPU hours, a changed algorithm must.
"""

from __future__ import annotations

from importlib import metadata

ENHANCE = 4
SCORE = 3
RANK = 2
ADVICE = 1
REPORT = 3
PUBLISH = 5

PACKAGES = (
    "speechmill torch torchaudio numpy scipy soundfile soxr pyarrow onnx onnxruntime silero-vad pyrnnoise speechmos "
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
