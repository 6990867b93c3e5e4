"""Running a packed network on a device: its launches are made once for each kind of input and bound to each call's.

Passes that are under way at the same time, in other threads or on other streams, have arenas of their own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu import Progress, compilation, launch
from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.launch import Launch
from mnv3_fast.gpu.network import Network
from mnv3_fast.ops.elements import dense_nhwc, empty_nhwc

KEPT_PASSES = 8
"""Kinds of input (shape, dtype, strides, stream) whose launches and arena an executor keeps."""
Key = tuple[Any, ...]


@dataclass
class Pass:
    """The launches of a pass over one kind of input, without the input and output that each call has of its own."""

    launches: list[Launch]
    inputs: list[tuple[int, str]]
    outputs: list[tuple[int, str]]
    arena: Arena  # keeps what lies between the layers

    def bound(self, input: Tensor | None, output: Tensor | None) -> list[Launch]:
        """The launches on an input and output; on None, without."""
        found = list(self.launches)
        for places, tensor in ((self.inputs, input), (self.outputs, output)):
            for i, name in places:
                found[i] = replace(found[i], arguments={**found[i].arguments, name: tensor})
        return found


class Executor:
    """A network on its device.

    Args:
        network: with its weights packed on the device.
        upcast: multiply 16-bit operands in fp32, without tensor cores: for Triton's interpreter.
    """

    def __init__(self, network: Network, upcast: bool = False) -> None:
        self.network, self.upcast = network, upcast
        self._lock = threading.Lock()
        self._idle: OrderedDict[Key, list[Pass]] = OrderedDict()

    def run(self, input: Tensor) -> Tensor:
        """[N, C, H, W] of the network's dtype (or bytes for a stem), any strides, on its device -> map or features."""
        x = input if self.network.starts_with_stem() else dense_nhwc(input)
        output = self._output(x)
        if x.shape[0] == 0:
            return output
        key = (tuple(x.shape), x.dtype, x.stride(), x.data_ptr() % compilation.ALIGNMENT == 0, _stream(x))
        keeps = not _capturing(x)  # what is allocated while a graph is captured belongs to the graph
        current = (self._take(key) if keeps else None) or self._new_pass(x, output)
        launch.run(current.bound(x, output))
        if keeps:
            self._put(key, current)
        return output

    def precompile(self, shapes: Sequence[Sequence[int]], progress: Progress | None = None) -> int:
        """Compile what passes over float inputs of these shapes need, without running anything.

        Args:
            shapes: [N, C, H, W] each.
            progress: called with how many kernels are compiled and how many there are.

        Returns:
            The number of kernels.
        """
        wanted: dict[Key, Launch] = {}
        for shape in shapes:
            x = empty_nhwc(torch.empty(0, dtype=self.network.dtype, device="meta"), *shape)
            arena = Arena(torch.device("meta"))
            output = torch.empty(self.network.output_shape(shape), dtype=self.network.dtype, device="meta")
            for each in self.network.launches(x, output, arena, self.upcast):
                wanted.setdefault(compilation.key(each), each)
        with launch.on_device(self.network.device):
            for i, each in enumerate(wanted.values()):
                each.warm_up()
                if progress is not None:
                    progress(i + 1, len(wanted))
        return len(wanted)

    def _output(self, x: Tensor) -> Tensor:
        shape, like = self.network.output_shape(x.shape), x.new_empty(0, dtype=self.network.dtype)
        return empty_nhwc(like, *shape) if len(shape) == 4 else like.new_empty(shape)

    def _new_pass(self, x: Tensor, output: Tensor) -> Pass:
        arena = self.network.arena(x)
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


def _place(x: Tensor) -> tuple[int, int]:
    """Where a tensor starts, also one without memory."""
    return x.untyped_storage()._cdata, x.storage_offset()


def _stream(x: Tensor) -> int:
    """What orders the passes on a device: memory between layers is used again on the same stream only."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else threading.get_ident()


def _capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
