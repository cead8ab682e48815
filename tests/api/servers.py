"""A real server, as a process of its own, and a plain client for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from ..patience import seconds
from ..runs import ROOT, Run, make_corpus, wait_for

ENDED = ("succeeded", "failed", "cancelled")


class Server:
    """`speechmill serve` on a directory with the small corpus."""

    profile = "local"
    snakemake = ("--configfile", "config.yaml", "--cores", "2")

    def __init__(self, directory: Path, *options: str, run: Run | None = None, **changes: Any):
        self.run = run or Run(directory / "work", **changes)
        if run is None:
            make_corpus(self.run.directory / "corpus")
        self.state_dir = directory / "state"
        self.options = ["--profile", self.profile, "--port", "0", "--poll-seconds", "0.5", *options]
        self.environment = self.run.environment() | {"PYTHONUNBUFFERED": "1"}
        self.log = directory / "server.log"
        self.token = self.new_token("tester", "read,trigger")
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.start()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "speechmill", "serve", "--state-dir", str(self.state_dir), *arguments]

    def new_token(self, name: str, scopes: str) -> str:
        command = self.command("--new-token", name, "--scopes", scopes)
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()

    def start(self) -> None:
        where = ["--directory", str(self.run.directory), *self.options]
        with open(self.log, "ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                self.command(*where, "--", *self.snakemake), env=self.environment, cwd=ROOT, stdout=log, stderr=log
            )

        def said() -> re.Match[str] | None:
            text = self.log.read_bytes()[begin:].decode()
            assert self.process
            assert self.process.poll() is None, text
            return re.search(r"API: (\S+)", text)

        self.url = wait_for(said)[1]

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """The server, and whatever is left of runs."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds(30))
            except subprocess.TimeoutExpired:
                self.kill()
        for pid in self.of_runs():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def of_runs(self) -> list[int]:
        """Processes of this server's runs: by what they have in their environment or arguments, from /proc alone."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or (self.process and int(folder.name) == self.process.pid):
                continue
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
                where = (folder / "cwd").readlink()
            except OSError:
                continue
            is_supervisor = b"supervise" in command and str(self.run.results).encode() in command
            if is_supervisor or where.is_relative_to(self.run.directory):
                found.append(int(folder.name))
        return found

    def snakemakes(self) -> list[int]:
        """Snakemake controllers, not the jobs that they start."""
        found = []
        for pid in self.of_runs():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"snakemake" in command and b"--profile" in command and os.getpgid(pid) == pid:
                    found.append(pid)
            except OSError:
                continue
        return found

    def supervisor(self) -> int | None:
        for pid in self.of_runs():
            try:
                if b"supervise" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return pid
            except OSError:
                continue
        return None

    def call(self, method: str, path: str, token: str | None = None, **about: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token or self.token}"} | about.pop("headers", {})
        return httpx.request(method, self.url + path, headers=headers, timeout=seconds(120), **about)

    def get(self, path: str, **about: Any) -> httpx.Response:
        return self.call("GET", path, **about)

    def post(self, path: str, body: Any = None, **about: Any) -> httpx.Response:
        return self.call("POST", path, json=body, **about)

    def trigger(self, dataset: str = "demo", config: dict[str, Any] | None = None, **headers: str) -> str:
        body = {"dataset_name": dataset} | ({"config": config} if config else {})
        answer = self.post("/pipeline/trigger", body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["run_id"]

    def status(self, run_id: str) -> dict[str, Any]:
        answer = self.get(f"/pipeline/status/{run_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait(self, run_id: str, *states: str) -> dict[str, Any]:
        """The status once the run is in one of the states (by default: has ended)."""

        def reached() -> dict[str, Any] | None:
            found = self.status(run_id)
            assert found["state"] in (states or ENDED) or found["state"] not in ENDED, found
            return found if found["state"] in (states or ENDED) else None

        return wait_for(reached)
