"""Downloads from the Mozilla Data Collective with its client `datacollective`. The API key is in MDC_API_KEY."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechmill.errors import SourceError, SourceTimeoutError
from speechmill.storage.files import sha256_file
from speechmill.utils.retry import retry


def release(dataset: str, minutes: float) -> str:
    """A string that changes when the archive of a data set (id or slug) changes: its id, file name, checksum, size.

    Args:
        dataset: id or slug.
        minutes: how long to retry while the service does not answer.

    Raises:
        SourceError: as `download`.
    """
    details = _retry(dataset, minutes, lambda client: client.get_dataset_details(dataset))
    return " ".join(str(getattr(details, name, None)) for name in ("id", "filename", "checksum", "sizeBytes"))


def download(dataset: str, folder: Path, minutes: float) -> Path:
    """Download the archive into a folder and verify it; returns its path. An interrupted download is resumed.

    Archives of earlier releases are removed from the folder.

    Raises:
        SourceError: the client or the key is missing, the terms are not accepted, the service does not answer, or the
            archive is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.environ.get("MDC_API_KEY"):
        raise SourceError(
            f"{dataset}: MDC_API_KEY is not set; set it to your API key of https://mozilladatacollective.com, or "
            "download the archive there and name it in source.path"
        )
    details = _retry(dataset, minutes, lambda client: client.get_dataset_details(dataset))
    name = str(details.filename or "")
    if Path(name).name != name or not name.endswith(".tar.gz") or name.startswith("."):
        raise SourceError(f"{dataset}: the Mozilla Data Collective calls its archive {name!r}, expected NAME.tar.gz")
    for _ in range(2):
        archive = Path(
            _retry(
                dataset,
                minutes,
                lambda client: client.download_dataset(dataset, download_directory=str(folder), show_progress=False),
            )
        )
        problem = _difference(archive, details)
        if problem is None:
            break
        archive.unlink()
        print(f"{dataset}: {problem}; downloading it again", flush=True)
    else:
        raise SourceError(f"{dataset}: downloaded twice, but {problem}; report this to the Mozilla Data Collective")
    for other in folder.iterdir():
        if other != archive:
            other.unlink()
    return archive


def _difference(archive: Path, details: Any) -> str | None:
    """How the archive differs from its description; None if it does not. The client itself verifies nothing."""
    size, checksum = getattr(details, "sizeBytes", None), str(getattr(details, "checksum", None) or "")
    if size is not None and archive.stat().st_size != int(size):
        return f"it has {archive.stat().st_size} bytes instead of {size}"
    if re.fullmatch("[0-9a-f]{64}", checksum) and sha256_file(archive) != checksum:
        return f"its SHA-256 is not {checksum}"
    return None


def _retry(dataset: str, minutes: float, call: Callable[[Any], Any]) -> Any:
    try:
        import datacollective
        from datacollective.errors import DownloadError
    except ImportError as error:
        raise SourceError(
            "source.datacollective needs the package datacollective: pip install 'speechmill[mozilla]' with Python "
            "3.11.4 or newer; or download the archive from https://mozilladatacollective.com and name it in source.path"
        ) from error
    import requests

    def wait_for(error: Exception) -> float:
        if isinstance(error, (FileNotFoundError, PermissionError, ValueError, datacollective.AuthenticationError)):
            raise SourceError(
                f"{dataset}: the Mozilla Data Collective denies access: {error}. "
                "Accept the terms on the page of the data set"
            ) from error
        if isinstance(error, datacollective.ResourceRemovedError):
            raise SourceError(
                f"{dataset}: the Mozilla Data Collective has removed it; set source.datacollective to the newest release"
            ) from error
        if not isinstance(error, (datacollective.RateLimitError, DownloadError, requests.RequestException)):
            raise error
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and 400 <= status < 500 and status not in (408, 429):
            raise SourceError(
                f"{dataset}: the Mozilla Data Collective rejects the request ({status}): {error}"
            ) from error
        return 0.0

    return retry(
        lambda: call(datacollective),
        dataset,
        minutes,
        wait_for,
        timed_out=lambda error: SourceTimeoutError(f"{dataset}: no answer for {minutes:g} minutes: {error}"),
        describe=lambda error: type(error).__name__,
    )
