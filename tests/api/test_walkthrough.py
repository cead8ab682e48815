"""The walk-through of docs/api.md, as it is written."""

import os
import re
import subprocess

from ..runs import ROOT

BLOCK = r"<!-- a test runs this block as it stands -->\n```sh\n(.*?)```"


def test_the_walk_through_ends_with_a_published_corpus(server, tmp_path):
    (script,) = re.findall(BLOCK, (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "token").write_text(server.token + "\n")
    environment = {"HOME": str(tmp_path), "SPEECHMILL_API": server.url, "PATH": os.environ["PATH"]}
    environment["SPEECHMILL_API_TOKEN_FILE"] = str(tmp_path / "token")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run_id,) = re.findall(r"^.*run (\S+): succeeded$", done.stdout, re.MULTILINE)
    status = server.status(run_id)
    assert done.stdout.endswith(f"{status['published']}\n")
    assert status["published"]["kind"] == "folder"
    assert (server.run.results / "published" / "UPLOADED.json").exists()
    assert (tmp_path / ".speechmill.header").stat().st_mode & 0o077 == 0
