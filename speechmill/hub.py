"""The Hugging Face Hub as speechmill asks it: with a time limit, with patience, and with errors for people."""

from __future__ import annotations

import functools
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from speechmill.errors import SourceError

TIMEOUT = 60.0  # seconds of silence after which a call counts as failed: the client itself would wait for ever
PAUSES = (2, 5, 10, 30, 60)  # seconds between attempts; the last one is repeated
WAITED_OUT = frozenset({408, 425, 429, 500, 502, 503, 504})
OF_OTHERS = frozenset({409, 412})  # a commit was made, or is being made, by somebody else
Result = TypeVar("Result")


class HubRefusedError(SourceError):
    """The Hub says no, and will say so again: missing, gated, full, or without the right to read or write."""


def endpoint() -> str:
    """The address of the Hub, or of another one that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def api() -> Any:
    """The client. It reads the token from HF_TOKEN, or from the file that HF_TOKEN_PATH names."""
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
    huggingface_hub.utils.disable_progress_bars()  # a log is no terminal
    return huggingface_hub.HfApi(endpoint=address)


def token_problem() -> str | None:
    """What is wrong with the token, as far as it can be seen here: there is none, or others can read its file."""
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


def patiently(
    call: Callable[[], Result],
    what: str,
    minutes: float,
    progress: Callable[[], int] = lambda: 0,
    *,
    writes: bool = False,
) -> Result:
    """The answer of a call to the Hub. Rate limits, failures of the server and of the network are waited out.

    Args:
        what: what is asked for, for messages, such as "owner/name data/x.parquet".
        minutes: how long nothing may go forward before it is given up.
        progress: a number that grows while attempts get somewhere: then the time begins anew.
        writes: the call sends something; a conflict with another writer is waited out, too.

    Raises:
        HubRefusedError: at once, where asking again would change nothing; says what to do.
        SourceError: the Hub could not be asked for so long.
    """
    api()
    from huggingface_hub.errors import HTTPError

    since, reached, attempt = time.monotonic(), progress(), 0
    while True:
        try:
            return call()
        except (HTTPError, OSError) as error:
            if _is_ours(error):
                raise
            waited_out = writes and _status(error) in OF_OTHERS
            refused = None if waited_out else _write_refusal(error, what) if writes else _refusal(error, what)
            if refused:
                raise HubRefusedError(refused) from error
            if progress() > reached:
                since, reached, attempt = time.monotonic(), progress(), 0
            pause = max(_asked_to_wait(error), PAUSES[min(attempt, len(PAUSES) - 1)])
            if time.monotonic() + pause - since > minutes * 60:
                raise SourceError(
                    f"{what}: the Hub gave no answer for {minutes:g} minutes: {_short(error)}. "
                    "Check the network and https://status.huggingface.co, then run again: what is there is kept"
                ) from error
            print(f"{what}: {_short(error)}; asked again in {pause:.0f} s", flush=True)
            time.sleep(pause)
            attempt += 1


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_ours(error: BaseException) -> bool:
    """A full disk and the like: no matter of the Hub's."""
    from huggingface_hub.errors import HTTPError

    network = isinstance(error, (HTTPError, ConnectionError, TimeoutError))
    return not network and getattr(error, "errno", None) is not None


def _refusal(error: BaseException, what: str) -> str | None:
    """Why asking again would change nothing, and what to do; None where it might."""
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
    if status is not None and status not in WAITED_OUT and 400 <= status < 500:
        return f"{what}: the Hub refuses: {_short(error)}"
    return None


def _write_refusal(error: BaseException, what: str) -> str | None:
    """Why sending again would change nothing, and what to do; None where it might."""
    from huggingface_hub import errors

    status, said = _status(error), _short(error)
    if status in WAITED_OUT or status is None:
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


def _asked_to_wait(error: BaseException) -> float:
    """Seconds until a rate limit ends, as RateLimit (`t=`) or Retry-After say."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    limit = headers.get("ratelimit", "")  # in every answer; it is why only where nothing is left
    spent = _status(error) == 429 or re.search(r"\br=0\b", limit)
    found = (re.search(r"\bt=(\d+)", limit) if spent else None) or re.fullmatch(
        r"\s*(\d+)\s*", headers.get("retry-after", "")
    )
    return min(float(found[1]) + 1, 900.0) if found else 0.0


def _short(error: BaseException) -> str:
    """The first line of an error, without query strings: signed addresses are secrets."""
    lines = str(error).strip().splitlines()
    return re.sub(r"\?\S+", "", lines[0])[:300] if lines else type(error).__name__
