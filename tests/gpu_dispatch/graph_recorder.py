"""Stands for CUDA and its graphs: what is started during a capture is recorded and not run, and run by each replay.

It works on CPU tensors, so that results of replays can be looked at: with Triton's interpreter beneath, or with
:class:`Chain`, a network of launches that are lines of torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.gpu import graphs
from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.launch import AnyLaunch, CudaLaunch, Launch

Event = tuple[str, Any]


class Recorder:
    """What happened, in order: ("run", launch), ("capture", graph), ("record", launch), ("end", graph), ("replay", graph),
    ("copy", (source, target)).

    Attributes:
        during: called while a capture is under way, behind its last launch; may raise.
        forgets: so many launches a replay leaves out.
        graphs: how many were captured.
    """

    forgets = 0

    def __init__(self, run: Callable[[AnyLaunch], None]) -> None:
        self._start, self._one = run, threading.Lock()
        self._here = threading.local()
        self.events: list[Event] = []
        self.during: Callable[[], None] = lambda: None
        self.graphs = 0

    def _run(self, launch: AnyLaunch) -> None:
        with self._one:  # Triton's interpreter is for one thread at a time
            self._start(launch)

    def started(self, launch: AnyLaunch) -> None:
        """Takes the place of ``Launch.run``."""
        graph = getattr(self._here, "graph", None)
        self.events.append(("run" if graph is None else "record", launch))
        if graph is None:
            self._run(launch)
        else:
            graph.launches.append(launch)

    def capture(self, graph: Recorded, start: Callable[[], None]) -> None:
        """As CUDA does for the current stream, which each thread has for itself."""
        self.events.append(("capture", graph))
        self._here.graph = graph
        try:
            start()
            self.during()
            self.graphs += 1
        finally:
            self._here.graph = None
            self.events.append(("end", graph))

    def replay(self, graph: Recorded) -> None:
        """Runs what was recorded, on the memory that it was recorded with."""
        self.events.append(("replay", graph))
        for launch in graph.launches[self.forgets :]:
            self._run(launch)

    def words(self) -> list[str]:
        """What happened since this was last asked; launches with the name of their kernel."""
        found, self.events = self.events, []
        return [f"{word} {what.kernel.__name__}" if hasattr(what, "kernel") else word for word, what in found]


class Recorded:
    """In place of :class:`mnv3_fast.gpu.graphs.Graph`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.launches: list[AnyLaunch] = []

    def capture(self, start: Callable[[], None]) -> None:
        self._recorder.capture(self, start)

    def replay(self) -> None:
        self._recorder.replay(self)


def install(monkeypatch: pytest.MonkeyPatch, proved: bool = True) -> Recorder:
    """A recorder in CUDA's place, for tensors of any device; ``proved``: replays there have been right before."""
    runs = {kind: kind.run for kind in (Launch, CudaLaunch)}
    recorder = Recorder(lambda launch: runs[type(launch)](launch))
    for kind in runs:
        monkeypatch.setattr(kind, "run", lambda launch: recorder.started(launch))
    monkeypatch.setattr(graphs, "Graph", lambda device: Recorded(recorder))
    from mnv3_fast.gpu import executor  # needs Triton

    copy = executor._copy
    monkeypatch.setattr(executor, "_copy", lambda *both: recorder.events.append(("copy", both)) or copy(*both))
    monkeypatch.setattr(graphs, "_has_graphs", lambda device: True)
    monkeypatch.setattr(graphs, "_TELLS", True)
    monkeypatch.setattr(graphs, "_right", dict.fromkeys(map(torch.device, ("cpu", "meta")), True) if proved else {})
    return recorder


class Step:
    """Stands for a kernel: output = factor * input + 1."""

    def __init__(self, place: int) -> None:
        self.__name__ = f"{place}"

    def __getitem__(self, grid: Any) -> Any:
        return self._start

    @staticmethod
    @torch.inference_mode()  # which tensors were made in is of no interest to kernels
    def _start(input: Tensor, output: Tensor, weight: Tensor, num_warps: int, num_stages: int, **rest: Any) -> None:
        torch.add(torch.ones_like(output), input * weight, out=output)


class Chain:
    """In place of ``mnv3_fast.gpu.network.Network``: x -> weights[0] * x + 1 -> ..., a launch each.

    Args:
        weights: a number for each launch.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.clone()  # as a network packs them

    def starts_with_stem(self) -> bool:
        return True

    def kernels(self) -> set[str]:
        return set()

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(shape)] * len(self.weights)

    def arena(self, input: Tensor, upcast: bool = False) -> Arena:
        arena = Arena(self.device)
        self.launches(input, torch.empty(tuple(input.shape), device="meta"), arena)
        arena.allocate()
        return arena

    def launches(self, input: Tensor, output: Tensor, arena: Arena, upcast: bool = False) -> list[Launch]:
        found, x = [], input
        for i in range(len(self.weights)):
            last = i == len(self.weights) - 1
            y = output if last else arena.take(("even", "odd")[i % 2], tuple(input.shape), self.dtype)
            found.append(Launch(Step(i), (1, 1, 1), {"input": x, "output": y, "weight": self.weights[i]}, {}))
            x = y
        return found

    def expected(self, input: Tensor) -> Tensor:
        """Of a pass."""
        x = input.to(self.dtype)
        for weight in self.weights:
            x = 1 + x * weight
        return x


WEIGHTS = torch.tensor([0.5, -1.25, 3.0, 0.75, -2.0])
PLAIN = [f"run {i}" for i in range(5)]
CAPTURED = ["copy", *PLAIN, "copy", "capture", *[f"record {i}" for i in range(5)], "end"]
REPLAYED = ["copy", "replay", "copy"]
"""What happens in a call of a chain of these: launches one by one; they and their capture; and a replay of it."""
LARGE_CAPTURED = [*PLAIN, "capture", "record 1", "record 2", "record 3", "end"]
LARGE_REPLAYED = ["run 0", "replay", "run 4"]
"""The same where input and output are too large to be copied."""


def image(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 4, 4), generator=torch.Generator().manual_seed(seed))


def check(chain: Any, x: Tensor) -> None:
    """A call of an executor of a :class:`Chain`, whose result is right."""
    assert torch.equal(chain.run(x), chain.network.expected(x))


def at_the_same_time(*works: Callable[[], None]) -> None:
    """Each in a thread of its own; raises what one of them raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
