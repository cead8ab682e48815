"""Who may call: bearer tokens, of which a file that only its owner can read has the checksums.

A line of the file is `NAME SCOPES SHA256`; scopes are read and trigger, joined by a comma. A token is shown once, when it
is made. The file is read again when it changes, so that a line that is deleted shuts its token out at once.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from speechmill.errors import SpeechmillError

SCOPES = ("read", "trigger")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST = 200  # letters of a token


@dataclass(frozen=True)
class Caller:
    """Whom a token belongs to, and what it may do."""

    name: str
    scopes: frozenset[str]


class Tokens:
    """The tokens of a file, for the threads of a server."""

    def __init__(self, path: Path):
        self.path = path
        self.trouble: str | None = None  # why nobody is let in
        self._known: list[tuple[str, Caller]] = []
        self._state: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def caller(self, authorization: str | None) -> Caller | None:
        """Who says this in the header Authorization; None for nobody that is known."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(token) <= LONGEST:
            return None
        digest = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
        found = None
        for known, caller in self.known():  # all of them, however early one fits
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def known(self) -> list[tuple[str, Caller]]:
        """Checksums and callers; none while the file cannot be trusted."""
        with self._lock:
            try:
                found = self.path.stat()
                state = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode, found.st_uid)
                if state != self._state:
                    self._known, self._state, self.trouble = read_tokens(self.path), state, None
            except (OSError, SpeechmillError) as error:
                self._known, self._state, self.trouble = [], None, str(error)
            return self._known


def read_tokens(path: Path) -> list[tuple[str, Caller]]:
    """Checksums and callers of a file.

    Raises:
        SpeechmillError: others can read or write it, or a line is not of the form.
    """
    with open(path, encoding="utf-8") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise SpeechmillError(f"{path} must be yours and nobody else's to read: chmod 600 {path}")
        lines = file.read().splitlines()
    tokens = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        scopes = frozenset(parts[1].split(",")) if len(parts) == 3 else frozenset()
        if not scopes or not scopes <= set(SCOPES) or not re.fullmatch(r"[0-9a-f]{64}", parts[2]):
            raise SpeechmillError(f"{path}, line {number}: expected NAME SCOPES SHA256; make tokens with --new-token")
        tokens.append((parts[2], Caller(parts[0], scopes)))
    return tokens


def new_token(path: Path, name: str, scopes: str) -> str:
    """Add a token to the file, which is made if need be; the token itself is kept nowhere.

    Raises:
        SpeechmillError: name or scopes are not valid, the name is taken, or others can read the file.
    """
    given = scopes.split(",")
    if not NAME.fullmatch(name):
        raise SpeechmillError(f"--new-token {name}: letters, digits and . _ - only, 64 at most")
    if not set(given) <= set(SCOPES):
        raise SpeechmillError(f"--scopes {scopes}: one or more of {','.join(SCOPES)}")
    if path.exists() and name in {caller.name for _, caller in read_tokens(path)}:
        raise SpeechmillError(f"{path} has a token of {name}: delete its line first, which shuts that one out")
    token = secrets.token_urlsafe(32)
    line = f"{name} {','.join(sorted(set(given)))} {hashlib.sha256(token.encode()).hexdigest()}\n"
    with open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as file:
        last = file.read()[-1:]
        file.write((b"" if last in (b"", b"\n") else b"\n") + line.encode())  # an editor may have left a line open
    return token
