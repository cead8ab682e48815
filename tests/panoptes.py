"""The real Panoptes on loopback, with a data base of its own, and what it says over its API."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing
from json import loads
from pathlib import Path

from .patience import seconds
from .runs import wait_for


class Panoptes:
    """The server of panoptes-ui, as `make monitor` starts it."""

    def __init__(self, directory: Path):
        self.database = directory / "panoptes.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        program = "from panoptes.panoptes import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "--ip", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"PANOPTES_DB_URL": f"sqlite:///{self.database}?check_same_thread=False"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None
        try:
            return self.get("/api/service-info") == {"status": "running"}
        except OSError:
            return False

    def get(self, path: str):
        with urllib.request.urlopen(self.address + path, timeout=seconds(30)) as answer:
            return loads(answer.read())

    def workflows(self) -> list[dict]:
        return self.get("/api/workflows")["workflows"]

    def jobs(self, workflow: int) -> dict[int, dict]:
        return {job["jobid"]: job for job in self.get(f"/api/workflow/{workflow}/jobs")["jobs"]}

    def column_lengths(self, table: str) -> dict[str, tuple[int, int]]:
        """Of columns of text: how long values are at most, and how long they may be."""
        with closing(sqlite3.connect(self.database)) as database:
            columns = [(row[1], row[2]) for row in database.execute(f"PRAGMA table_info({table})")]
            texts = {name: int(kind[8:-1]) for name, kind in columns if kind.startswith("VARCHAR(")}
            longest = ", ".join(f"max(length({name}))" for name in texts)
            (found,) = database.execute(f"SELECT {longest} FROM {table}")
        return {name: (used or 0, texts[name]) for name, used in zip(texts, found, strict=True)}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(seconds(30))
