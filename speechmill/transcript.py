"""Transcripts: a normalised form beside what the corpus wrote, and how much of it there is. docs/datasets.md, Text.

No rule here assumes that spaces part words: Thai, Lao, Khmer and Chinese write without them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

# NFKC takes SARA AM apart (Thai U+0E33, Lao U+0EB3), which keyboards, dictionaries and recognisers write as one.
SARA_AM = {"\u0e4d\u0e32": "\u0e33", "\u0ecd\u0eb2": "\u0eb3"}
DOUBLE_E = re.compile("\u0e40\u0e40")  # two SARA E look like, and are meant as, SARA AE
YAMOK = re.compile(r"\s+(\u0e46)")  # the sign that repeats the word before it
DIGITS = {0x0E50 + value: str(value) for value in range(10)}
UNSEEN = {0x00AD, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065)}


def normalize(text: str | None) -> str | None:
    """A transcript in one form: NFKC, SARA AM as one letter, Thai digits as 0-9, the sign ๆ next to its word, what
    cannot be seen (zero-width and control characters) removed, white space as single spaces. None where nothing is left.

    Case, punctuation and spelling stay as they are.
    """
    if text is None:
        return None
    text = unicodedata.normalize("NFKC", text)
    for apart, whole in SARA_AM.items():
        text = text.replace(apart, whole)
    text = DOUBLE_E.sub("\u0e41", text.translate(DIGITS))
    text = "".join(" " if c.isspace() else c for c in text if c.isspace() or not _unseen(c))
    return " ".join(YAMOK.sub(r"\1", text).split()) or None


def _unseen(character: str) -> bool:
    return ord(character) in UNSEEN or unicodedata.category(character) == "Cc"


def count_characters(text: str | None) -> int:
    """Letters and digits of a transcript. Marks above and below a letter (Thai vowels and tones) count as part of it;
    spaces and punctuation do not count."""
    return sum(unicodedata.category(c)[0] in "LN" for c in text or "")


def utterance_key(text_norm: str | None, speaker_id: str | None) -> str | None:
    """The same for the same sentence of the same speaker, in lower case; None where either is not known."""
    if not text_norm or not speaker_id:
        return None
    return hashlib.sha256(f"{speaker_id}\0{text_norm.casefold()}".encode()).hexdigest()[:24]
