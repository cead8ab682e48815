"""Text that others wrote."""

import pytest

from speechmill.utils.text import plain


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("a\nb\x00c", 9, "a b c"),
        ("abcdef", 4, "abc…"),
        ("abcd", 4, "abcd"),
        (" a \u202e\u200b  b\u2028", 9, "a b"),
        ("ก\u0e48า", 9, "ก\u0e48า"),
        (5, 4, "5"),
    ],
)
def test_one_line_without_what_cannot_be_seen(text, length, expected):
    assert plain(text, length) == expected
