"""A server in this process that starts no runs: what is triggered stays queued. Real in all else."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import uvicorn

from speechmill.api.app import make_app
from speechmill.api.auth import new_token
from speechmill.api.serve import Protocol, _listen
from speechmill.api.service import Service
from speechmill.api.settings import Settings
from speechmill.api.store import Run

from ..patience import seconds
from ..unit.runs_account import Account

EXAMPLE = "20260301120000-1a2b3c4d"  # which the OpenAPI names


def make_service(folder: Path, **changes) -> tuple[Service, str]:
    """A service in a folder, with a run in it, and a token."""
    settings = {"profile": "local", "dry_run_seconds": 0.3}
    settings |= {"requests_per_second": 1e6, "changes_per_minute": 1e8, "failures_per_minute": 1e8}
    state_dir = folder / "state"
    state_dir.mkdir(parents=True)
    service = Service(Settings(state_dir, folder, **(settings | changes)))
    account = Account(folder / "results" / "example", batches=3)
    account.begin()
    for batch in ("b0", "b1"):
        account.submit(1, "enhance", batch)
        account.finish(9, "enhance", batch, seconds=8, clips={"passed": 100}, audio_seconds={"passed": 500.0})
    account.submit(10, "enhance", "b2")
    account.fail(12, "enhance", "b2", given_up=True)
    run = Run(
        id=EXAMPLE,
        dataset="example",
        run_dir=str(account.run_dir),
        config="{}",
        plan="{}",
        caller="tester",
        created="2026-01-01T00:00:00.000+00:00",
    )
    service.store.create(run)
    return service, new_token(service.settings.tokens, "tester", "read,trigger")


@contextmanager
def serving(service: Service):
    """Its address, while it answers from a thread of this process."""
    listening = _listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(service, keep=False), log_level="warning", http=Protocol, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


class Quiet(ExitStack):
    """The server, with a client that has a token."""

    def __init__(self, folder: Path, **changes):
        super().__init__()
        self.service, self.token = make_service(folder, **changes)
        self.reader = new_token(self.service.settings.tokens, "reader", "read")
        self.state_dir = self.service.settings.state_dir
        self.url = self.enter_context(serving(self.service))

    def call(self, method: str, path: str, token: str | None = None, **about) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"} | about.pop("headers", {})
        return httpx.request(method, self.url + path, headers=headers, timeout=seconds(60), **about)

    def audit(self) -> list[str]:
        return self.service.settings.audit.read_text().splitlines()
