"""Archives of the Mozilla Data Collective, through its own client `datacollective`, whose key is in MDC_API_KEY."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechmill.errors import SourceError
from speechmill.files import sha256_file
from speechmill.hub import PAUSES


def release(dataset: str, minutes: float) -> str:
    """What identifies the archive of a data set (its id or slug): it changes when another one is shipped."""
    details = _patiently(dataset, minutes, lambda client: client.get_dataset_details(dataset))
    return " ".join(str(getattr(details, name, None)) for name in ("id", "filename", "checksum", "sizeBytes"))


def download(dataset: str, folder: Path, minutes: float) -> Path:
    """Download the archive into a folder, going on with what an interrupted call left.

    Raises:
        SourceError: the client or the key is missing, the terms are not accepted, or there is no answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.environ.get("MDC_API_KEY"):
        raise SourceError(
            f"{dataset}: set MDC_API_KEY to your key of https://mozilladatacollective.com, or download the archive there "
            "and name it in source.path"
        )
    details = _patiently(dataset, minutes, lambda client: client.get_dataset_details(dataset))
    name = str(details.filename or "")
    if Path(name).name != name or not name.endswith(".tar.gz") or name.startswith("."):
        raise SourceError(f"{dataset}: the Mozilla Data Collective calls its archive {name!r}, expected NAME.tar.gz")
    for _ in range(2):
        archive = Path(
            _patiently(
                dataset,
                minutes,
                lambda client: client.download_dataset(dataset, download_directory=str(folder), show_progress=False),
            )
        )
        problem = _difference(archive, details)
        if problem is None:
            break
        archive.unlink()
        print(f"{dataset}: {problem}; downloaded once more", flush=True)
    else:
        raise SourceError(f"{dataset}: downloaded twice, and {problem}; tell the Mozilla Data Collective")
    for other in folder.iterdir():
        if other != archive:  # of an earlier release
            other.unlink()
    return archive


def _difference(archive: Path, details: Any) -> str | None:
    """In what the archive is not what the service says of it. Its client compares nothing after a download."""
    size, checksum = getattr(details, "sizeBytes", None), str(getattr(details, "checksum", None) or "")
    if size is not None and archive.stat().st_size != int(size):
        return f"it has {archive.stat().st_size} bytes instead of {size}"
    if re.fullmatch("[0-9a-f]{64}", checksum) and sha256_file(archive) != checksum:
        return f"its checksum is not {checksum}"
    return None


def _patiently(dataset: str, minutes: float, call: Callable[[Any], Any]) -> Any:
    try:
        import datacollective
        from datacollective.errors import DownloadError
    except ImportError as error:
        raise SourceError(
            "source.datacollective needs the package datacollective: pip install 'speechmill[mozilla]', with Python 3.11.4 or "
            "newer; or download the "
            "archive from https://mozilladatacollective.com and name it in source.path"
        ) from error
    import requests

    since, attempt = time.monotonic(), 0
    while True:
        try:
            return call(datacollective)
        except (FileNotFoundError, PermissionError, ValueError, datacollective.AuthenticationError) as error:
            raise SourceError(
                f"{dataset}: the Mozilla Data Collective refuses: {error}. Accept the terms on the data set's page"
            ) from error
        except datacollective.ResourceRemovedError as error:
            raise SourceError(
                f"{dataset}: the Mozilla Data Collective has removed it; take the newest release"
            ) from error
        except (datacollective.RateLimitError, DownloadError, requests.RequestException) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status is not None and 400 <= status < 500 and status not in (408, 429):
                raise SourceError(f"{dataset}: the Mozilla Data Collective refuses ({status}): {error}") from error
            pause = PAUSES[min(attempt, len(PAUSES) - 1)]
            if time.monotonic() + pause - since > minutes * 60:
                raise SourceError(f"{dataset}: no answer for {minutes:g} minutes: {error}") from error
            print(f"{dataset}: {type(error).__name__}; asked again in {pause} s", flush=True)
            time.sleep(pause)
            attempt += 1
