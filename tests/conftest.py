"""For all tests: how hypothesis draws, how long a session may take, and one finished run to compare with."""

import os
import shutil
import time
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

import speechmill  # noqa: F401 - first: it says how torch's threads wait

from .patience import seconds
from .runs import MODULES, Finished, Run, make_corpus

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


def pytest_collection_modifyitems(items):
    """`make test` runs what is marked everyday: all unit tests, and one story through each of the larger parts."""
    for item in items:
        if item.path.parent.name == "unit":
            item.add_marker("everyday")
        if limit := item.config.getini("timeout"):
            item.add_marker(pytest.mark.timeout(seconds(float(limit))))


@pytest.fixture(params=range(int(os.environ.get("DRAWS", "1"))))
def draw(request) -> int:
    """Number of a random draw, which seeds it. DRAWS=N of the environment makes N of each."""
    return request.param


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    """A run from nothing to the sentinel, not to be changed: copy it. The workers of a session share one."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    directory, output = folder / "finished", folder / "finished.txt"
    with FileLock(folder / "finished.lock"):
        if not output.exists():
            shutil.rmtree(directory, ignore_errors=True)  # of a worker that failed
            run = Run(directory)
            run.program = (str(Path(__file__).with_name("listed_modules.py")), str(directory / MODULES))
            make_corpus(directory / "corpus")
            output.write_text(run.start().output, encoding="utf-8")
    run = Run.at(directory)
    run.first = Finished(0, output.read_text(encoding="utf-8"))
    return run
