"""The fetch job: downloads one source file to `raw/`, as soon as the download quota has space for it.

Snakemake deletes a fetched file after its last batch. But it has no limit on files that jobs leave for other jobs, and
would download all of them first. Therefore a fetch job waits until the files in `raw/` leave enough of
`download.max_gb`. It runs where Snakemake runs, because compute nodes often have no network. It needs no core while it
waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechmill.errors import SourceError
from speechmill.runlog.attempts import read_attempts
from speechmill.sources import Source
from speechmill.sources.manifest import listing_of
from speechmill.storage.files import read_json, write_json
from speechmill.tables.batches import read_batches

POLL = 2.0  # seconds
NO_JOB_SECONDS = 120.0  # after so long without any other job of the run, no job will free space any more
RESERVED = ".reserved.json"


def fetch_file(source: Source, source_json: Path, key: str, target: Path, max_gb: float) -> dict[str, float]:
    """Fetch a file of the listing as soon as the quota has space for it.

    Args:
        source: the adapter; it reads the revision of the listing.
        source_json: the listing.
        key: `SourceFile.key` of the file.
        target: `raw/{key}`.
        max_gb: `download.max_gb`, the quota in GB (1e9 bytes).

    Returns:
        `bytes`, and `transfer_seconds` without the time that the job waited for space.

    Raises:
        SourceError: the file is not listed, it cannot be downloaded, or no running job will free space.
    """
    description = read_json(source_json)
    found = [file for file in listing_of(description).files if file.key == key]
    if not found:
        raise SourceError(f"{source_json} lists no file {key}; run again to list the source again")
    source.pin(description["revision"])
    begin = time.monotonic()
    with DownloadQuota(target.parent, round(max_gb * 1e9)).reserved(key, found[0].size):
        waited = time.monotonic() - begin
        source.fetch(found[0], target)
    seconds = max(time.monotonic() - begin - waited, 1e-3)
    print(f"{found[0].path}: {found[0].size} bytes in {seconds:.1f} s, after waiting {waited:.0f} s for space")
    return {"bytes": found[0].size, "transfer_seconds": round(seconds, 3)}


def check_size(description: dict[str, Any], max_gb: float, free: int) -> None:
    """Check that the quota is large enough for every file, and the disk for the quota.

    Args:
        description: the content of source.json.
        max_gb: `download.max_gb`.
        free: free bytes on disk.

    Raises:
        SourceError: a file is larger than the quota, or the quota is larger than the free space.
    """
    largest = max(description["files"], key=lambda file: file["size"])
    if largest["size"] > max_gb * 1e9:
        raise SourceError(
            f"{largest['path']} has {largest['size'] / 1e9:.1f} GB, but download.max_gb is {max_gb:g}; "
            "raise download.max_gb"
        )
    needed = min(max_gb * 1e9, description["bytes"])
    if needed > free:
        raise SourceError(
            f"downloads may take {needed / 1e9:.1f} GB at a time, but only {free / 1e9:.1f} GB are free; "
            "lower download.max_gb, or choose another outdir"
        )


class DownloadQuota:
    """The quota of the folder `raw/` of a run: files there, growing files and reservations have `most` bytes together."""

    def __init__(self, folder: Path, most: int):
        self.folder, self.most = folder, most
        self.run_dir = folder.parent
        # All fetch jobs of a run are on this machine, and not every shared file system supports locks.
        locks = Path(tempfile.gettempdir()) / f"speechmill-fetch-{os.getuid()}"
        locks.mkdir(mode=0o700, exist_ok=True)
        self._lock = locks / f"{hashlib.sha256(os.fspath(folder.resolve()).encode()).hexdigest()[:16]}.lock"
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def reserved(self, key: str, size: int) -> Iterator[None]:
        """Wait until there is space for `size` bytes, and reserve it until the block ends.

        Raises:
            SourceError: no running job will free space.
        """
        reservation = self.folder / f".{key}{RESERVED}"
        no_job_since: float | None = None
        logged = False
        while not self._reserve(reservation, key, size):
            if not logged:
                print(f"{key}: waiting for space; download.max_gb is {self.most / 1e9:g}", flush=True)
                logged = True
            busy = self._other_jobs_run()
            no_job_since = None if busy else no_job_since or time.monotonic()
            if no_job_since and time.monotonic() - no_job_since > NO_JOB_SECONDS:
                raise SourceError(
                    f"{self.folder}: no space for {size / 1e9:.2f} GB within download.max_gb, and no running job "
                    "will free any; fix the failed jobs, then resume, or raise download.max_gb"
                )
            time.sleep(POLL)
        try:
            yield
        finally:
            reservation.unlink(missing_ok=True)

    def _reserve(self, reservation: Path, key: str, size: int) -> bool:
        with open(self._lock, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._remove_unneeded()
            if self.used(but=key) + size > self.most:
                return False
            write_json(reservation, {"size": size, "host": socket.gethostname(), "pid": os.getpid()})
            return True

    def used(self, but: str = "") -> int:
        """Bytes of all files except `but`. A file that is being downloaded counts with the size that it reserved."""
        sizes: dict[str, int] = defaultdict(int)
        for path in self.folder.iterdir():
            try:
                size = path.stat().st_size if path.is_file() else 0
                if path.name.endswith(RESERVED):
                    size = _reserved_bytes(path)
            except (FileNotFoundError, ValueError):
                continue  # another process removed it, or is writing it
            key = path.name.removeprefix(".").removesuffix(RESERVED).removesuffix(".part")
            sizes[key] = max(sizes[key], size)
        return sum(size for key, size in sizes.items() if key != but)

    def _remove_unneeded(self) -> None:
        """Remove files that no job will read: of an earlier listing, of finished batches, of failed batches."""
        batches: dict[str, list[str]] = defaultdict(list)
        for row in read_batches(self.run_dir / "manifest" / "batches.tsv"):
            batches[row["fetched_as"]].append(row["batch"])
        given_up = {line["batch"] for line in self._events() if line.get("given_up")}
        for path in self.folder.iterdir():
            if path.name.startswith(".") or not path.is_file():
                continue
            unfinished = [batch for batch in batches.get(path.name, []) if not self._is_enhanced(batch, path)]
            if all(batch in given_up for batch in unfinished):
                path.unlink(missing_ok=True)

    def _is_enhanced(self, batch: str, fetched: Path) -> bool:
        ledger = self.run_dir / "ledger" / f"{batch}.enhance.parquet"
        try:
            return ledger.stat().st_mtime >= fetched.stat().st_mtime
        except FileNotFoundError:
            return False

    def _events(self) -> list[dict[str, Any]]:
        """The lines of the attempt log since the last start of Snakemake."""
        lines = list(read_attempts(self.run_dir))
        return [line for line in lines if line["start"] == lines[-1]["start"]]

    def _other_jobs_run(self) -> bool:
        last = {(line["stage"], line["batch"]): line["event"] for line in self._events() if line["stage"] != "fetch"}
        return "submitted" in last.values()


def _reserved_bytes(path: Path) -> int:
    """Bytes reserved by a fetch job that is running. The reservation of a dead process is removed.

    All fetch jobs of a run are on one host, so a reservation of another host is of an earlier start.
    """
    reservation = read_json(path)
    if reservation["host"] == socket.gethostname():
        try:
            os.kill(reservation["pid"], 0)
            return int(reservation["size"])
        except ProcessLookupError:
            pass
        except PermissionError:
            return int(reservation["size"])
    path.unlink(missing_ok=True)
    return 0


def remove_raw(run_dir: Path) -> None:
    """Remove the fetched and unpacked files of a run. Call it when no batch reads them any more."""
    shutil.rmtree(run_dir / "raw", ignore_errors=True)
