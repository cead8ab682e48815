"""The folder of a run: on a file system that all jobs share, or in a bucket.

Snakemake's storage plugin copies the files that rules declare. This module copies the others (a batch's manifest, a
published folder, logs). On a shared file system nothing is copied. The controller passes the bucket's URL to its jobs
in an environment variable, which only this module reads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from speechmill.errors import SourceError
from speechmill.storage import s3

RUN = "SPEECHMILL_RUN_URL"  # s3://bucket/prefix of the run's folder


class SharedFolder:
    """A run's folder on a file system that all jobs share."""

    is_shared = True

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file of the run to `target`; for files that are not declared inputs of this job."""

    def state(self, path: Path) -> str:
        """Return a version of a file that changes when the file is rewritten.

        Size and modification time, or an ETag.
        """
        found = path.stat()
        return f"{found.st_size}:{found.st_mtime_ns}"

    def states(self, folder: Path) -> dict[str, tuple[int, int]]:
        """Return name -> size in bytes and modification time in ns of the files in a direct subfolder of the run's."""
        if not folder.is_dir():
            return {}
        with os.scandir(folder) as entries:
            found = {entry.name: entry.stat() for entry in entries if entry.is_file()}
        return {name: (state.st_size, state.st_mtime_ns) for name, state in found.items()}

    def read_text(self, path: Path) -> str:
        """Return the text of a file in a direct subfolder of the run's folder."""
        return path.read_text(encoding="utf-8")

    def fetch_all(self, folder: Path, chosen: Callable[[str], bool]) -> None:
        """Make the files of `folder` equal to those of the run; for files that are not declared inputs of this job.

        Args:
            folder: where this job sees a direct subfolder of the run's folder, such as manifest/.
            chosen: returns True for the paths to copy.
        """

    def log_of(self, log: Path, run_dir: Path) -> Path:
        """Return the log of a finished job as a file on this machine."""
        return log

    @contextmanager
    def keeping(self, folder: Path, chosen: Callable[[str], bool]) -> Iterator[None]:
        """Download the files of `folder` before the block, and upload or delete those that the block changes.

        Args:
            folder: a direct subfolder of the run's folder, such as manifest/.
            chosen: returns True for the paths to copy; the others are declared outputs.
        """
        yield


@dataclass(frozen=True)
class BucketFolder(SharedFolder):
    """A run's folder in a bucket. Jobs see only the files that are copied to their machine."""

    url: str
    is_shared = False

    def fetch(self, name: str, target: Path) -> None:
        s3.download(self.url, name, target)

    def state(self, path: Path) -> str:
        if path.parent.name.startswith("."):  # a local file of this job
            return super().state(path)
        return s3.tag(
            self.url, "/".join(path.parts[-2:])
        )  # the modification time of a local copy is that of the download

    def log_of(self, log: Path, run_dir: Path) -> Path:
        name = log.as_posix().rpartition("/logs/")[2].partition(" (")[0]  # Snakemake appends the storage in parentheses
        target = run_dir / "logs" / name
        target.unlink(missing_ok=True)
        with suppress(SourceError):
            self.fetch(f"logs/{name}", target)
        return target

    def states(self, folder: Path) -> dict[str, tuple[int, int]]:
        found = s3.objects(f"{self.url}/{folder.name}")
        return {file.path: (file.size, file.mtime_ns) for file in found if "/" not in file.path}

    def read_text(self, path: Path) -> str:
        return s3.read(f"{self.url}/{path.parent.name}", path.name).decode()

    def fetch_all(self, folder: Path, chosen: Callable[[str], bool]) -> None:
        url = f"{self.url}/{folder.name}"
        there = [found.path for found in s3.objects(url) if chosen(found.path)]
        with ThreadPoolExecutor(s3.THREADS) as pool:
            list(pool.map(lambda path: s3.download(url, path, folder / path), there))
        for path in _states(folder, chosen).keys() - set(there):  # left by an earlier job on this machine
            (folder / path).unlink()

    @contextmanager
    def keeping(self, folder: Path, chosen: Callable[[str], bool]) -> Iterator[None]:
        url = f"{self.url}/{folder.name}"
        self.fetch_all(folder, chosen)
        before = _states(folder, chosen)
        yield
        after = _states(folder, chosen)
        changed = [path for path, state in after.items() if before.get(path) != state]
        with ThreadPoolExecutor(s3.THREADS) as pool:
            list(pool.map(lambda path: s3.upload(url, path, folder / path), changed))
        for path in before.keys() - after.keys():
            s3.delete(url, path)


def announce_run(url: str) -> None:
    """Pass the bucket's URL to the jobs that this Snakemake starts."""
    os.environ[RUN] = url


def run_folder() -> SharedFolder:
    """Return the folder of the run of this process."""
    url = os.environ.get(RUN)
    return BucketFolder(url) if url else SharedFolder()


def _states(folder: Path, chosen: Callable[[str], bool]) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and chosen(name):
            state = path.stat()
            found[name] = (state.st_size, state.st_mtime_ns)
    return found
