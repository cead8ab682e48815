"""Transcripts: Thai and others in one form, and counted without a rule about spaces."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.transcript import count_characters, normalize, utterance_key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("น้ำ", "น้ำ"),  # NFKC alone takes SARA AM apart
        ("น\u0e49\u0e4d\u0e32", "น้ำ"),
        ("ນ\u0ecd\u0eb2", "ນຳ"),  # Lao
        ("ปี ๒๕๖๙", "ปี 2569"),
        ("ต่าง ๆ นานา", "ต่างๆ นานา"),
        ("ต่างๆ นานา", "ต่างๆ นานา"),
        ("เเม่", "แม่"),
        ("ไทย\u200bเดิม\ufeff", "ไทยเดิม"),
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


@given(st.text())
def test_normalising_twice_changes_nothing_and_leaves_nothing_unseen(text):
    once = normalize(text)
    assert normalize(once) == once
    if once is not None:
        assert once == once.strip()
        assert not any(unicodedata.category(c) == "Cc" for c in once)
        assert "  " not in once


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


def test_the_same_utterance_needs_speaker_and_sentence():
    assert utterance_key("สวัสดี", "s1") == utterance_key("สวัสดี", "s1")
    assert utterance_key("Hello", "s1") == utterance_key("hello", "s1")
    assert utterance_key("สวัสดี", "s1") != utterance_key("สวัสดี", "s2")
    assert utterance_key("a", "bc") != utterance_key("ab", "c")
    assert utterance_key(None, "s1") is None
    assert utterance_key("a", None) is None
