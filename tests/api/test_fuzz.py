"""The API answers as its OpenAPI says, whatever it is asked: a short look; `python -m tests.api.fuzz 300` is a long one."""

import re

from .fuzz import fuzz


def test_schemathesis_finds_no_answer_that_the_openapi_does_not_allow(tmp_path):
    done = fuzz(tmp_path, 20)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 100
    assert "Rate limited" not in done.stdout
