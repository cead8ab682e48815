"""For all tests: how hypothesis draws, how long a session may take, and one finished run to compare with."""

import os
import time

import hypothesis
import pytest

import speechmill  # noqa: F401 - first: it says how torch's threads wait

from .runs import Run, make_corpus

# The same examples every time, and none refused because a busy machine is slow to draw them.
hypothesis.settings.register_profile(
    "speechmill", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("speechmill")

# What is configured on this machine is for runs of people.
os.environ["SPEECHMILL_ALERTS"] = ""
for name in ("SPEECHMILL_PANOPTES", "SPEECHMILL_PANOPTES_HEADER", "SPEECHMILL_API", "SPEECHMILL_API_TOKEN_FILE"):
    os.environ.pop(name, None)

BEGIN = time.monotonic()


def pytest_addoption(parser):
    parser.addoption(
        "--minutes", type=float, help="begin none but unit tests later than this; those that are left are skipped"
    )


@pytest.hookimpl(tryfirst=True)  # before fixtures, which may take minutes
def pytest_runtest_setup(item):
    minutes = item.config.getoption("minutes")
    late = minutes is not None and time.monotonic() - BEGIN > 60 * minutes
    if late and item.path.parent.name != "unit":
        pytest.skip(f"not begun within --minutes {minutes:g}: this machine needs longer for all tests")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    """A run from nothing to the sentinel, not to be changed: copy it."""
    run = Run(tmp_path_factory.mktemp("workflow") / "first")
    make_corpus(run.directory / "corpus")
    run.first = run.start()
    return run
