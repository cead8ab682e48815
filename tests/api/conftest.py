"""Servers for the tests of the API: real ones with real runs, and one that starts none."""

import pytest

from .quiet import Quiet, make_service
from .servers import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One for all tests of a session: its corpus may have runs of other tests, which have ended."""
    found = Server(tmp_path_factory.mktemp("api"))
    yield found
    found.stop()


@pytest.fixture
def own_server(tmp_path):
    """One for a test that ends it, or its runs."""
    found = Server(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def service(tmp_path):
    """What answers calls, without a server around it."""
    return make_service(tmp_path)[0]


@pytest.fixture
def quiet(tmp_path):
    """A server that starts no runs, and makes everything fast enough to be asked a thousand times."""
    with Quiet(tmp_path) as found:
        yield found
