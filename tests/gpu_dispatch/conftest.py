"""The check is driven by stand-ins for kernels here, with or without Triton and the library of CUDA kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mnv3_fast.gpu import cuda_library, first_use
from tests.gpu_dispatch.graph_recorder import WEIGHTS, Chain, Recorder, install


@pytest.fixture(autouse=True)
def _with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "triton_version", lambda: ("0.0", None))


@pytest.fixture(autouse=True)
def _without_library() -> Iterator[None]:
    cached = cuda_library.load, cuda_library.hash_of

    def clear() -> None:
        for each in cached:
            each.cache_clear()

    clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_library, "missing_reason", lambda: "this is a test")
        yield
    clear()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """In the place of CUDA's graphs."""
    return install(monkeypatch)


@pytest.fixture
def chain() -> Any:
    """An executor of five launches."""
    pytest.importorskip("triton")
    from mnv3_fast.gpu.executor import Executor

    return Executor(Chain(WEIGHTS))
