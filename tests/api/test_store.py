"""The table of runs: whatever happens in whatever order, a corpus has one active run, and a run one supervisor."""

import json
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from speechmill.api.store import ENDED, Busy, KeyReused, Run, Store, new_id

DATASETS = st.sampled_from(["a", "b"])


def make_run(dataset="a", key=None, body="x", **about) -> Run:
    run = Run(new_id(), dataset, f"/results/{dataset}", "{}", "{}", "tester", "2026-01-01", key=key, body=body)
    return Run(**(vars(run) | about))


class Runs(RuleBasedStateMachine):
    """People, supervisors, kills and the server, in any order; `owned` is who works on which run by our own account."""

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.folder.name))
        self.owned = {}
        self.keys = {}
        self.ids = []
        self.number = 0

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(dataset=DATASETS, key=st.sampled_from([None, "k1", "k2"]))
    def trigger(self, dataset, key):
        run = make_run(dataset, key, body=dataset)
        is_busy = bool(self.store.active(dataset))
        try:
            made = self.store.create(run)
        except Busy:
            assert is_busy
        except KeyReused:
            assert self.store.get(self.keys[key]).dataset != dataset
        else:
            if key in self.keys:
                assert made.id == self.keys[key]
            else:
                assert made.id == run.id
                assert not is_busy
                self.ids.append(run.id)
                if key:
                    self.keys[key] = run.id

    @rule(data=st.data(), is_current=st.booleans())
    def take(self, data, is_current):
        if not self.ids:
            return
        run = self.store.get(data.draw(st.sampled_from(self.ids)))
        self.number += 1
        me = f"supervisor {self.number}"
        taken = self.store.claim(run.id, me, run.runner if is_current else "another", 0)
        assert (taken is not None) == (is_current and run.is_active)
        if taken:
            self.owned[run.id] = me

    @rule(data=st.data(), how=st.sampled_from(["cancel", "drain"]))
    def want(self, data, how):
        if self.ids:
            run = self.store.request_stop(data.draw(st.sampled_from(self.ids)), how)
            assert run.state in (*ENDED, "cancelling", "draining")

    @rule(data=st.data(), state=st.sampled_from(ENDED), is_owner=st.booleans())
    def end(self, data, state, is_owner):
        if not self.ids:
            return
        run = self.store.get(data.draw(st.sampled_from(self.ids)))
        me = self.owned.get(run.id, "nobody") if is_owner else "nobody"
        done = self.store.end(run.id, me, state, None, None, {})
        assert done == (run.is_active and me == run.runner)
        if done:
            del self.owned[run.id]

    @rule(data=st.data())
    def move(self, data):
        for run_id, me in self.owned.items():
            before = self.store.get(run_id)
            self.store.move(run_id, me, data.draw(st.sampled_from(["running", "retrying"])))
            if before.wanted:
                assert self.store.get(run_id).state == before.state

    @rule(data=st.data(), for_good=st.sampled_from([None, "failed", "cancelled"]))
    def lose(self, data, for_good):
        if self.owned:
            run_id = data.draw(st.sampled_from(sorted(self.owned)))
            self.store.mark_lost(run_id, self.owned[run_id], "died", for_good)
            if for_good:
                del self.owned[run_id]
                assert self.store.get(run_id).state == for_good

    @rule(data=st.data())
    def reopen(self, data):
        if not self.ids:
            return
        run = self.store.get(data.draw(st.sampled_from(self.ids)))
        is_busy = bool(self.store.active(run.dataset))
        try:
            found = self.store.reopen(run.id, "resumed")
        except Busy:
            assert is_busy or run.state == "succeeded"
        else:
            assert not is_busy
            assert (found.state, found.runner, found.wanted, found.ended) == ("queued", None, None, None)

    @invariant()
    def a_corpus_has_one_active_run(self):
        if hasattr(self, "store"):
            active = [run.dataset for run in self.store.active()]
            assert len(active) == len(set(active))

    @invariant()
    def every_run_is_there_and_its_history_ends_where_it_is(self):
        if hasattr(self, "store"):
            assert {run.id for run in self.store.runs()} == set(self.ids)
            for run_id in self.ids:
                run = self.store.get(run_id)
                assert self.store.history(run_id)[-1]["state"] == run.state
                assert (run.ended is not None) == (not run.is_active)
                assert run.runner == self.owned.get(run_id)


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


def at_once(count, work):
    """What `work` gives in so many threads that begin together."""
    found = []
    barrier = threading.Barrier(count)

    def call(number):
        barrier.wait()
        found.append(work(number))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_of_many_supervisors_that_want_a_run_at_once_one_gets_it(tmp_path):
    store = Store(tmp_path)
    run = store.create(make_run())
    taken = at_once(8, lambda number: Store(tmp_path).claim(run.id, f"supervisor {number}", None, 0))
    (winner,) = filter(None, taken)
    assert store.get(run.id).runner == winner.runner


def test_of_many_requests_with_one_key_at_once_there_is_one_run(tmp_path):
    Store(tmp_path)
    made = at_once(8, lambda number: Store(tmp_path).create(make_run(key="k")).id)
    assert len(made) == 8
    assert len(set(made)) == 1


def test_of_many_requests_at_once_one_begins_and_the_others_hear_of_it(tmp_path):
    Store(tmp_path)

    def create(number):
        try:
            return Store(tmp_path).create(make_run()).id
        except Busy as error:
            return "busy", error.active

    made = at_once(8, create)
    (begun,) = (each for each in made if isinstance(each, str))
    assert made.count(("busy", begun)) == 7


def test_runs_are_paged_from_the_newest_without_gaps_while_others_come(tmp_path):
    store = Store(tmp_path)
    made = [store.create(make_run(f"d{n}", created=f"2026-01-0{1 + n // 3}")) for n in range(9)]
    expected = [run.id for run in sorted(made, key=lambda run: (run.created, run.id), reverse=True)]
    found, before = [], None
    while page := store.runs(limit=2, before=before):
        found += [run.id for run in page]
        before = (page[-1].created, page[-1].id)
        store.create(make_run(f"new{len(found)}", created="2026-02-01"))
    assert found == expected


def test_restarts_count_supervisors_that_died_without_bringing_anything_forward(tmp_path):
    store = Store(tmp_path)
    run = store.create(make_run())
    before = None
    counts = []
    for number, progress in enumerate([0, 0, 0, 3, 3]):
        counts.append(store.claim(run.id, f"r{number}", before, progress).restarts)
        before = f"r{number}"
    assert counts == [0, 1, 2, 1, 2]


def test_failed_runs_are_told_apart_by_whether_a_job_failed(tmp_path):
    store = Store(tmp_path)
    for number, final in enumerate(
        [None, {}, {"stages": None}, {"stages": [{"given_up": 0}]}, {"stages": [{"given_up": 2}]}]
    ):
        store.create(make_run(f"d{number}", state="failed", final=None if final is None else json.dumps(final)))
    assert store.failed_in_jobs() == 1


def test_the_data_base_is_private(tmp_path):
    assert Store(tmp_path).path.stat().st_mode & 0o077 == 0


def test_a_second_schedule_run_of_the_same_moment_is_not_taken(tmp_path):
    store = Store(tmp_path)
    store.add_schedule("a", "@daily", "{}", "tester", 100.0)
    (due,) = store.schedules(due_at=100.0)
    assert store.advance_schedule(due, 200.0)
    assert not store.advance_schedule(due, 200.0)
    assert store.schedules(due_at=199.0) == []


@pytest.mark.parametrize("state", ENDED)
def test_a_run_that_has_ended_frees_its_corpus(tmp_path, state):
    store = Store(tmp_path)
    run = store.create(make_run())
    store.claim(run.id, "me", None, 0)
    assert store.end(run.id, "me", state, None, None, {})
    assert store.create(make_run()).id != run.id
