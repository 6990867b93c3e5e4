"""What all fused modules share: run the fused op where that is right, the original forward everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast.engine import cache
from mnv3_fast.engine.op import OP
from mnv3_fast.gpu import kept
from mnv3_fast.models.description import ConvLayer, Unsupported, kind_of_conv
from mnv3_fast.nn.conditions import (
    as_autocast,
    checks_trace,
    environment_reason,
    input_reason,
    observed,
    plan_may_run,
    transform_active,
    weights_fit,
)
from mnv3_fast.nn.containers import StandIn
from mnv3_fast.nn.fusion import (
    Fusion,
    Inside,
    Reader,
    describe,
    forget,
    fusion_of,
    log_fallback,
    traced_description,
)
from mnv3_fast.nn.parts import Description, flattened, modules_below
from mnv3_fast.ops import registration
from mnv3_fast.ops.depthwise_conv import op as depthwise
from mnv3_fast.ops.elements import ACTIVATIONS, GATES
from mnv3_fast.ops.inverted_residual.op import PACKED as BLOCK
from mnv3_fast.ops.network.op import PACKED as NETWORK
from mnv3_fast.ops.pointwise_conv import op as pointwise
from mnv3_fast.ops.squeeze_excite import op as squeeze_excite
from mnv3_fast.ops.stem_conv import op as stem

RUN_PLAN = OP.default
Run = Callable[[Tensor, Any, list[Tensor], Any], Tensor]


def fused_output(root: nn.Module, x: Tensor, reader: Reader, run: Run, inside: Inside) -> Tensor | None:
    """The output of a described part of ``root`` by its op where there is no :func:`current_entry`, or None if torch
    must run it.

    Args:
        reader: describes the part; raises Unsupported.
        run: the op, from input, description, its tensors and its other arguments.
        inside: gives the modules of the part.
    """
    reason = "it is in training mode" if root.training else input_reason(x)
    if reason is not None or transform_active():
        if not (root.training or torch.compiler.is_compiling()):
            log_fallback(root, reason or "a transform of torch.func or forward mode is under way")
        return None
    x = as_autocast(x)
    if torch.compiler.is_compiling():
        description = traced_description(root, reader, inside)
        if description is None:
            return None
        tensors, arguments = flattened(description)
        if not weights_fit(x, tensors) or (x.is_cuda and registration.wants_grad((x, tensors))):
            return None
        return run(x, description, tensors, arguments)
    found = fusion_of(root, reader, inside)
    if isinstance(found, str):
        return None
    fusion, tensors = found
    grad = registration.wants_grad((x, tensors))
    if not weights_fit(x, tensors) or (grad and x.is_cuda):
        return None  # with gradients torch's own backward is faster than a forward once more
    if torch.jit.is_tracing():
        # torch.jit.trace repeats itself without gradients to check the graph: that must take the same way.
        grad = fusion.traced_with_grad if checks_trace() else grad
        fusion.traced_with_grad = grad
        if grad:
            return None  # TorchScript cannot save a Python autograd.Function
    if not grad and not observed() and x.is_cpu:
        entry = fusion.plan(tensors)
        if entry is not None:
            return run_entry(x, entry)
    return run(x, fusion.description, tensors, fusion.arguments)


def current_entry(root: nn.Module, x: Any) -> cache.Entry | None:
    """The packed weights of a described part if it has them and may run on them: what most calls in inference ask."""
    if torch.compiler.is_compiling():
        return None
    fusion = root.__dict__.get("_fusion")
    if fusion is None or not plan_may_run(x) or grad_possible(x, fusion):
        return None
    return fusion.current(root)


def grad_possible(x: Tensor, fusion: Fusion) -> bool:
    """Whether something could be differentiated; the tensors are looked at where they are now."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(getattr(holder.get(name), "requires_grad", True) for holder, name in fusion.sources)


def run_entry(x: Tensor, entry: cache.Entry) -> Tensor:
    """One plan on an input, where nothing is to be differentiated: past the guard that the op has for that."""
    with torch._C._AutoDispatchBelowAutograd():
        return RUN_PLAN(x, entry.plan, [])  # the geometry is for captures, which do not come here


def reason_of(root: Any, x: Tensor | None, inside: Inside) -> str | None:
    """Why :func:`fused_output` would give None, now, for an input if one is given."""
    if root.training:
        return "it is in training mode"
    reason = environment_reason() if x is None else input_reason(x)
    if reason is not None:
        return reason
    fusion = describe(root, type(root)._reader, inside)
    return fusion if isinstance(fusion, str) else None


class Packed(nn.Module):
    """Mixin for what keeps packed weights."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.refresh()  # torch cannot swap a tensor for another as long as the packed weights' owner refers to it
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:
        self.refresh()
        super()._load_from_state_dict(*args, **keywords)

    def refresh(self) -> None:
        """Forget what was packed from this module's weights."""
        forget(self)
        tensors = [*self.parameters(), *self.buffers()]
        cache.drop(tensors)
        kept.forget(tensors)

    def train(self, mode: bool = True) -> Any:
        """As nn.Module.train; also forgets packed weights."""
        self.refresh()
        return super().train(mode)


class Fused(Packed, StandIn):
    """Mixin in front of an original class: ``accelerate`` sets ``module.__class__`` to the subclass of the same name.

    It adds no parameter, buffer or submodule, so keys, names, repr, hooks and pickling stay those of the original.
    """

    def _reader(self) -> Description:
        """What this module is made of; raises Unsupported."""
        raise NotImplementedError

    def _run(self, x: Tensor, description: Any, tensors: list[Tensor], arguments: Any) -> Tensor:
        """The fused op on a described module."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """The original's forward, fused where possible."""
        entry = current_entry(self, input)
        if entry is not None:
            return run_entry(input, entry)
        output = fused_output(self, input, type(self)._reader, self._run, modules_below)
        return super().forward(input) if output is None else output

    def fallback_reason(self, x: Tensor | None = None) -> str | None:
        """Why this module would run its original forward now (for an input, if one is given); None if it would not."""
        return reason_of(self, x, modules_below)


class FusedBlock(Fused):
    """An inverted residual block on ``mnv3_fast::inverted_residual``."""

    def _run(self, x: Tensor, description: Any, tensors: list[Tensor], arguments: Any) -> Tensor:
        spec, constants = arguments
        return BLOCK.run(x, tensors, spec, constants)


class FusedConv(Fused):
    """A lone convolution with norm and activation on the op of its kind."""

    def _run(self, x: Tensor, description: Any, tensors: list[Tensor], arguments: Any) -> Tensor:
        return run_described(x, description, tensors, arguments)


class FusedSqueezeExcite(Fused):
    """A squeeze-excite module on ``mnv3_fast::squeeze_excite``."""

    def _run(self, x: Tensor, description: Any, tensors: list[Tensor], arguments: Any) -> Tensor:
        codes = ACTIVATIONS[description.activation], GATES[description.gate]
        args = (x, *tensors, *codes, description.slope)
        reference = squeeze_excite.reference.squeeze_excite
        return registration.call(squeeze_excite.OP, reference, squeeze_excite.FUNCTION, args)


def run_described(x: Tensor, description: Any, tensors: list[Tensor], arguments: Any) -> Tensor:
    """A described convolution; on a GPU as a network of one stage where it can be, whose packed weights are kept."""
    if x.is_cuda and arguments is not None:
        return NETWORK.run(x, tensors, *arguments)
    return run_conv(x, description)


def checked_conv(layer: ConvLayer | None) -> ConvLayer:
    """A described convolution that one of the ops can run; raises Unsupported."""
    if layer is None:
        raise Unsupported("it is no known convolution block")
    kind_of_conv(layer)
    return layer


def run_conv(x: Tensor, layer: ConvLayer) -> Tensor:
    """A described convolution on the op of its kind, differentiably where that is asked for."""
    kind = kind_of_conv(layer)
    activation = ACTIVATIONS[layer.activation]
    norm = layer.batch_norm() or (None, None, None, None, 0.0)
    args = (x, layer.conv.weight, layer.conv.bias, *norm)
    if kind == "pointwise":
        reference = pointwise.reference.pointwise_conv
        return registration.call(pointwise.OP, reference, pointwise.FUNCTION, (*args, None, None, activation))
    if kind == "depthwise":
        reference = depthwise.reference.depthwise_conv
        return registration.call(depthwise.OP, reference, depthwise.FUNCTION, (*args, *layer.window(), activation))
    args = (*args, None, None, *layer.window(), activation)
    return registration.call(stem.OP, stem.reference.stem_conv, stem.FUNCTION, args)
