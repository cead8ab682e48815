"""Where alerts go: Apprise URLs, which are secrets. They come from the environment or a file that only its owner reads.

A channel is known by its position and the scheme of its URL, wherever it is named.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from speechmill.errors import ConfigError
from speechmill.utils.text import plain

URLS = "SPEECHMILL_ALERTS"
FILE = "SPEECHMILL_ALERTS_FILE"
DEFAULT_FILE = "~/.config/speechmill/alerts"
SEND_SECONDS = 60.0  # a server that lets its answer trickle would pass Apprise's own time limits
HIDDEN = "***"
# What Apprise says only of addresses and answers, as words that hold neither.
WHY = {
    r"[Rr]efused": "connection refused",
    r"[Tt]imed? ?out": "no answer in time",
    r"[Nn]ame or service not known|[Nn]ame resolution|getaddrinfo|[Nn]o address associated": "unknown host name",
    r"CERTIFICATE|[Cc]ertificate": "its certificate is not accepted",
    r"\b535\b|[Aa]uthentication": "user or password not accepted",
    r"[Cc]onnection (aborted|reset|unexpectedly closed)|Remote end closed": "connection broken off",
}


@dataclass(frozen=True)
class Channel:
    """`key` is its position among the channels, from 1; a message that waits for it goes to what stands there now."""

    key: str
    scheme: str
    service: Any = field(repr=False)
    hide: Callable[[str], str] = field(repr=False)

    def __str__(self) -> str:
        return f"channel {self.key} ({self.scheme})"

    def send(self, title: str, body: str, severity: str) -> str | None:
        """Deliver a message once; None if it arrived, else why not, without anything of the URL."""
        answers: list[str | None] = []
        # A thread that nobody waits for at the end of the process: Apprise's own pool would be.
        thread = threading.Thread(target=lambda: answers.append(self._send(title, body, severity)), daemon=True)
        thread.start()
        thread.join(SEND_SECONDS)
        return answers[0] if answers else f"no answer for {SEND_SECONDS:.0f} s"

    def _send(self, title: str, body: str, severity: str) -> str | None:
        import apprise

        heard = _Heard(threading.get_ident())
        _logger().addHandler(heard)
        try:
            arrived = self.service.notify(
                title=title,
                body=body,
                notify_type=apprise.NotifyType(severity),
                body_format=apprise.NotifyFormat.TEXT,
                overflow=apprise.OverflowMode.TRUNCATE,
            )
            return None if arrived else plain(self.hide(heard.summary()), 300)
        except Exception as error:  # of some plug-in of Apprise
            return plain(self.hide(f"{type(error).__name__}: {error}"), 300)
        finally:
            _logger().removeHandler(heard)


def channels() -> tuple[list[Channel], list[str]]:
    """The channels, and one line for each URL that is none.

    Raises:
        ConfigError: the file cannot be read, or others can read it.
    """
    urls = _urls()
    if not urls:
        return [], []
    import apprise

    _logger()
    # A redirected message would be asked for with GET, answered with some page, and taken for delivered.
    asset = apprise.AppriseAsset(app_id="speechmill", app_desc="speechmill", http_redirects=False)
    found, problems = [], []
    for position, url in enumerate(urls, 1):
        scheme = _scheme(url)
        service = apprise.Apprise.instantiate(url, asset=asset)
        if service is None:
            problems.append(
                f"alert channel {position} ({scheme}): this is no URL that Apprise knows, or a part of it is missing; "
                "see https://appriseit.com/services/"
            )
        else:
            # Apprise pauses between two messages, mails 5.5 s: the last of a run would come too late.
            service.request_rate_per_sec = min(service.request_rate_per_sec, 1.0)
            found.append(Channel(str(position), scheme, service, functools.partial(_hide, _parts(url))))
    return found, problems


def _urls() -> list[str]:
    given = os.environ.get(URLS)
    if given is not None:  # set and empty: no channels
        return given.split()
    named = os.environ.get(FILE)
    path = Path(named or DEFAULT_FILE).expanduser()
    if not named and not path.exists():
        return []
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"others on this machine can read the alert channels in {path}: chmod 600 {path}")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the alert channels cannot be read: {path}: {type(error).__name__}; see {FILE}") from error
    return [line for line in lines if line and not line.startswith("#")]


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator and re.fullmatch(r"[A-Za-z0-9]{1,20}", scheme) else "?"


def _parts(url: str) -> list[str]:
    """All that a URL says after its scheme, as it stands there, decoded and encoded; longest first."""
    rest = url.partition("://")[2] or url
    parts = {rest, *re.split(r"[/:@?&=#,]+", rest)}
    forms = {form for part in parts for form in (part, unquote(part), quote(unquote(part), safe=""))}
    return sorted(forms - {""}, key=lambda form: (-len(form), form))


def _hide(parts: list[str], text: str) -> str:
    for part in parts:
        word = re.escape(part)
        text = re.sub(word if len(part) > 2 else rf"(?<!\w){word}(?!\w)", HIDDEN, text, flags=re.IGNORECASE)
    return text


class _Heard(logging.Handler):
    """What Apprise logs in one thread."""

    def __init__(self, thread: int):
        super().__init__()
        self.thread = thread
        self.problems: list[str] = []
        self.why: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self.thread:
            return
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.problems.append(text)
        elif text.startswith("Socket Exception"):
            self.why += [words for pattern, words in WHY.items() if re.search(pattern, text)][:1]

    def summary(self) -> str:
        return "; ".join([*self.problems[:1], *self.why[:1]]) or "not accepted"


@functools.cache
def _logger() -> logging.Logger:
    """Apprise's logger, heard by nobody else: at the level at which it says why, it names addresses."""
    logger = logging.getLogger("apprise")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.DEBUG)
    logging.getLogger("urllib3").setLevel(logging.INFO)  # below, it tells the paths that it asks for
    return logger
