"""What the folder of a run tells, and who reads it."""

import json
import threading
import types

from speechmill.api import journal, records
from speechmill.api.store import Run

from ..runs import wait_for


def test_a_folder_tells_of_its_runs_as_they_were_last(tmp_path):
    made = [
        Run(
            f"2026010100000{n}-00000000",
            "demo",
            str(tmp_path),
            "{}",
            "{}",
            "me",
            f"2026-01-0{n}",
            hours=0.5,
            key=f"k{n}",
        )
        for n in range(1, 5)
    ]
    for run in made:
        journal.note_created(run)
        if run is made[3]:
            break
        journal.note(tmp_path, "taken", run.id, runner="{}")
        journal.note(tmp_path, "ended", run.id, state="failed", error="why", final={"clips": 3})
    journal.note(tmp_path, "resumed", made[1].id)
    journal.note(tmp_path, "resumed", made[2].id)
    journal.note(tmp_path, "taken", made[2].id, runner="another")
    with open(tmp_path / journal.FILE, "ab") as file:
        file.write(b'{"event": "ended", "id": "')  # cut short by a crash
    found = {run.id: run for run in journal.runs_of(tmp_path)}
    assert [found[run.id].state for run in made] == ["failed", "queued", "lost", "queued"]
    first, second, third, fourth = (found[run.id] for run in made)
    assert (first.last_error, json.loads(first.final), first.hours, first.key) == ("why", {"clips": 3}, 0.5, "k1")
    assert (second.ended, second.runner, third.runner, fourth) == (None, None, "another", made[3])
    journal.note(tmp_path, "ended", made[3].id, state="succeeded")
    assert journal.runs_of(tmp_path)[3].state == "succeeded"


def test_whoever_asks_while_a_folder_is_read_again_gets_what_was_there(monkeypatch):
    clock, calls, gate = [100.0], [], threading.Event()

    def slow(reader):
        calls.append(reader)
        if len(calls) == 2:
            gate.wait(30)
        return records.Reading({"reading": len(calls)}, [])

    monkeypatch.setattr(records, "read", slow)
    monkeypatch.setattr(records, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    kept = records.Records(keep_seconds=1)
    assert kept.read("a").record == {"reading": 1}
    clock[0] += 1.5
    assert [kept.read("a").record for _ in range(20)] == [{"reading": 1}] * 20  # and the second one waits
    gate.set()
    wait_for(lambda: kept.read("a").record == {"reading": 2}, 30)
    assert len(calls) == 2
    clock[0] += 3  # nobody asked for long: what was there is too old
    assert kept.read("a").record == {"reading": 3}
