"""What the class behind which CUDA's graphs sit asks of torch and of the driver, written down by stand-ins for both."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mnv3_fast.gpu import graphs
from mnv3_fast.gpu.launch import Launch

DEVICE = torch.device("cuda", 1)


class Kernel:
    """Stands for a kernel of Triton's; writes down that it was started."""

    __name__ = "some_kernel"

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __getitem__(self, grid: Any) -> Any:
        return lambda **rest: self.events.append("start")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What torch was asked for, in order."""
    found: list[str] = []

    class CUDAGraph:
        error: str | None = None

        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            found.append(f"begin {capture_error_mode}")

        def capture_end(self) -> None:
            found.append("end")
            if self.error:
                raise RuntimeError(self.error)

        def replay(self) -> None:
            found.append("replay")

    @contextmanager
    def stream(stream: Any) -> Iterator[None]:
        found.append(f"enter {stream}")
        try:
            yield
        finally:
            found.append("leave")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(graphs, "_stream_of", lambda index: f"stream of {index}")
    yield found
    assert graphs._lock.acquire(blocking=False), "the lock is still held"
    graphs._lock.release()


def launches(events: list[str]) -> list[Launch]:
    return [Launch(Kernel(events), (1, 1, 1), {"x": torch.zeros(1)}, {})] * 2


def test_a_capture_and_its_replays(events: list[str]) -> None:
    graph = graphs.captured(launches(events), DEVICE)
    assert graph is not None
    assert events == ["enter stream of 1", "begin relaxed", "start", "start", "end", "leave"]
    events.clear()
    graph.replay()
    graph.replay()
    assert events == ["replay", "replay"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_a_launch_ends_the_capture(
    events: list[str], error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what is raised, also where the end raises because of it."""
    monkeypatch.setattr(torch.cuda.CUDAGraph, "error", "operation failed due to a previous error during capture")

    def fail(launch: Launch) -> None:
        raise error("no memory")

    monkeypatch.setattr(Launch, "run", fail)
    with pytest.raises(error, match="^no memory$"):
        graphs.captured(launches(events), DEVICE)
    assert events == ["enter stream of 1", "begin relaxed", "end", "leave"]


def test_an_error_at_the_end(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda.CUDAGraph, "error", "invalidated")
    with pytest.raises(RuntimeError, match="^invalidated$"):
        graphs.captured(launches(events), DEVICE)
    assert events[-2:] == ["end", "leave"]


def test_a_second_capture_does_not_begin(events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with graphs.turn() as first, graphs.turn() as second:
        assert (first, second) == (True, False)
    with graphs.turn() as third:
        assert third
    monkeypatch.setattr(graphs, "_captures", {"theirs"})
    with graphs.turn() as fourth:
        assert not fourth
    assert events == []


@pytest.mark.parametrize("status", [0, 201])
def test_the_stream_is_nobody_elses(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Made by the driver, on the device, without ties to the default stream; once for a device."""
    events: list[Any] = []

    def create(handle: Any, flags: int) -> int:
        events.append(f"create {flags}")
        if status == 0:
            ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = 4711
        return status

    @contextmanager
    def device(index: int) -> Iterator[None]:
        events.append(f"on {index}")
        yield

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuStreamCreate=create))
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: (handle, device))
    query = SimpleNamespace(query=lambda: events.append("query"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: query)
    graphs._stream_of.cache_clear()
    try:
        if status:
            with pytest.raises(RuntimeError, match="^mnv3_fast: cuStreamCreate returned CUDA's error 201$"):
                graphs._stream_of(1)
        else:
            assert graphs._stream_of(1) == graphs._stream_of(1) == (4711, 1)
        assert events == ["query", "on 1", "create 1"]
    finally:
        graphs._stream_of.cache_clear()


def test_why_nothing_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(graphs, "_TELLS", True)
    assert graphs.missing_reason(DEVICE) is None
    assert graphs.missing_reason(torch.device("cpu")) == "CUDA graphs are for NVIDIA's GPUs"
    with graphs.switched_off():
        assert graphs.missing_reason(DEVICE) == "CUDA graphs are switched off"
    assert graphs.missing_reason(DEVICE) is None
    monkeypatch.setattr(graphs, "_TELLS", False)
    assert "torch 2.15 does" in str(graphs.missing_reason(DEVICE))
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm's torch, whose devices are called so, too
    assert graphs.missing_reason(DEVICE) == "CUDA graphs are for NVIDIA's GPUs"


def test_a_torch_that_does_not_tell_of_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda.graphs, "register_graph_capture_start_hook", raising=False)
    assert graphs._watch() is False


def test_what_is_asked_of_torch_is_there() -> None:
    """The stand-ins above have torch's own names and parameters."""
    if not graphs._TELLS:
        pytest.skip("this torch does not tell of captures")
    assert "capture_error_mode" in inspect.signature(torch.cuda.CUDAGraph.capture_begin).parameters
    assert list(inspect.signature(torch.cuda.CUDAGraph.capture_end).parameters) == ["self"]
    assert list(inspect.signature(torch.cuda.CUDAGraph.replay).parameters) == ["self"]
    assert list(inspect.signature(torch.cuda.ExternalStream.__new__).parameters)[1:3] == ["stream_ptr", "device"]
    assert callable(torch.cuda.Stream.query)
