"""The fetch job: one source file from the Hub to `raw/`, when there is room for it.

Snakemake deletes a fetched file after its last batch, but it would fetch all of them first: nothing in it bounds what
jobs leave on disk for others. So a fetch waits until what lies in `raw/` leaves room within `download.max_gb`. It runs
where Snakemake runs (login nodes have the network that compute nodes lack) and takes no core while it waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechmill.attempts import read_attempts
from speechmill.errors import SourceError
from speechmill.files import read_json, write_json
from speechmill.manifest import listing_of, read_batches
from speechmill.sources import Source

POLL = 2.0  # seconds
LONELY = 120.0  # seconds without any other job of the run at work, after which nothing will make room any more
RESERVED = ".reserved.json"


def fetch_file(source: Source, source_json: Path, key: str, target: Path, max_gb: float) -> dict[str, float]:
    """Fetch the file of a listing that is called `key` to `target` (`raw/{key}`), as soon as there is room.

    Returns the bytes, and the seconds that they took without the waiting for room.

    Raises:
        SourceError: there is no such file, it cannot be had, or there will be no room.
    """
    description = read_json(source_json)
    found = [file for file in listing_of(description).files if file.key == key]
    if not found:
        raise SourceError(f"{source_json} lists no file {key}; run again, to list the source anew")
    source.pin(description["revision"])
    begin = time.monotonic()
    with Room(target.parent, round(max_gb * 1e9)).reserved(key, found[0].size):
        waited = time.monotonic() - begin
        source.fetch(found[0], target)
    seconds = max(time.monotonic() - begin - waited, 1e-3)
    print(f"{found[0].path}: {found[0].size} bytes in {seconds:.1f} s, after {waited:.0f} s of waiting for room")
    return {"bytes": found[0].size, "transfer_seconds": round(seconds, 3)}


def check_size(description: dict[str, Any], max_gb: float, free: int) -> None:
    """Whether every file may be fetched at all, and as many at a time as are allowed.

    Raises:
        SourceError: one is larger than the bound, or the bound than the bytes that are free on disk.
    """
    largest = max(description["files"], key=lambda file: file["size"])
    if largest["size"] > max_gb * 1e9:
        raise SourceError(
            f"{largest['path']} has {largest['size'] / 1e9:.1f} GB, download.max_gb allows {max_gb:g}: raise it"
        )
    needed = min(max_gb * 1e9, description["bytes"])
    if needed > free:
        raise SourceError(
            f"downloads may take {needed / 1e9:.1f} GB at a time, {free / 1e9:.1f} GB are free: lower download.max_gb, "
            "or choose another outdir"
        )


class Room:
    """The fetched files of a run (a folder `raw/`), whose bytes on disk, finished, growing or promised, have a bound."""

    def __init__(self, folder: Path, most: int):
        self.folder, self.most = folder, most
        self.run_dir = folder.parent
        # On this machine, where all fetches of a run are: not every shared file system has locks.
        locks = Path(tempfile.gettempdir()) / f"speechmill-fetch-{os.getuid()}"
        locks.mkdir(mode=0o700, exist_ok=True)
        self._lock = locks / f"{hashlib.sha256(os.fspath(folder.resolve()).encode()).hexdigest()[:16]}.lock"
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def reserved(self, key: str, size: int) -> Iterator[None]:
        """Wait for room for a file, and keep it until the block ends.

        Raises:
            SourceError: nothing is at work that would make room.
        """
        promise = self.folder / f".{key}{RESERVED}"
        lonely_since: float | None = None
        said = False
        while not self._reserve(promise, key, size):
            if not said:
                print(f"{key}: waits for room, {self.most / 1e9:g} GB of fetched files are allowed", flush=True)
                said = True
            busy = self._others_at_work()
            lonely_since = None if busy else lonely_since or time.monotonic()
            if lonely_since and time.monotonic() - lonely_since > LONELY:
                raise SourceError(
                    f"{self.folder}: no room for {size / 1e9:.2f} GB within download.max_gb, and nothing is at work that "
                    "would make any; run again once what failed is mended, or raise download.max_gb"
                )
            time.sleep(POLL)
        try:
            yield
        finally:
            promise.unlink(missing_ok=True)

    def _reserve(self, promise: Path, key: str, size: int) -> bool:
        with open(self._lock, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._clear()
            if self.used(but=key) + size > self.most:
                return False
            write_json(promise, {"size": size, "host": socket.gethostname(), "pid": os.getpid()})
            return True

    def used(self, but: str = "") -> int:
        """Bytes of all files but one: what lies there, or what was promised to one that is growing."""
        sizes: dict[str, int] = defaultdict(int)
        for path in self.folder.iterdir():
            try:
                size = path.stat().st_size if path.is_file() else 0
                if path.name.endswith(RESERVED):
                    size = _promised(path)
            except (FileNotFoundError, ValueError):
                continue  # gone or written meanwhile
            key = path.name.removeprefix(".").removesuffix(RESERVED).removesuffix(".part")
            sizes[key] = max(sizes[key], size)
        return sum(size for key, size in sizes.items() if key != but)

    def _clear(self) -> None:
        """Remove what no job will read any more: of an earlier listing, of finished batches, of batches given up."""
        batches: dict[str, list[str]] = defaultdict(list)
        for row in read_batches(self.run_dir / "manifest" / "batches.tsv"):
            batches[row["fetched_as"]].append(row["batch"])
        given_up = {line["batch"] for line in self._events() if line.get("given_up")}
        for path in self.folder.iterdir():
            if path.name.startswith(".") or not path.is_file():
                continue
            waiting = [batch for batch in batches.get(path.name, []) if not self._is_enhanced(batch, path)]
            if all(batch in given_up for batch in waiting):
                path.unlink(missing_ok=True)

    def _is_enhanced(self, batch: str, fetched: Path) -> bool:
        ledger = self.run_dir / "ledger" / f"{batch}.enhance.parquet"
        try:
            return ledger.stat().st_mtime >= fetched.stat().st_mtime
        except FileNotFoundError:
            return False

    def _events(self) -> list[dict[str, Any]]:
        """What happened to the jobs of this start of Snakemake."""
        lines = list(read_attempts(self.run_dir))
        return [line for line in lines if line["start"] == lines[-1]["start"]]

    def _others_at_work(self) -> bool:
        last = {(line["stage"], line["batch"]): line["event"] for line in self._events() if line["stage"] != "fetch"}
        return "submitted" in last.values()


def _promised(path: Path) -> int:
    """Bytes promised to a fetch that is alive. Fetches of one run are all on one host, that of its owner."""
    promise = read_json(path)
    if promise["host"] == socket.gethostname():
        try:
            os.kill(promise["pid"], 0)
            return int(promise["size"])
        except ProcessLookupError:
            pass
        except PermissionError:
            return int(promise["size"])
    path.unlink(missing_ok=True)
    return 0
