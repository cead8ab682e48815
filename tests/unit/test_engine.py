"""Length buckets, order-keeping threads, the isolation of a clip that fails, and the loop over it all."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechmill.engine import batches
from speechmill.engine.batches import Engine, isolate, length_batches
from speechmill.engine.device_errors import is_machine_error
from speechmill.engine.memory import Budget
from speechmill.engine.tensors import exact_convolutions, pad
from speechmill.errors import ClipError
from speechmill.utils.threads import BackgroundWriter, bounded_map, read_ahead


@given(st.lists(st.integers(0, 5000), max_size=200), st.integers(1, 20_000), st.sampled_from([1, 512]))
def test_every_clip_is_in_one_group_within_the_budget(lengths, budget, multiple):
    groups = length_batches(lengths, budget, multiple)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = -(-max(max(lengths[i] for i in group), 1) // multiple) * multiple
        assert len(group) == 1 or longest * len(group) <= budget


def test_groups_hold_clips_of_similar_length():
    assert length_batches([1, 100, 2, 99], 200) == [[1, 3], [2, 0]]


def test_pad_keeps_samples_and_lengths():
    clips = [np.arange(1, 4, dtype=np.float32), np.ones(5, np.float32)]
    batch, lengths = pad(clips, "cpu", multiple=4)
    assert batch.shape == (2, 8)
    assert lengths.tolist() == [3, 5]
    assert batch[0].tolist() == [1, 2, 3, 0, 0, 0, 0, 0]


def test_one_bad_clip_costs_only_itself():
    def work(items):
        if 3 in items:
            raise ValueError("three is bad")
        return [item * 2 for item in items]

    results = isolate(work, [1, 2, 3, 4], "broke")
    assert [r for r in results if not isinstance(r, ClipError)] == [2, 4, 8]
    assert isinstance(results[2], ClipError)
    assert results[2].error_class == "broke"
    assert "three is bad" in results[2].message


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(28, "No space left"),
        torch.cuda.OutOfMemoryError("x"),
        RuntimeError("CUDA error: lost"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_machines_fault_is_never_blamed_on_a_clip(error):
    def work(items):
        raise error

    assert is_machine_error(error)
    with pytest.raises(type(error)):
        isolate(work, [1, 2], "broke")


def test_bounded_map_keeps_order_and_reads_a_bounded_number_ahead():
    taken, used, most = 0, 0, 0
    lock = threading.Lock()

    def items():
        nonlocal taken, most
        for i in range(100):
            with lock:
                taken += 1
                most = max(most, taken - used)
            yield i

    def work(i):
        time.sleep(0.001 * (i % 3))
        return i

    with ThreadPoolExecutor(4) as pool:
        for expected, result in enumerate(bounded_map(pool, work, items(), ahead=8)):
            assert result == expected
            with lock:
                used += 1
    assert used == 100
    assert most <= 9


def test_read_ahead_keeps_order_and_makes_one_ahead():
    made = []

    def items():
        for i in range(5):
            made.append(i)
            yield i

    with ThreadPoolExecutor(1) as pool:
        for item in read_ahead(pool, items()):
            assert len(made) <= item + 2
    assert made == list(range(5))

    def broken():
        yield 1
        raise ValueError("the source broke")

    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="the source broke"):
        list(read_ahead(pool, broken()))


def test_behind_calls_in_order_and_passes_errors_on():
    called = []
    with BackgroundWriter() as behind:
        for i in range(20):
            behind.call(called.append, i)
            assert len(called) >= i - 1
    assert called == list(range(20))
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as behind:
        behind.call(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as behind:
        behind.call(lambda: 1 / 0)
        behind.call(called.append, 20)
    assert called[-1] == 19


def test_exact_convolutions_in_one_thread_are_not_ended_by_another():
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    other = exact_convolutions()
    with ThreadPoolExecutor(1) as pool:
        with exact_convolutions():
            pool.submit(other.__enter__).result()
        assert (cudnn.allow_tf32, cudnn.deterministic) == (False, True)
        pool.submit(other.__exit__, None, None, None).result()
    assert (cudnn.allow_tf32, cudnn.deterministic) == before


def squares(items):
    return [item * item for item in items]


def looping(compute, seconds=10, device="cpu"):
    """Items are numbers, as many samples long as they say, at 1 Hz."""
    return Engine(lambda item: item, compute, "broke", Budget(seconds), device, rate=1, multiple=1)


@given(st.lists(st.integers(0, 30), max_size=80), st.integers(1, 60), st.sampled_from([1, 3]))
def test_every_item_comes_back_in_its_place(items, seconds, workers):
    def unevenly(items):
        time.sleep(0.0005 * (len(items) % 3))
        return squares(items)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "batches_at_once", lambda device: workers)
        windows = list(looping(unevenly, seconds).run(iter(items)))
    pairs = [pair for window in windows for pair in window.pairs()]
    assert pairs == [(item, item * item if item else None) for item in items]


def test_one_bad_item_costs_only_itself_and_what_the_source_says_is_raised():
    def compute(items):
        if 7 in items:
            raise ValueError("seven")
        return squares(items)

    (window,) = looping(compute, 1000).run(iter([5, 7, 9]))
    assert window.results[0] == 25
    assert window.results[2] == 81
    assert window.results[1].error_class == "broke"

    def broken():
        yield from range(1, 50)
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        list(looping(squares, 4).run(broken()))


def test_what_is_held_is_bounded_whatever_the_corpus():
    taken = delivered = most = 0

    def items():
        nonlocal taken
        for _ in range(2000):
            taken += 1
            yield 5

    for window in looping(squares, 20).run(items()):
        delivered += len(window.items)
        most = max(most, taken - delivered)
    assert delivered == 2000
    assert most * 5 <= 4 * batches.WINDOW_BATCHES * 20


def test_windows_grow_to_what_takes_their_time_and_no_further(monkeypatch):
    monkeypatch.setattr(batches, "SMALLEST_WINDOW", 20)
    sizes = [len(window.items) * 5 for window in looping(squares, 20).run(5 for _ in range(400))]
    assert sizes[0] == 20
    assert max(sizes) == batches.WINDOW_BATCHES * 20  # as fast as this is

    def slow(items):
        time.sleep(0.02)
        return squares(items)

    monkeypatch.setattr(batches, "WINDOW_SECONDS", 0.001)
    sizes = [len(window.items) * 5 for window in looping(slow, 20).run(5 for _ in range(100))]
    assert set(sizes[:-1]) == {20}
