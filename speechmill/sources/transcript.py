"""Transcripts: cleaning, normalisation, number of characters, and a key for equal sentences (docs/datasets.md, Text).

No function here assumes spaces between words: Thai, Lao, Khmer and Chinese are written without them.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from typing import Any

# Characters that must not be published: C0 and C1 controls other than tab and line breaks, the byte order mark, and
# bidirectional embeddings, overrides and isolates, which display text in another order than it has (UAX #9).
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
SURROGATES = re.compile("[\ud800-\udfff]")  # halves of a character, which UTF-8 cannot encode
CONTROL_IN_JSON = re.compile(r"\\u(?:00[01]|d[89a-f])", re.IGNORECASE)

# NFKC decomposes SARA AM (Thai U+0E33, Lao U+0EB3) into NIKHAHIT and SARA AA. Keyboards, dictionaries and recognisers
# use one character, after the tone mark. A tone mark between the two parts, or after them, looks the same.
SARA_AM = (
    (re.compile("\u0e4d([\u0e48-\u0e4b]*)\u0e32([\u0e48-\u0e4b]*)(?![\u0e48-\u0e4b\u0e4d])"), "\\1\\2\u0e33"),
    (re.compile("\u0ecd([\u0ec8-\u0ecb]*)\u0eb2([\u0ec8-\u0ecb]*)(?![\u0ec8-\u0ecb\u0ecd])"), "\\1\\2\u0eb3"),
)
# A tone mark follows the vowels above or below its consonant. Typed before an upper vowel, it looks the same. (NFKC
# orders lower vowels only.)
MARKS = re.compile("[\u0e31\u0e34-\u0e3a\u0e48-\u0e4b]{2,}|[\u0eb1\u0eb4-\u0ebb\u0ec8-\u0ecb]{2,}")
TONES = frozenset("\u0e48\u0e49\u0e4a\u0e4b\u0ec8\u0ec9\u0eca\u0ecb")
DOUBLE_E = re.compile("\u0e40\u0e40")  # two SARA E look like SARA AE, and are typed instead of it
YAMOK = re.compile(r"\s+(\u0e46)")  # MAI YAMOK: repeats the word before it
DIGITS = {0x0E50 + value: str(value) for value in range(10)}

LONG = 10_000  # characters of a text whose combining characters are counted
MOST_MARKS = 30  # in a row, of the stream-safe text format (UAX #15)

# Cursive scripts: Arabic, Syriac, N'Ko, Mandaic, Mongolian. Brahmic scripts: Devanagari to Sinhala, Myanmar, Khmer.
CURSIVE = "\u0600-\u077f\u07c0-\u07ff\u0840-\u085f\u0870-\u08ff\u1800-\u18aa"
BRAHMIC = "\u0900-\u0dff\u1000-\u109f\u1780-\u17d3"
VIRAMA = "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d3b\u0d3c\u0d4d\u0dca\u1039\u103a\u17d2"
# ZWNJ and ZWJ that are spelling: between two characters of such a script; after a virama (RFC 5892, A.1 and A.2); and
# ZWJ after a cursive letter, which gives it its joining form at the end of an abbreviation.
SPELLING = (
    f"(?<=[{CURSIVE}])[\u200c\u200d](?=[{CURSIVE}])|(?<=[{BRAHMIC}])[\u200c\u200d](?=[{BRAHMIC}])"
    f"|(?<=[{VIRAMA}])[\u200c\u200d]|(?<=[{CURSIVE}])\u200d"
)
JOINERS = re.compile(f"({SPELLING})|[\u200c\u200d]")
JOINER_RUNS = re.compile("([\u200c\u200d])[\u200c\u200d]+")
# Other invisible characters: soft hyphen, Arabic letter mark, zero-width space, directional marks, word joiner and
# invisible operators, bidirectional and deprecated controls, BOM, annotations, tags.
UNSEEN = dict.fromkeys(
    (
        *(0x00AD, 0x061C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070)),
        *(0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)),
        *(code for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc" and not chr(code).isspace()),
    )
)


def clean(text: str) -> str:
    """Remove characters that must not be published (`CONTROLS`); half a character becomes U+FFFD."""
    return SURROGATES.sub("\ufffd", CONTROLS.sub("", text))


def clean_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a source with clean strings. `extra` stays valid JSON, and is only parsed if it has escaped controls.

    A path with such characters gets them as visible escapes (such as \\u202e), so that it still names one file.
    """
    found = {name: clean(value) if isinstance(value, str) else value for name, value in row.items()}
    for name in ("source_file", "source_member"):
        if isinstance(row.get(name), str) and found[name] != row[name]:
            bad = re.compile(f"{CONTROLS.pattern}|{SURROGATES.pattern}")
            found[name] = bad.sub(lambda match: f"\\u{ord(match[0]):04x}", row[name])
    if isinstance(found.get("extra"), str) and CONTROL_IN_JSON.search(found["extra"]):
        found["extra"] = json.dumps(_clean_value(json.loads(found["extra"])), ensure_ascii=False, sort_keys=True)
    return found


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): _clean_value(inner) for name, inner in value.items()}
    return [_clean_value(inner) for inner in value] if isinstance(value, list) else value


def normalize(text: str | None) -> str | None:
    """Normalise a transcript; None if nothing is left.

    The result is in NFKC, except that SARA AM is one character. Thai and Lao vowels and tone marks are in the order of
    the Unicode standard, Thai digits are 0-9, and there is no space before the sign ๆ. Invisible characters are
    removed, except joiners where they are spelling. White space becomes single spaces. Case, punctuation and spelling
    are not changed.
    """
    if text is None:
        return None
    text = SURROGATES.sub("\ufffd", text).translate(UNSEEN)
    text = _one_form(_stream_safe(text) if len(text) > LONG else text)
    for _ in range(2):  # where a joiner was removed, more can follow: in real text, in one more pass
        if not JOINERS.search(text):
            break
        text = _one_form(text)
    return text or None


def _stream_safe(text: str) -> str:
    """Drop combining characters after MOST_MARKS in a row: NFKC takes time with the square of their number."""
    marks, kept = 0, []
    for character in text:
        if not JOINERS.match(character):  # which may be removed later
            marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MOST_MARKS:
            kept.append(character)
    return "".join(kept)


def _one_form(text: str) -> str:
    text = unicodedata.normalize("NFKC", text)
    if "\u200c" in text or "\u200d" in text:
        kept = JOINERS.sub(lambda match: match[1] or "", JOINER_RUNS.sub(r"\1", text))
        text = unicodedata.normalize("NFKC", kept)  # characters that a joiner separated can compose
    text = MARKS.sub(lambda match: "".join(sorted(match[0], key=TONES.__contains__)), text)
    for pattern, composed in SARA_AM:
        text = pattern.sub(composed, text)
    text = DOUBLE_E.sub("\u0e41", text.translate(DIGITS))
    return " ".join(YAMOK.sub(r"\1", text).split())


def count_characters(text: str | None) -> int:
    """Number of letters and digits (Unicode categories L and N) of a transcript.

    Combining marks (Thai vowels and tones above and below a letter), spaces and punctuation do not count.
    """
    return sum(unicodedata.category(c)[0] in "LN" for c in text or "")


def utterance_key(text_norm: str | None, speaker_id: str | None) -> str | None:
    """Hash (24 hex digits) of sentence and speaker, without regard to case; None if either is unknown."""
    if not text_norm or not speaker_id:
        return None
    return hashlib.sha256(f"{speaker_id}\0{text_norm.casefold()}".encode()).hexdigest()[:24]
