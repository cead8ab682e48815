"""What the jobs import (test_cli.py: the command line): start-up is most of what small jobs cost, and torch alone takes 3 s of a CPU."""

import ast
import subprocess
import sys

import pytest

from ..runs import ROOT

HEAVY = set(
    "torch torchaudio scipy.signal scipy.stats matplotlib pandas onnx onnxruntime silero_vad speechmos distillmos pyrnnoise "
    "huggingface_hub.hf_api jsonschema rich apprise prometheus_client jinja2 requests boto3 kubernetes".split()
)
NEEDED = {  # by what these import before they do anything; the others need nothing that is heavy
    "scripts/enhance.py": {"torch", "scipy.signal", "scipy.stats"},
    "scripts/score.py": {"torch"},
    "scripts/preflight.py": {"torch"},
    "scripts/report.py": {"jinja2"},
    "scripts/publish.py": {"jinja2"},
    "scripts/send.py": {"jinja2"},
    "scripts/audio_again.py": {"jinja2"},
}
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "scripts").glob("*.py"))


def heavy_modules(statements: list[str]) -> set[str]:
    program = "\n".join([*statements, "import sys", "print(*sys.modules)"])
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return HEAVY & set(done.stdout.split())


def imports_of(source: str) -> list[str]:
    """The import statements of a script, those inside its block included."""
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]


@pytest.mark.parametrize("file", FILES)
def test_a_job_imports_only_what_it_needs(file):
    statements = imports_of((ROOT / file).read_text(encoding="utf-8"))
    assert heavy_modules(statements) == NEEDED.get(file, set())
