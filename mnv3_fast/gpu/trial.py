"""The kernels of one layer, each run once on a device and compared with the reference: what ``tune`` times then."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu import choice, launch
from mnv3_fast.gpu.choice import Question
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.network import Network
from mnv3_fast.ops.elements import empty_nhwc
from mnv3_fast.ops.inverted_residual.reference import inverted_residual
from mnv3_fast.ops.network.layout import Stage
from mnv3_fast.testing.gpu_bench.cells import CHUNK, words
from mnv3_fast.testing.layers import double
from mnv3_fast.testing.on_device import judge

TIMED = {"depthwise_conv": ("depthwise_conv", "squeeze_excite_gate"), "inverted_residual": ("",)}
"""How the names of the kernels begin that are timed for a layer."""


@dataclass(frozen=True)
class Layer:
    """A layer that a network asks a kernel for, and the block [N, C, H, W] -> that it belongs to.

    Attributes:
        name: of the block, by its place among the blocks, from 1.
        stage: the block, of the network's own dtype.
        shape: of the block's input.
        why: what :func:`mnv3_fast.gpu.choice.reason` says of it.
    """

    name: str
    question: Question
    stage: Stage
    shape: tuple[int, ...]
    why: str

    @property
    def is_open(self) -> bool:
        """Whether there is more than one kernel for it that may run."""
        return self.why in ("tuned", "counted")


class Trial:
    """The kernels of one layer on one input: run, then compared. One that fails has no later turn.

    Attributes:
        missing: why a variant failed.
        wrong: those that did so for another reason than want of memory.
    """

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.layer, self.network = layer, Network([layer.stage], layer.question.dtype)
        self.missing: dict[str, str] = {}
        self.wrong: set[str] = set()
        self._input: Tensor | None = None
        self._device = device
        self._launches: dict[str, list[AnyLaunch]] = {}
        self._outputs: dict[str, Tensor] = {}

    def attempt(self, variant: str, call: Callable[[], Any]) -> None:
        """Call it; an exception is noted as the variant's.

        Raises:
            torch.AcceleratorError: which leaves nothing to go on with.
        """
        try:
            call()
        except Exception as error:
            self.note(variant, error)

    def note(self, variant: str, error: Exception) -> None:
        """Why a variant fails."""
        if isinstance(error, torch.AcceleratorError):
            raise error
        self._miss(variant, words(error), isinstance(error, torch.OutOfMemoryError))

    def run(self, variant: str) -> None:
        """The whole block, with its layer by a variant, once."""
        if self._input is None:
            like = torch.empty(0, dtype=self.network.dtype, device=self._device)
            generator = torch.Generator(self._device).manual_seed(0)
            self._input = empty_nhwc(like, *self.layer.shape).normal_(generator=generator)
        output = empty_nhwc(self._input, *self.network.output_shape(self.layer.shape))
        output.fill_(math.nan)  # else what is not written may be what another kernel wrote there
        with choice.force(**{"inverted_residual": "triton", self.layer.question.op: variant}):
            launches = self.network.launches(self._input, output, self.network.arena(self._input))
        launch.run(launches)
        self._launches[variant], self._outputs[variant] = launches, output

    def compare(self) -> None:
        """What was computed, by the tolerance rule: torch's own run in the dtype and fp64 are the device's."""
        stage, dtype = self.layer.stage, self.network.dtype
        rest = stage.tensors, list(stage.spec), list(stage.constants)
        for i in range(0, self.layer.shape[0], CHUNK):
            if not self._outputs or self._input is None:
                return
            part = self._input[i : i + CHUNK]
            theirs, exact = inverted_residual(part, *rest), inverted_residual(part.double(), double(rest[0]), *rest[1:])
            for variant, output in list(self._outputs.items()):
                found = judge([output[i : i + CHUNK]], [theirs], [exact], dtype)
                if found.reason is not None:
                    self._miss(variant, f"wrong: {found.reason}")

    def timed(self) -> dict[str, list[AnyLaunch]]:
        """The launches that are timed, of the variants that did not fail."""
        return {
            variant: [each for each in launches if each.kernel.__name__.startswith(TIMED[self.layer.question.op])]
            for variant, launches in self._launches.items()
        }

    def _miss(self, variant: str, why: str, lacks_memory: bool = False) -> None:
        self.missing[variant] = why
        if not lacks_memory:
            self.wrong.add(variant)
        self._launches.pop(variant, None)
        self._outputs.pop(variant, None)
