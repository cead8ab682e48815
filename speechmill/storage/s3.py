"""Objects in an S3 bucket, addressed by s3:// URLs.

Endpoint and keys come from the settings of Snakemake's storage plugin; AWS's own settings are the default.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechmill.errors import SourceError
from speechmill.storage.files import atomic_path

SCHEME = "s3://"
THREADS = 16
_making = threading.Lock()  # boto3 cannot create clients in two threads at once


@dataclass(frozen=True)
class Stored:
    """An object: path below the prefix, size in bytes, modification time in ns, and ETag (changes with the content)."""

    path: str
    size: int
    mtime_ns: int
    tag: str


def is_url(path: str | None) -> bool:
    return path is not None and path.startswith(SCHEME)


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
            # Servers other than Amazon's do not all support S3's additional checksums.
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
    """Return bucket and key of a path below a URL."""
    bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
    return bucket, "/".join(part for part in (prefix.strip("/"), path) if part)


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise SourceError(f"{url}: {error}") from error


def objects(url: str) -> Iterator[Stored]:
    """Yield the objects below a URL, ordered by key.

    Raises:
        SourceError: the bucket cannot be listed.
    """
    client = _client()
    bucket, prefix = _place(url)
    prefix = f"{prefix}/" if prefix else ""
    with _translate_errors(url):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    time = int(found["LastModified"].timestamp() * 1e9)
                    yield Stored(found["Key"].removeprefix(prefix), found["Size"], time, found["ETag"].strip('"'))


def read(url: str, path: str = "") -> bytes:
    """Return the content of an object.

    Raises:
        SourceError: the object is missing or cannot be read.
    """
    client = _client()
    bucket, key = _place(url, path)
    with _translate_errors(f"{SCHEME}{bucket}/{key}"):
        return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())


def download(url: str, path: str, target: Path) -> None:
    client = _client()
    bucket, key = _place(url, path)
    with _translate_errors(f"{SCHEME}{bucket}/{key}"), atomic_path(target) as temporary:
        client.download_file(bucket, key, str(temporary))


def upload(url: str, path: str, file: Path) -> None:
    client = _client()
    bucket, key = _place(url, path)
    with _translate_errors(f"{SCHEME}{bucket}/{key}"):
        client.upload_file(str(file), bucket, key)


def delete(url: str, path: str) -> None:
    client = _client()
    bucket, key = _place(url, path)
    with _translate_errors(f"{SCHEME}{bucket}/{key}"):
        client.delete_object(Bucket=bucket, Key=key)


def tag(url: str, path: str) -> str:
    """Return the ETag of an object, which changes with its content.

    Raises:
        SourceError: the object is missing or cannot be read.
    """
    client = _client()
    bucket, key = _place(url, path)
    with _translate_errors(f"{SCHEME}{bucket}/{key}"):
        return str(client.head_object(Bucket=bucket, Key=key)["ETag"])
