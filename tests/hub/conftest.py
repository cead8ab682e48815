"""A Hub on loopback for each test, which the real client finds through HF_ENDPOINT."""

import pytest

from speechmill import hub as client

from .server import TOKEN, Hub


@pytest.fixture
def hub(monkeypatch):
    """A Hub, a valid token in the environment, and pauses between attempts that are worth no waiting."""
    server = Hub()
    # Other tests of this process import the client offline; it reads that once.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr(client, "PAUSES", (0.05, 0.2))
    yield server
    server.close()
