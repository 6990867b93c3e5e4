"""Ops over original tensors whose folded and packed form is cached: ``inverted_residual`` and ``network``.

They are registered in Python: the op finds or makes a plan and runs it. ``OP(input, tensors, spec, constants)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mnv3_fast import _library, gpu
from mnv3_fast.engine import cache
from mnv3_fast.engine.op import OP as RUN_PLAN
from mnv3_fast.ops import registration

Stages = Callable[[Sequence[Tensor], Sequence[int], Sequence[float]], list[Any]]
Pack = Callable[[list[Tensor], Sequence[int], Sequence[float]], cache.Plan]


class PackedOp:
    """One such op.

    Attributes:
        op: the raw op, ``torch.ops.mnv3_fast.<name>``.
        function: the ``autograd.Function`` that makes it differentiable, with the tensors last.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Any],
        fake: Callable[..., Any],
        flops: Callable[..., int],
        pack: Pack,
        stages: Stages,
    ) -> None:
        schema = f"{name}(Tensor input, Tensor[] tensors, int[] spec, float[] constants) -> Tensor"
        self.op = op = registration.register(schema, reference, fake, flops, guarded=False)
        self._name, self._pack, self._stages, self._reference = name, pack, stages, reference

        def flat(input: Tensor, spec: Any, constants: Any, *tensors: Tensor) -> Tensor:
            return op(input, list(tensors), spec, constants)

        def flat_reference(input: Tensor, spec: Any, constants: Any, *tensors: Tensor) -> Tensor:
            return reference(input, tensors, spec, constants)

        self._flat, self._flat_reference = flat, flat_reference
        self.function = registration.differentiable(name, flat, flat_reference)
        if _library.EXTENSION:
            registration.LIBRARY.impl(name, self._kernel, "CPU")

        registration.LIBRARY.impl(name, self._on_gpu, "CUDA")

    def packed(self, tensors: list[Tensor], spec: Sequence[int], constants: Sequence[float]) -> cache.Entry:
        """The plan, packed now if there is none or its tensors have changed."""

        def build() -> cache.Plan:
            dense = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors]
            return self._pack(dense, spec, constants)

        return cache.find(tensors, (tuple(spec), tuple(constants)), build)

    def run(self, input: Tensor, tensors: list[Tensor], spec: list[int], constants: list[float]) -> Tensor:
        """The op on its flattened arguments, differentiably where that is asked for."""
        return registration.call(self._flat, self._flat_reference, self.function, (input, spec, constants, *tensors))

    def _on_gpu(self, input: Tensor, tensors: list[Tensor], spec: list[int], constants: list[float]) -> Tensor:
        registration.refuse_grad(self._name, (input, tensors))
        arguments = (tensors, spec, constants)
        if gpu.missing_reason() is not None:
            return registration.run_reference(self._reference, (input, *arguments))
        from mnv3_fast.gpu.execute import run_stages  # Triton is not imported before a tensor on a GPU needs it

        if not tensors:
            raise ValueError(f"{self._name}: tensors must hold the weights of at least one layer, got none")
        return run_stages(self._name, self._reference, self._stages, input, arguments)

    def _kernel(self, input: Tensor, tensors: list[Tensor], spec: list[int], constants: list[float]) -> Tensor:
        registration.refuse_grad(self._name, (input, tensors))
        if not tensors:
            raise ValueError(f"{self._name}: tensors must hold the weights of at least one layer, got none")
        entry = self.packed(tensors, spec, constants)
        with torch._C._AutoDispatchBelowAutograd():
            return RUN_PLAN(input, entry.plan, entry.geometry)
