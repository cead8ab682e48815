"""Transcripts: Thai and others in one form, and counted without a rule about spaces."""

import json
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.sources.transcript import clean, clean_row, count_characters, normalize, utterance_key

from ..patience import seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("น้ำ", "น้ำ"),  # NFKC alone takes SARA AM apart
        ("น\u0e49\u0e4d\u0e32", "น้ำ"),
        ("น\u0e4d\u0e49\u0e32", "น\u0e49\u0e33"),  # the tone between the two parts of SARA AM
        ("น\u0e33\u0e49", "น\u0e49\u0e33"),  # the tone after it
        ("น\u0e4d\u0e32\u0e49", "น\u0e49\u0e33"),
        ("ดื่ม", "ดื่ม"),
        ("ด\u0e48\u0e37ม", "ด\u0e37\u0e48ม"),  # the tone before an upper vowel
        ("ผู้", "ผู้"),
        ("ผ\u0e49\u0e39", "ผ\u0e39\u0e49"),
        ("ນ\u0ecd\u0eb2", "ນຳ"),  # Lao
        ("ນ\u0ecd\u0ec9\u0eb2", "ນ\u0ec9\u0eb3"),
        ("ນ\u0eb3\u0ec9", "ນ\u0ec9\u0eb3"),
        ("ທ\u0ec8\u0eb5", "ທ\u0eb5\u0ec8"),
        ("ปี ๒๕๖๙", "ปี 2569"),
        ("ต่าง ๆ นานา", "ต่างๆ นานา"),
        ("ต่างๆ นานา", "ต่างๆ นานา"),
        ("เเม่", "แม่"),
        ("ไทย\u200bเดิม\ufeff", "ไทยเดิม"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian: ZWNJ is spelling
        ("ه\u200d. ق", "ه\u200d. ق"),  # the abbreviation keeps its joining form
        ("ශ්\u200dරී", "ශ්\u200dරී"),  # Sinhala: ZWJ makes a conjunct
        ("അവന്\u200d വന്നു", "അവന്\u200d വന്നു"),  # Malayalam: a chillu at the end of a word
        ("क्\u200dष क्\u200cष", "क्\u200dष क्\u200cष"),  # Devanagari
        ("র\u200d্য", "র\u200d্য"),  # Bengali
        ("می\u200c\u200c\u200bخواهم \u200c", "می\u200cخواهم"),
        ("ab\u200dc\u200cไทย\u200cไทย", "abcไทยไทย"),
        ("a\u2067b\u2069\u202ec\u202c\u061cd\u0000", "abcd"),
        ("e\u200d\u0301", "é"),  # composes as if the joiner had never been there
        ("hi \ud83d", "hi \ufffd"),
        ("  a\t\tb\n c\u00a0d ", "a b c d"),
        ("ＡＢＣ１２３ ﬁ", "ABC123 fi"),
        ("Straße, ÉTÉ!", "Straße, ÉTÉ!"),
        ('He said "so', 'He said "so'),
        ("\u200b \u0007", None),
        ("", None),
        (None, None),
    ],
)
def test_one_form(text, expected):
    assert normalize(text) == expected


JOINED = st.text(alphabet="กขคเงแะา้่ำิัื็ฺํ ๆ0๑ab.نایمකමර්ి്ন্\u0301\u200b\u200c\u200d\u202e\u2067\x00", max_size=30)


@given(st.text() | JOINED)
def test_normalising_twice_changes_nothing_and_leaves_nothing_unseen(text):
    once = normalize(text)
    assert normalize(once) == once
    if once is not None:
        assert once == once.strip()
        assert not any(unicodedata.category(c) == "Cc" for c in once)
        assert "  " not in once
        assert not set(once) & set("\u200b\ufeff\u202a\u202e\u2066\u2069\x00")


@given(st.text(alphabet="กขคงเแะา้่ำิ ๆ0๑ab."))
def test_what_is_counted_does_not_change(text):
    """Normalising moves no letter: only two SARA E become one letter."""
    assert count_characters(normalize(text)) in range(
        count_characters(text) - text.count("เ"), count_characters(text) + 1
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [("น้ำ", 2), ("สวัสดี", 4), ("ที่นี่", 2), ("hello, world!", 10), ("ปี 2569", 5), ("", 0), (None, 0), ("จู้จี้", 2)],
)
def test_marks_belong_to_their_letter(text, count):
    assert count_characters(text) == count


def test_a_hostile_text_takes_no_time():
    started = time.process_time()
    for text in ("\u094d\u200d\u0301" * 50_000, "\u0eb3\u0ec8" * 50_000, "\u0e48\u0e31" * 50_000, "\u200d" * 100_000):
        normalize(text)
    assert time.process_time() - started < seconds(20)


def test_controls_never_leave_a_row():
    row = {
        "text": "a\u202eb\u2067c\x00\ufeff\nd\ud83d",
        "speaker_id": "x\x07",
        "source_file": "a\u202e.wav",
        "source_row": 3,
        "extra": json.dumps(
            {"n\x00": ["\x00a\u2066", {"b": "\u202d"}], "path": "C:\\u0000", "one": 1}, ensure_ascii=False
        ),
        "license": None,
    }
    found = clean_row(row)
    assert (found["text"], found["speaker_id"], found["source_file"]) == ("abc\nd\ufffd", "x", "a\\u202e.wav")
    assert json.loads(found["extra"]) == {"n": ["a", {"b": ""}], "path": "C:\\u0000", "one": 1}
    assert not set(found["extra"]) & set("\u202d\u2066")
    assert (found["source_row"], found["license"]) == (3, None)
    plain = {"text": "น้ำ می\u200cخواهم", "extra": '{"a": "b"}'}
    assert clean_row(plain) == plain


@given(st.text(alphabet=st.characters()))
def test_a_clean_text_is_printable_in_its_own_order(text):
    found = clean(text)
    assert clean(found) == found
    found.encode("utf-8")
    assert not any(unicodedata.category(c) == "Cc" and not c.isspace() for c in found)
    assert not any(
        unicodedata.bidirectional(c) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"} for c in found
    )


def test_the_same_utterance_needs_speaker_and_sentence():
    assert utterance_key("สวัสดี", "s1") == utterance_key("สวัสดี", "s1")
    assert utterance_key("Hello", "s1") == utterance_key("hello", "s1")
    assert utterance_key("สวัสดี", "s1") != utterance_key("สวัสดี", "s2")
    assert utterance_key("a", "bc") != utterance_key("ab", "c")
    assert utterance_key(None, "s1") is None
    assert utterance_key("a", None) is None
