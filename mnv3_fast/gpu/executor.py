"""Running a packed network on a device: its launches are made once for each kind of input and bound to each call's.

Passes that are under way at the same time, in other threads or on other streams, have arenas of their own. The second
call of a pass captures its launches in a CUDA graph, later ones replay it. A graph has fixed addresses: a small input
is copied to memory of the graph's, and the output from there. Where that would move many bytes, the launches that read
the caller's input or write its output stay outside of the graph. Nobody else ever sees a graph's memory.
"""

from __future__ import annotations

import copy
import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu import Progress, choice, first_use, graphs, launch
from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.network import Network
from mnv3_fast.gpu.outcomes import one_line
from mnv3_fast.gpu.precision import dot_precision
from mnv3_fast.ops.elements import dense_nhwc, empty_nhwc

logger = logging.getLogger("mnv3_fast")

KEPT_PASSES = 8
"""Kinds of input (shape, dtype, strides, stream) whose launches, arena and graph an executor keeps; of each kind as
many as there were calls at the same time."""
COPIED_BYTES = 4 << 20
"""Of an input and its output, up to which they are copied. To read and write 4 MiB takes 28 us at 300 GB/s (L4), 3 us
on an H100, and two launches 5 us more. To start two of Triton's kernels in place of two copies takes Python about 40 us
(docs/decisions.md), which the GPU's work on a larger input hides."""
KNOWN_SHAPES = 256
"""Shapes of inputs of which an executor remembers what comes of them."""
Key = tuple[Any, ...]


@dataclass
class Pass:
    """The launches of a pass over one kind of input, without the input and output that each call has of its own.

    Attributes:
        launches: in order.
        inputs, outputs: which of them, by which argument, read the input and write the output.
        arena: keeps what lies between the layers.
        graph: once it has been captured: of all launches on ``copies``, or of :attr:`inner`.
        copies: the graph's own input and output.
        captures: whether there may still be a graph.
        loaded: whether the launches have been run, which has loaded their kernels.
    """

    launches: list[AnyLaunch]
    inputs: list[tuple[int, str]]
    outputs: list[tuple[int, str]]
    arena: Arena
    graph: graphs.Graph | None = None
    copies: tuple[Tensor, Tensor] | None = None
    captures: bool = True
    loaded: bool = False

    @functools.cached_property
    def inner(self) -> slice:
        """The launches between those that read the input and those that write the output."""
        start = 1 + max(i for i, _ in self.inputs)
        return slice(start, max(start, min(i for i, _ in self.outputs)))

    def bound(self, input: Tensor | None, output: Tensor | None) -> list[AnyLaunch]:
        """The launches on an input and output; on None, without."""
        found = list(self.launches)
        tensors: dict[int, dict[str, Tensor | None]] = {}
        for places, tensor in ((self.inputs, input), (self.outputs, output)):
            for i, name in places:
                tensors.setdefault(i, {})[name] = tensor
        for i, each in tensors.items():
            found[i] = copy.copy(found[i])  # dataclasses.replace would check once more, on each call
            object.__setattr__(found[i], "arguments", {**found[i].arguments, **each})
        return found

    def run(self, input: Tensor, output: Tensor) -> None:
        """A pass by its launches."""
        launch.run(self.bound(input, output))
        self.loaded = True

    def replay(self, input: Tensor, output: Tensor) -> None:
        """A pass by its graph."""
        assert self.graph is not None
        if self.copies is not None:
            _copy(input, self.copies[0])
            self.graph.replay()
            _copy(self.copies[1], output)
            return
        launches = self.bound(input, output)
        launch.run(launches[: self.inner.start])
        self.graph.replay()
        launch.run(launches[self.inner.stop :])


class Executor:
    """A network on its device.

    Args:
        network: with its weights packed on the device.
        upcast: multiply 16-bit operands in fp32, without tensor cores: for Triton's interpreter.

    Attributes:
        kernels: the ops whose kernels a pass takes.
    """

    def __init__(self, network: Network, upcast: bool = False) -> None:
        self.network, self.upcast = network, upcast
        self.kernels = tuple(network.kernels())
        self._shapes: dict[tuple[int, ...], tuple[int, ...] | None] = {}
        self._lock = threading.Lock()
        self._idle: OrderedDict[Key, list[Pass]] = OrderedDict()
        self._told = False

    def run(self, input: Tensor) -> Tensor:
        """[N, C, H, W] of the network's dtype (or bytes for a stem), any strides, on its device -> map or features."""
        x = input if self.network.starts_with_stem() else dense_nhwc(input)
        output = self._output(x)
        if x.shape[0] == 0:
            return output
        key = (tuple(x.shape), x.dtype, x.stride(), launch.is_aligned(x), _stream(x), *self._settings())
        keeps = not _capturing(x)  # what is allocated while a graph is captured belongs to the graph
        current = (self._take(key) if keeps else None) or self._new_pass(x, output)
        replays = graphs.missing_reason(x.device) is None and not launch.observed() and not first_use.recording()
        if replays and current.graph is not None:
            current.replay(x, output)
        elif replays and current.captures and current.loaded:
            self._capture(current, x, output)
        else:
            current.run(x, output)
        if keeps:
            self._put(key, current)
        return output

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of what comes of an input [N, C, H, W]; None where a map on the way would be empty."""
        known = self._shapes  # which another thread may replace
        if shape not in known:
            if len(known) >= KNOWN_SHAPES:
                known = self._shapes = {}
            shapes = self.network.shapes(shape)
            known[shape] = None if any(min(each[1:]) < 1 for each in shapes) else shapes[-1]
        return known[shape]

    def precompile(self, shapes: Sequence[Sequence[int]], progress: Progress | None = None) -> int:
        """Compile what passes over float inputs of these shapes need, without running anything.

        Args:
            shapes: [N, C, H, W] each.
            progress: called with how many kernels are compiled and how many there are.

        Returns:
            The number of kernels.
        """
        wanted: dict[Key, AnyLaunch] = {}
        for shape in shapes:
            x = empty_nhwc(torch.empty(0, dtype=self.network.dtype, device="meta"), *shape)
            arena = Arena(torch.device("meta"))
            output = torch.empty(self.network.output_shape(shape), dtype=self.network.dtype, device="meta")
            for each in self.network.launches(x, output, arena, self.upcast):
                wanted.setdefault(each.key(), each)
        with launch.on_device(self.network.device):
            for i, each in enumerate(wanted.values()):
                each.warm_up()
                if progress is not None:
                    progress(i + 1, len(wanted))
        return len(wanted)

    def _settings(self) -> tuple[Any, ...]:
        """What else launches follow from, and may change between two calls."""
        return dot_precision(self.network.dtype), choice.state()

    def _capture(self, current: Pass, x: Tensor, output: Tensor) -> None:
        """A pass by its launches, which are captured then for later calls, unless another capture is under way."""
        inner = current.launches[current.inner]
        current.captures = len(inner) >= graphs.LEAST_LAUNCHES
        with graphs.turn() as ours:
            copies = None
            if ours and current.captures:
                try:
                    copies = self._copies(x, output)
                except torch.OutOfMemoryError as error:
                    current.captures = False
                    self._tell(error)
            if not (ours and current.captures):
                current.run(x, output)
                return
            if copies is not None:
                inner = current.bound(*copies)
                _copy(x, copies[0])
                launch.run(inner)  # kernels for another alignment than the input's may have to be loaded
                _copy(copies[1], output)
            else:
                current.run(x, output)
            try:
                current.graph, current.copies = graphs.captured(inner, x.device), copies
                if not graphs.is_proved(x.device):
                    self._prove(current, x, output)
            except Exception as error:
                current.captures, current.graph, current.copies = False, None, None
                self._tell(error)

    def _copies(self, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor] | None:
        """Memory for an input and its output; None where they stay where they are."""
        if x.nbytes + output.nbytes > COPIED_BYTES:
            return None
        with torch.inference_mode(False):  # calls in and out of it copy to them
            found = torch.empty_like(x), self._output(x)
        return found if found[0].stride() == x.stride() else None  # launches know strides; a slice's are not kept

    @torch.inference_mode()  # in which the arena may have been allocated
    def _prove(self, current: Pass, x: Tensor, output: Tensor) -> None:
        """The first replay on a device in this process, beside the output of the launches, which the caller gets."""
        replayed = self._output(x)
        for buffer in current.arena.buffers.values():
            buffer.zero_()  # what a replay leaves out is not there from before
        if current.copies is not None:
            current.copies[1].zero_()
        current.replay(x, replayed)
        if not graphs.prove(replayed, output):
            current.graph = current.copies = None

    def _tell(self, error: Exception) -> None:
        """One warning, however many kinds of input cannot be captured."""
        level = logging.DEBUG if self._told else logging.WARNING
        self._told = True
        logger.log(
            level,
            "a pass could not run as a CUDA graph on %s, its kernels are started one by one from now on: %s",
            self.network.device,
            one_line(error),
        )

    def _output(self, x: Tensor) -> Tensor:
        shape, dtype = self.output_shape(tuple(x.shape)), self.network.dtype
        assert shape is not None, "who calls has checked the input"
        return empty_nhwc(x.new_empty(0, dtype=dtype), *shape) if len(shape) == 4 else x.new_empty(shape, dtype=dtype)

    def _new_pass(self, x: Tensor, output: Tensor) -> Pass:
        arena = self.network.arena(x, self.upcast)
        launches = self.network.launches(x, output, arena, self.upcast)
        inputs, outputs = [
            [
                (i, name)
                for i, each in enumerate(launches)
                for name, value in each.arguments.items()
                if isinstance(value, Tensor) and _place(value) == _place(tensor)
            ]
            for tensor in (x, output)
        ]
        made = Pass(launches, inputs, outputs, arena)
        made.launches = made.bound(None, None)  # memory of the first call must not be kept
        return made

    def _take(self, key: Key) -> Pass | None:
        with self._lock:
            idle = self._idle.get(key)
            return idle.pop() if idle else None

    def _put(self, key: Key, done: Pass) -> None:
        with self._lock:
            self._idle.setdefault(key, []).append(done)
            self._idle.move_to_end(key)
            while len(self._idle) > KEPT_PASSES:
                self._idle.popitem(last=False)


def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


def _place(x: Tensor) -> tuple[int, int]:
    """Where a tensor starts, also one without memory."""
    return x.untyped_storage()._cdata, x.storage_offset()


def _stream(x: Tensor) -> int:
    """What orders the passes on a device: memory between layers is used again on the same stream only."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else threading.get_ident()


def _capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
