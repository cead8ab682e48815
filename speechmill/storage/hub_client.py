"""Client of the Hugging Face Hub with a timeout, retries and clear error messages."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from speechmill.errors import Failure, SourceError, SourceTimeoutError
from speechmill.utils.retry import retry

TIMEOUT = 60.0  # seconds without data after which a call fails; the client's default is no timeout
RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
CONFLICTS = frozenset({409, 412})  # another writer has committed, or is committing
Result = TypeVar("Result")


class HubRefusedError(SourceError):
    """The Hub refuses a call, and a retry would not help: not found, gated, over quota, or no permission."""

    failure = Failure.HUB_REFUSED


def endpoint() -> str:
    """Return the URL of the Hub: HF_ENDPOINT, or huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def api() -> Any:
    """Return the client. It reads the token from HF_TOKEN or from the file HF_TOKEN_PATH."""
    return _api(endpoint())


@functools.cache
def _api(address: str) -> Any:
    import huggingface_hub
    from huggingface_hub.utils import _http

    def client() -> Any:
        made = _http.default_client_factory()
        made.timeout = TIMEOUT
        return made

    huggingface_hub.set_client_factory(client)
    huggingface_hub.utils.disable_progress_bars()  # progress bars would fill the log
    return huggingface_hub.HfApi(endpoint=address)


def token_problem() -> str | None:
    """Return a problem of the token that can be found offline.

    It is missing, or others can read its file. None if fine.
    """
    api()
    from huggingface_hub import constants, get_token

    if not get_token():
        return (
            "there is no token for the Hub: make one that may write on https://huggingface.co/settings/tokens, put it "
            "into a file that only you can read (chmod 600) and name that in HF_TOKEN_PATH, or set HF_TOKEN"
        )
    file = Path(constants.HF_TOKEN_PATH)
    named = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not named and file.is_file() and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"others on this machine can read the token in {file}: chmod 600 {file}"
    return None


def retry_hub(
    call: Callable[[], Result],
    what: str,
    minutes: float,
    progress: Callable[[], int] = lambda: 0,
    *,
    writes: bool = False,
) -> Result:
    """Call the Hub, and retry after rate limits and failures of the server or the network.

    Args:
        what: name of the requested object in messages, such as "owner/name data/x.parquet".
        minutes: timeout without progress.
        progress: returns a number that grows with progress; the timeout then starts again.
        writes: the call writes to the Hub; it is also retried after a conflict with another writer.

    Raises:
        HubRefusedError: a retry would not help; raised at once, with the fix in the message.
        SourceTimeoutError: the timeout is over.
    """
    api()
    from huggingface_hub.errors import HTTPError

    def wait_for(error: Exception) -> float:
        if not isinstance(error, (HTTPError, OSError)) or _is_local_error(error):
            raise error
        waited_out = writes and _status(error) in CONFLICTS
        refused = None if waited_out else _write_refusal(error, what) if writes else _refusal(error, what)
        if refused:
            raise HubRefusedError(refused) from error
        return _retry_after(error)

    def timed_out(error: Exception) -> Exception:
        return SourceTimeoutError(
            f"{what}: the Hub gave no answer for {minutes:g} minutes: {_first_line(error)}. "
            "Check the network and https://status.huggingface.co, then run again: what is there is kept"
        )

    return retry(call, what, minutes, wait_for, timed_out, _first_line, progress)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_local_error(error: BaseException) -> bool:
    """Whether an error is of this machine, such as a full disk, and not of the Hub or the network."""
    from huggingface_hub.errors import HTTPError

    network = isinstance(error, (HTTPError, ConnectionError, TimeoutError))
    return not network and getattr(error, "errno", None) is not None


def _refusal(error: BaseException, what: str) -> str | None:
    """Return why a read cannot succeed, and the fix; None if a retry may help."""
    from huggingface_hub import errors, get_token

    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        repo = what.split()[0]
        who = "your account" if get_token() else "you: there is no token"
        return (
            f"{what}: the repository is gated and not open to {who}. Accept its terms on "
            f"https://huggingface.co/datasets/{repo}, make a token that may read gated repositories, and give it in "
            "HF_TOKEN or in the file that HF_TOKEN_PATH names"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what}: there is no such revision; see source.revision"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{what}: there is no such file at this revision"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return (
            f"{what}: there is no such data set on the Hub, or it is private"
            + ("" if get_token() else " (no token is set: HF_TOKEN, or a file that HF_TOKEN_PATH names)")
            + "; see source.repo"
        )
    if status == 401:
        return f"{what}: the Hub does not know this token; make a new one and set HF_TOKEN"
    if status is not None and status not in RETRYABLE and 400 <= status < 500:
        return f"{what}: the Hub refuses: {_first_line(error)}"
    return None


def _write_refusal(error: BaseException, what: str) -> str | None:
    """Return why a write cannot succeed, and the fix; None if a retry may help."""
    from huggingface_hub import errors

    status, said = _status(error), _first_line(error)
    if status in RETRYABLE or status is None:
        return None
    repo = what.split()[0]
    if status in (402, 413, 507) or re.search("quota|storage limit|storage space", said, re.IGNORECASE):
        return (
            f"{what}: the Hub has no room: {said}. Free space, take a larger plan or ask for a grant "
            "(https://huggingface.co/docs/hub/storage-limits), then run again: what was sent is kept"
        )
    if status == 401:
        return f"{what}: the Hub does not know this token; make a new one that may write, set HF_TOKEN and run again"
    if status == 403 or isinstance(error, errors.GatedRepoError):
        return (
            f"{what}: this token may not write there ({said}). Take a token with the permission to write to {repo} "
            "(https://huggingface.co/settings/tokens), or another publish.repo, and run again"
        )
    if status == 404 or isinstance(error, errors.RepositoryNotFoundError):
        return f"{what}: there is no such data set on the Hub, or the token may not see it; see publish.repo"
    return f"{what}: the Hub refuses: {said}"


def _retry_after(error: BaseException) -> float:
    """Return the seconds until a rate limit ends, from the headers RateLimit (`t=`) or Retry-After; 0 without them."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    limit = headers.get("ratelimit", "")  # sent with every response; applies only if no request is left
    spent = _status(error) == 429 or re.search(r"\br=0\b", limit)
    found = (re.search(r"\bt=(\d+)", limit) if spent else None) or re.fullmatch(
        r"\s*(\d+)\s*", headers.get("retry-after", "")
    )
    return min(float(found[1]) + 1, 900.0) if found else 0.0


def _first_line(error: BaseException) -> str:
    """Return the first line of an error without query strings, because signed URLs are secret."""
    lines = str(error).strip().splitlines()
    return re.sub(r"\?\S+", "", lines[0])[:300] if lines else type(error).__name__
