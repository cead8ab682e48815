"""Hubs on loopback, which the real client finds through HF_ENDPOINT."""

import time
from types import SimpleNamespace

import pytest

from speechmill.utils import retry

from .server import TOKEN, Hub


def with_xet(monkeypatch, use: bool) -> None:
    """Whether the client of this process, and of others that it starts, sends large files through Xet."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", str(int(not use)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", not use)


def serve(monkeypatch) -> Hub:
    """A Hub that the clients of this process and of others find, and a valid token in the environment."""
    server = Hub()
    # Other tests of this process import the client offline; it reads that once.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with_xet(monkeypatch, False)
    return server


@pytest.fixture
def hub(monkeypatch):
    """A Hub of the test's own, and pauses between attempts that are worth no waiting."""
    server = serve(monkeypatch)
    monkeypatch.setattr(retry, "PAUSES", (0.05, 0.2))
    yield server
    server.close()


@pytest.fixture
def no_pauses(monkeypatch):
    """No waiting in the client, either."""
    patient = SimpleNamespace(**{name: getattr(time, name) for name in dir(time)} | {"sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", patient)
