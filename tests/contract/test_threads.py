"""Row "threads": forward from several Python threads, inside of parallel regions, with changing numbers; memory flat."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.engine import cache
from tests.contract.common import X, accelerated, assert_same_as_stock, fresh
from tests.models.common import cached_parity_model

SHAPES = ((1, 96, 96), (3, 64, 64), (2, 65, 33), (1, 1, 1), (4, 32, 224))


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def hammer(
    runs: list[Callable[[torch.Tensor], torch.Tensor]], seconds: float, python_threads: int
) -> tuple[int, float]:
    """Calls of every run with every shape from all threads; how many there were, and how memory grew in MiB."""
    inputs = [testing.parity_images(n, h, w, seed=n) for n, h, w in SHAPES]
    with torch.no_grad():
        expected = [[run(x) for x in inputs] for run in runs]
    failures: list[Any] = []
    calls = [0] * python_threads
    grown: list[float] = []

    def work(thread: int) -> None:
        step = thread
        try:
            while time.monotonic() < end and not failures:
                torch.set_num_threads(1 + step % 3)
                r, i = step % len(runs), (step // len(runs)) % len(inputs)
                with torch.no_grad():
                    if not torch.equal(runs[r](inputs[i]), expected[r][i]):
                        failures.append((r, i))
                step += 1
                calls[thread] += 1
        except Exception as error:
            failures.append(error)

    begin = time.monotonic()
    end = begin + seconds
    threads = [threading.Thread(target=work, args=(i,)) for i in range(python_threads)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 3)  # arenas and pools have grown to what the shapes need
    grown.append(resident_mib())
    for thread in threads:
        thread.join()
    assert not failures
    return sum(calls), resident_mib() - grown[0]


def subjects() -> list[Callable[[torch.Tensor], torch.Tensor]]:
    return [
        mnv3_fast.freeze(cached_parity_model("large")),
        mnv3_fast.freeze(cached_parity_model("small")),
        mnv3_fast.accelerate(cached_parity_model("small")),
    ]


def test_eight_python_threads() -> None:
    calls, _ = hammer(subjects(), 4, 8)
    assert calls > 80


@pytest.mark.slow
def test_eight_python_threads_for_a_minute() -> None:
    calls, grown = hammer(subjects()[:2], 60, 8)
    assert calls > 1000
    assert grown < 64


def test_first_calls_at_the_same_time() -> None:
    """All threads find a model whose weights nobody has packed yet."""
    expected = fresh()
    with torch.no_grad():
        want = expected(X)
    for _ in range(3):
        model = accelerated()
        barrier = threading.Barrier(6)

        def call(_: int, model: nn.Module = model, barrier: threading.Barrier = barrier) -> torch.Tensor:
            barrier.wait()
            with torch.no_grad():
                return model(X)

        with ThreadPoolExecutor(6) as pool:
            for output in pool.map(call, range(6)):
                assert testing.relative_error(output, want) <= testing.NET_LIMIT


def test_a_thread_that_trains_beside_one_that_refreshes() -> None:
    """Packed weights come and go under a running model; no call fails."""
    model = accelerated()
    stop = threading.Event()

    def forget() -> None:
        while not stop.wait(0.001):
            mnv3_fast.refresh(model)

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        with torch.no_grad():
            expected = fresh()(X)
            for _ in range(60):
                assert testing.relative_error(model(X), expected) <= testing.NET_LIMIT
    finally:
        stop.set()
        thread.join()


def parallel_for(count: int, body: Callable[[int], None]) -> None:
    """torch's own ``at::parallel_for`` through its C interface: ``body`` runs on the threads of its pool."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    signature = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)

    def chunk(begin: int, end: int, _: Any) -> None:
        for i in range(begin, end):
            body(i)

    arguments = (ctypes.c_int64(0), ctypes.c_int64(count), ctypes.c_int64(1), signature(chunk), None)
    assert library.torch_parallel_for(*arguments) == 0


def test_inside_a_parallel_region_of_torch() -> None:
    """Called where torch's own pool is already at work: regions inside of one run on one thread, rightly."""
    torch.set_num_threads(2)
    for run in subjects():
        with torch.no_grad():
            expected = run(X)
        seen: dict[int, tuple[int, bool]] = {}

        def body(i: int, run: Any = run, expected: Any = expected, seen: Any = seen) -> None:
            with torch.no_grad():
                seen[i] = threading.get_native_id(), torch.equal(run(X), expected)

        parallel_for(4, body)
        assert sorted(seen) == [0, 1, 2, 3]
        assert all(equal for _, equal in seen.values())
        assert len({thread for thread, _ in seen.values()}) == 2


def test_backward_from_several_threads() -> None:
    models = [accelerated() for _ in range(2)]
    losses = [model(X).sum() for model in models]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda loss: loss.backward(), losses))
    stock = fresh()
    stock(X).sum().backward()
    for model in models:
        for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
            assert testing.relative_error(ours.grad, theirs.grad) <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_set_num_threads_is_honoured(count: int) -> None:
    expected = [run(X) for run in subjects()]
    torch.set_num_threads(count)
    for run, want in zip(subjects(), expected, strict=True):
        assert torch.equal(run(X), want)
    assert torch.get_num_threads() == count


def use_and_drop(count: int) -> float:
    """Models made, accelerated, run and dropped; how memory grew in MiB after the first few."""
    begin = 0.0
    for i in range(count):
        model = accelerated()
        with torch.no_grad():
            model(X)
        model.train().eval()
        with torch.no_grad():
            model(X)
        del model
        if i == min(10, count // 2):
            begin = resident_mib()
    return resident_mib() - begin


def test_dropped_models_are_freed_at_once() -> None:
    """Without the garbage collector: nothing of ours holds a model by a cycle."""
    before = cache.size()
    gc.collect()
    gc.disable()
    try:
        model = accelerated()
        with torch.no_grad():
            model(X)
        assert cache.size() > before
        died = [weakref.ref(model), weakref.ref(model.features[3]), weakref.ref(model.features[3].block[0][0].weight)]
        del model
        assert [ref() for ref in died] == [None] * 3
        assert cache.size() == before
        assert use_and_drop(30) < 60  # one model with its packed weights is 20 MiB
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_thousand_models() -> None:
    assert use_and_drop(1000) < 60


@torch.no_grad()
def test_engines_are_freed() -> None:
    begin = 0.0
    for i in range(30):
        mnv3_fast.freeze(cached_parity_model("small"))(X)
        if i == 5:
            begin = resident_mib()
    assert resident_mib() - begin < 40
    assert_same_as_stock(accelerated())
