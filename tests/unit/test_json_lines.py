"""Files of JSON lines: a line that was cut short costs only itself."""

import json
import os

import pytest

from speechmill.storage import json_lines


def test_lines_are_read_in_their_order(tmp_path):
    path = tmp_path / "a.jsonl"
    for number in range(3):
        json_lines.append(path, json.dumps({"n": number}), fsync=number == 2)
    assert [line["n"] for line in json_lines.read(path)] == [0, 1, 2]
    assert path.read_bytes() == b'{"n": 0}\n{"n": 1}\n{"n": 2}\n'


@pytest.mark.parametrize("damage", [b'{"n": ', b"\xff\xfe", b"[1]", b"null", b"[" * 100_000])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_damaged_line_costs_only_itself(tmp_path, damage, end):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 0}\n' + damage + end)
    json_lines.append(path, '{"n": 1}')
    assert [line["n"] for line in json_lines.read(path)] == [0, 1]
    assert path.read_bytes() == b'{"n": 0}\n' + damage + b'\n{"n": 1}\n'


def test_what_cannot_be_opened_is_raised(tmp_path):
    with pytest.raises(FileNotFoundError):
        json_lines.read(tmp_path / "none.jsonl")
    with pytest.raises(IsADirectoryError):
        json_lines.append(tmp_path, "{}")
    assert os.listdir(tmp_path) == []
