"""Cleaning of text from outside, before it is printed or stored."""

from __future__ import annotations

import unicodedata


def plain(value: object, length: int = 400) -> str:
    """Return a value as one line of at most `length` characters.

    Invisible characters and runs of spaces become one space.
    """
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(value)[: 2 * length])
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def encodable(value: object) -> str:
    """Return a value as valid UTF-8 without NUL. File names may be invalid UTF-8, and data bases do not accept NUL."""
    return str(value).encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
