"""Calls that are repeated: as long as the service may recover, with growing pauses."""

import itertools

import pytest

from speechmill.utils import retry
from speechmill.utils.retry import pause_after


class Clock:
    def __init__(self):
        self.now, self.pauses = 100.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(retry, "time", made)
    return made


def asked(fails, minutes=10, least=0.0, refuses=False, progress=lambda: 0):
    """A call that fails so often; `fails` None: always."""
    attempts = itertools.count(1)

    def call():
        number = next(attempts)
        if fails is None or number <= fails:
            raise OSError(f"attempt {number}")
        return number

    def wait_for(error):
        if refuses:
            raise PermissionError("no") from error
        return least

    return retry.retry(call, "x", minutes, wait_for, lambda error: TimeoutError(str(error)), str, progress)


def test_pauses_grow_and_the_last_is_repeated():
    assert [pause_after(n, (1, 2, 5)) for n in range(1, 6)] == [1, 2, 5, 5, 5]


def test_a_call_is_repeated_until_it_answers(clock, capsys):
    assert asked(7) == 8
    assert clock.pauses == [2, 5, 10, 30, 60, 60, 60]
    assert "x: attempt 1; asked again in 2 s" in capsys.readouterr().out


def test_the_service_may_ask_for_a_longer_pause(clock):
    assert asked(4, least=20) == 5
    assert clock.pauses == [20, 20, 20, 30]


def test_no_pause_ends_after_the_minutes(clock):
    with pytest.raises(TimeoutError, match="attempt 6"):
        asked(None, minutes=2)
    assert clock.now - 100 <= 120


def test_a_refusal_ends_it_at_once(clock):
    with pytest.raises(PermissionError):
        asked(None, refuses=True)
    assert not clock.pauses


def test_progress_starts_the_minutes_and_the_pauses_again(clock):
    steps = itertools.count()
    assert asked(9, minutes=1, progress=lambda: next(steps)) == 10
    assert set(clock.pauses) == {2}
