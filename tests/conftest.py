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


@pytest.hookimpl(tryfirst=True)  # xdist takes the groups from here
def pytest_collection_modifyitems(items):
    """With several workers, the files of a folder that shares a cluster go to one of them; others file by file."""
    for item in items:
        folder, file = item.path.parent.name, item.path.name
        item.add_marker(pytest.mark.xdist_group("slurm" if folder == "slurm" else f"{folder}/{file}"))
    items.sort(key=lambda item: item.path.parent.name != "slurm")  # the longest first
