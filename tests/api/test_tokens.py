"""Who may call, and what for: the file of tokens."""

import pytest

from speechmill.api.auth import Tokens, new_token
from speechmill.errors import SpeechmillError


def test_a_token_is_known_by_its_checksum_until_its_line_is_deleted(tmp_path):
    path = tmp_path / "tokens"
    first, second = new_token(path, "first", "read"), new_token(path, "second", "trigger,read")
    tokens = Tokens(path)
    assert tokens.caller(f"Bearer {first}").scopes == {"read"}
    assert tokens.caller(f"bearer {second}").scopes == {"read", "trigger"}
    assert first not in path.read_text()
    path.write_text(path.read_text().splitlines()[1] + "\n")
    assert tokens.caller(f"Bearer {first}") is None
    assert tokens.caller(f"Bearer {second}").name == "second"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_file_of_tokens_that_others_can_read_lets_nobody_in(tmp_path, mode):
    path = tmp_path / "tokens"
    token = new_token(path, "first", "read")
    path.chmod(mode)
    tokens = Tokens(path)
    assert tokens.caller(f"Bearer {token}") is None
    assert "chmod 600" in tokens.trouble
    path.chmod(0o600)
    assert tokens.caller(f"Bearer {token}").name == "first"


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("a b", "read"), ("a\nb read", "read"), ("", "read"), ("a", "write"), ("a", "read,"), ("a", "")],
)
def test_names_and_scopes_of_tokens_are_checked(tmp_path, name, scopes):
    with pytest.raises(SpeechmillError):
        new_token(tmp_path / "tokens", name, scopes)
    assert not (tmp_path / "tokens").exists()


def test_a_token_is_added_after_a_line_that_an_editor_left_open(tmp_path):
    path = tmp_path / "tokens"
    first = new_token(path, "first", "read")
    path.write_text(path.read_text().rstrip("\n"))
    second = new_token(path, "second", "read")
    tokens = Tokens(path)
    assert [tokens.caller(f"Bearer {token}").name for token in (first, second)] == ["first", "second"]


def test_a_name_has_one_token(tmp_path):
    new_token(tmp_path / "tokens", "a", "read")
    with pytest.raises(SpeechmillError, match="delete its line"):
        new_token(tmp_path / "tokens", "a", "read")
