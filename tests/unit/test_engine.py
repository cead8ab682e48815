"""Length buckets, order-keeping threads, and the isolation of a clip that fails."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechmill.engine import is_machine_fault, isolate, length_batches, pad
from speechmill.errors import ClipError
from speechmill.parallel import bounded_map


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

    assert is_machine_fault(error)
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
