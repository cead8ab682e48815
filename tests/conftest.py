"""One finished run for all tests that compare with it."""

import pytest

from .runs import Run, make_corpus


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Run:
    """A run from nothing to the sentinel, not to be changed: copy it."""
    run = Run(tmp_path_factory.mktemp("workflow") / "first")
    make_corpus(run.directory / "corpus")
    run.first = run.start()
    return run
