"""Schemathesis against the API's own OpenAPI: `python -m tests.api.fuzz SECONDS`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from .quiet import make_service, serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
CHECKS += ",response_headers_conformance,ignored_auth,unsupported_method"


def fuzz(folder: Path, seconds: float, seed: int = 1) -> subprocess.CompletedProcess[str]:
    """What schemathesis finds within some seconds."""
    service, token = make_service(folder)
    with serving(service) as url:
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json"]
        command += ["-H", f"Authorization: Bearer {token}", "--max-time", str(round(seconds)), "--checks", CHECKS]
        command += ["--seed", str(seed), "--continue-on-failure", "--max-examples", "1000000", "--no-color"]
        command += ["--exclude-path-regex", "/events$"]  # a stream of a run that never ends
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds + 300, check=False)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        done = fuzz(Path(folder), float(sys.argv[1]))
    print(done.stdout, done.stderr)
    sys.exit(done.returncode)
