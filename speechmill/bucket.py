"""Files in an S3 bucket: a source's, and those of a run that no rule of Snakemake declares.

Snakemake's storage plugin moves what rules declare. The rest (a batch's manifest, a published folder) goes the same way
by hand, in runs whose jobs share no file system. Endpoint and keys are those of the plugin, else of AWS's own settings.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechmill.errors import SourceError
from speechmill.files import atomic_path

RUN = "SPEECHMILL_RUN_URL"  # s3://bucket/prefix of the run's folder
SCHEME = "s3://"
THREADS = 16
_making = threading.Lock()  # boto3 makes clients in one thread at a time


@dataclass(frozen=True)
class Stored:
    """An object below a prefix: its path there, bytes, modification time, and a tag that changes with its content."""

    path: str
    size: int
    mtime_ns: int
    tag: str


def is_url(path: str | None) -> bool:
    return path is not None and path.startswith(SCHEME)


def announce_run(url: str) -> None:
    """Tell the jobs that this Snakemake starts on this machine where the files of their run are."""
    os.environ[RUN] = url


@functools.cache
def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError as error:
        raise SourceError("s3:// needs boto3: pip install 'speechmill[kubernetes]'") from error
    with _making:
        return boto3.client(
            "s3",
            endpoint_url=_setting("ENDPOINT_URL"),
            region_name=_setting("REGION"),
            aws_access_key_id=_setting("ACCESS_KEY"),
            aws_secret_access_key=_setting("SECRET_KEY"),
            aws_session_token=_setting("TOKEN"),
            # Checksums of their own are more than other servers than Amazon's understand.
            config=Config(
                retries={"mode": "standard", "max_attempts": 8},
                max_pool_connections=THREADS,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


def _setting(name: str) -> str | None:
    return os.environ.get(f"SNAKEMAKE_STORAGE_S3_{name}") or None


def _place(url: str, path: str = "") -> tuple[str, str]:
    """Bucket and key of a path below a URL."""
    bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
    return bucket, "/".join(part for part in (prefix.strip("/"), path) if part)


@contextmanager
def _plainly(url: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise SourceError(f"{url}: {error}") from error


def objects(url: str) -> Iterator[Stored]:
    """What is below a URL, by key.

    Raises:
        SourceError: it cannot be listed.
    """
    client = _client()
    bucket, prefix = _place(url)
    prefix = f"{prefix}/" if prefix else ""
    with _plainly(url):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    time = int(found["LastModified"].timestamp() * 1e9)
                    yield Stored(found["Key"].removeprefix(prefix), found["Size"], time, found["ETag"].strip('"'))


def read(url: str, path: str = "") -> bytes:
    """Content of an object.

    Raises:
        SourceError: it is not there, or cannot be read.
    """
    client = _client()
    bucket, key = _place(url, path)
    with _plainly(f"{SCHEME}{bucket}/{key}"):
        return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())


def download(url: str, path: str, target: Path) -> None:
    client = _client()
    bucket, key = _place(url, path)
    with _plainly(f"{SCHEME}{bucket}/{key}"), atomic_path(target) as temporary:
        client.download_file(bucket, key, str(temporary))


def state(name: str) -> str:
    """Changes when a file of the run in a bucket does."""
    client = _client()
    bucket, key = _place(os.environ[RUN], name)
    with _plainly(f"{SCHEME}{bucket}/{key}"):
        return str(client.head_object(Bucket=bucket, Key=key)["ETag"])


def fetch(name: str, target: Path) -> None:
    """Of a run in a bucket: a file of it that no rule declares as an input of this job."""
    if RUN in os.environ:
        download(os.environ[RUN], name, target)


def bring_log(log: Path, run_dir: Path) -> Path:
    """Of a run in a bucket: a file of this machine with the log of a job that ended elsewhere, if it left one."""
    if RUN not in os.environ:
        return log
    name = log.as_posix().rpartition("/logs/")[2].partition(" (")[0]  # Snakemake adds where it is kept
    target = run_dir / "logs" / name
    target.unlink(missing_ok=True)
    with suppress(SourceError):
        download(os.environ[RUN], f"logs/{name}", target)
    return target


@contextmanager
def kept(folder: Path, chosen: Callable[[str], bool]) -> Iterator[None]:
    """Of a run in a bucket: the block finds what `folder` of the run held, and what it changes there is stored.

    `folder` is right below that of the run, such as manifest/; `chosen` says of a path in it whether it is meant.
    """
    if RUN not in os.environ:
        yield
        return
    client = _client()
    url = f"{os.environ[RUN]}/{folder.name}"
    bucket, _ = _place(url)

    def store(path: str) -> None:
        client.upload_file(str(folder / path), bucket, _place(url, path)[1])

    there = [found.path for found in objects(url) if chosen(found.path)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda path: download(url, path, folder / path), there))
        before = _states(folder, chosen)
        yield
        after = _states(folder, chosen)
        with _plainly(url):
            list(pool.map(store, [path for path, state in after.items() if before.get(path) != state]))
            for path in before.keys() - after.keys():
                client.delete_object(Bucket=bucket, Key=_place(url, path)[1])


def _states(folder: Path, chosen: Callable[[str], bool]) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and chosen(name):
            state = path.stat()
            found[name] = (state.st_size, state.st_mtime_ns)
    return found
