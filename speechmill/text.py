"""Text that others wrote, for people to read."""

from __future__ import annotations

import unicodedata


def plain(value: object, length: int = 400) -> str:
    """A value as one line of at most `length` characters: what cannot be seen becomes a space, spaces become one."""
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(value)[: 2 * length])
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def encodable(value: object) -> str:
    """A value as text that others take: names of files need be no valid UTF-8, and data bases refuse a NUL."""
    return str(value).encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
