"""Who reads the folder of a run."""

import threading
import types

from speechmill.api import records

from ..patience import seconds
from ..runs import wait_for


def test_whoever_asks_while_a_folder_is_read_again_gets_what_was_there(monkeypatch):
    clock, calls, gate = [100.0], [], threading.Event()

    def slow(reader):
        calls.append(reader)
        if len(calls) == 2:
            gate.wait(seconds(600))
        return records.Reading({"reading": len(calls)}, [])

    monkeypatch.setattr(records, "read", slow)
    monkeypatch.setattr(records, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    kept = records.Records(keep_seconds=1)
    assert kept.read("a").record == {"reading": 1}
    clock[0] += 1.5
    assert [kept.read("a").record for _ in range(20)] == [{"reading": 1}] * 20  # and the second one waits
    gate.set()
    wait_for(lambda: kept.read("a").record == {"reading": 2})
    assert len(calls) == 2
    clock[0] += 3  # nobody asked for long: what was there is too old
    assert kept.read("a").record == {"reading": 3}
