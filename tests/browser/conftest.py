"""A headless Chromium, for tests of what people see in theirs."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="package")  # while it is there, its event loop runs in this thread: other tests want one, too
def browser():
    """Playwright's handle of the Chromium of this machine."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium on this machine: install the package chromium (Debian, Ubuntu: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])  # root has no sandbox
        yield started
        started.close()


@pytest.fixture(scope="session")
def screenshots() -> Path | None:
    """Where to put pictures for the documentation: `SPEECHMILL_SCREENSHOTS=docs/images pytest tests/browser`."""
    folder = os.environ.get("SPEECHMILL_SCREENSHOTS")
    return Path(folder) if folder else None
