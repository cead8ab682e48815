"""What happens when a device's memory runs out: fewer clips at a time, and who is told what.

There is no GPU in these tests: what torch says of one is set by them, as torch documents it.
"""

import threading
import time

import pytest
import torch

from speechmill.engine import memory
from speechmill.engine.batches import Engine
from speechmill.engine.memory import Budget, DeviceError, first_budget, within_memory
from speechmill.errors import ClipError

OUT = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
GB = 10**9


@pytest.fixture
def gpu(monkeypatch):
    """What the GPU of the tests says of itself; its memory can be changed."""

    class Gpu:
        free, total, reserved, emptied = 130 * GB, 140 * GB, 8 * GB, 0

        def empty(self):
            self.emptied += 1

    found = Gpu()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found.free, found.total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: found.reserved)
    monkeypatch.setattr(torch.cuda, "empty_cache", found.empty)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(memory, "POLL", 0.01)
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    return found


def fits(most, error=OUT):
    """A device function that has room for so many items."""

    def compute(items):
        if len(items) > most:
            raise error
        return [item * 2 for item in items]

    return compute


@pytest.mark.parametrize(
    "error",
    [
        OUT,
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(gpu, error):
    budget = Budget(1600)
    assert within_memory(fits(3, error), range(16), budget, "cuda:0") == [2 * i for i in range(16)]
    assert budget.seconds == 800
    assert gpu.emptied > 0


def test_the_budget_grows_back_and_no_further():
    budget = Budget(100)
    budget.halve(100)
    budget.halve(50)
    assert budget.seconds == 25
    seen = []
    for _ in range(5 * memory.GROW_AFTER):
        within_memory(fits(9), [1], budget, "cpu")
        seen.append(budget.seconds)
    assert seen[memory.GROW_AFTER - 2 : memory.GROW_AFTER] == [25, 50]
    assert seen[-1] == 100


def test_a_processor_out_of_memory_is_halved_too_but_one_clip_fails_the_job():
    assert within_memory(fits(1, MemoryError()), [1, 2, 3], Budget(10), "cpu") == [2, 4, 6]
    with pytest.raises(MemoryError):
        within_memory(fits(0, MemoryError()), [1, 2, 3], Budget(10), "cpu")


def test_a_clip_that_alone_is_too_much_for_a_gpu_costs_only_itself(gpu):
    def compute(items):
        if 7 in items:
            raise OUT
        return [item * 2 for item in items]

    results = within_memory(compute, [1, 7, 3], Budget(10), "cuda:0")
    assert [results[0], results[2]] == [2, 6]
    assert isinstance(results[1], ClipError)
    assert results[1].error_class == "device_memory"
    assert "lower enhance.max_seconds" in results[1].message


def test_a_gpu_without_memory_for_any_clip_blames_none(gpu):
    engine = Engine(lambda item: item, fits(0), "broke", Budget(10), "cuda:0", rate=1, multiple=1)
    with pytest.raises(DeviceError, match="too little memory for every one of 3 clips"):
        list(engine.run(iter([1, 2, 3])))
    engine = Engine(lambda item: item, fits(0), "broke", Budget(10), "cuda:0", rate=1, multiple=1)
    taken = []
    with pytest.raises(DeviceError, match="too little memory"):
        list(engine.run(taken.append(n) or 10 for n in range(1000)))
    assert len(taken) < 100  # it is known early


def test_a_first_clip_that_is_too_large_is_refused_and_all_others_are_computed(gpu):
    def compute(items):
        if 500 in items:
            raise OUT
        return [item * 2 for item in items]

    engine = Engine(lambda item: item, compute, "broke", Budget(20), "cuda:0", rate=1, multiple=1)
    results = [result for window in engine.run(iter([500] + [10] * 50)) for result in window.results]
    assert results[0].error_class == "device_memory"
    assert results[1:] == [20] * 50


def test_a_clip_that_fits_alone_is_not_refused_because_of_the_jobs_own_batches(gpu):
    """A device of 300, with three batches at a time: beside the others, the long clip has no room."""
    lock, held = threading.Lock(), [0]

    def compute(items):
        with lock:
            if held[0] + sum(items) > 300:
                raise OUT
            held[0] += sum(items)
        time.sleep(0.005)
        with lock:
            held[0] -= sum(items)
        return [item * 2 for item in items]

    items = [20] * 40 + [250] + [20] * 40
    engine = Engine(lambda item: item, compute, "broke", Budget(100), "cuda:0", rate=1, multiple=1)
    results = [result for window in engine.run(iter(items)) for result in window.results]
    assert results == [2 * item for item in items]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_the_main_memory_is_no_clips_fault_on_a_gpu_either(gpu, error):
    with pytest.raises(type(error)):
        within_memory(fits(0, error), [1], Budget(10), "cuda:0")


def test_batches_that_fail_together_halve_the_budget_once():
    budget = Budget(100)
    for _ in range(3):
        budget.halve(100)
    assert budget.seconds == 50
    assert within_memory(fits(1), list(range(64)), budget, "cpu") == [2 * i for i in range(64)]
    assert budget.seconds == 25  # not once for each halving on the way to one clip


def test_memory_that_others_hold_is_waited_for(gpu):
    gpu.free, gpu.reserved = 10 * GB, GB

    def compute(items):
        if gpu.free < 50 * GB:
            raise OUT
        return [item * 2 for item in items]

    threading.Timer(0.1, lambda: setattr(gpu, "free", 130 * GB)).start()
    assert within_memory(compute, [1], Budget(10), "cuda:0") == [2]


def test_who_holds_the_memory_is_said_when_it_does_not_come_back(gpu, monkeypatch):
    gpu.free, gpu.reserved = 10 * GB, GB
    monkeypatch.setattr(memory, "MEMORY_TIMEOUT", 0.05)
    with pytest.raises(
        DeviceError, match=r"other processes hold 127\.5 GB of the GPU NVIDIA H200 of node gpu-17"
    ) as error:
        within_memory(fits(0), [1, 2], Budget(10), "cuda:0")
    assert error.value.failure == "out_of_memory"


@pytest.mark.parametrize(
    "message",
    ["CUDA error: an illegal memory access was encountered\nmore", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"],
)
def test_a_lost_gpu_fails_the_job_at_once(gpu, message):
    calls = []

    def compute(items):
        calls.append(len(items))
        raise RuntimeError(message)

    engine = Engine(lambda item: item, compute, "broke", Budget(10), "cuda:0", rate=1, multiple=1)
    with pytest.raises(DeviceError, match=r"gpu-17 failed \(.*see nvidia-smi") as caught:
        list(engine.run(iter([1, 2, 3])))
    assert "\n" not in str(caught.value)
    assert calls[0] == 3
    assert caught.value.failure == "device_lost"
    assert 1 not in calls  # no clip is tried alone on a device that is lost, and none is blamed


def test_the_first_budget(gpu, capsys):
    assert first_budget("cpu", None, 1, 10e6, 1).seconds == memory.CPU_SECONDS
    assert first_budget("cpu", None, 3, 10e6, 1).seconds == memory.CPU_SECONDS / 3
    assert first_budget("cuda:0", None, 1, 10e6, 3).seconds == memory.GPU_SECONDS
    gpu.free = 15 * GB
    assert first_budget("cuda:0", None, 1, 10e6, 3).seconds == pytest.approx(300)
    assert first_budget("cuda:0", None, 2, 10e6, 3).seconds == pytest.approx(150)
    assert first_budget("cuda:0", 70, 1, 10e6, 3).seconds == 70
    assert "15.0 GB of 140.0 GB are free" in capsys.readouterr().out
