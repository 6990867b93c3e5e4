"""How each op is registered with torch: schema, reference, fake, FLOP formula and the guard against lost gradients.

The compiled library registers the CPU kernels for the names defined here. The reference is the last resort
(CompositeExplicitAutograd): it runs where there is no compiled library, and on other devices.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import symbolic_convert
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from mnv3_fast import _library
from mnv3_fast.ops.elements import as_nhwc

LIBRARY = torch.library.Library("mnv3_fast", "DEF")

BATCH_NORM = "Tensor? bn_weight, Tensor? bn_bias, Tensor? bn_mean, Tensor? bn_var, float bn_eps"
WINDOW = (
    "int stride_h, int stride_w, int pad_left, int pad_right, int pad_top, int pad_bottom, "
    "int dilation_h, int dilation_w"
)


def tensors_in(args: Any) -> list[Tensor]:
    """The tensors among arguments, also inside of lists."""
    found = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found += [item for item in arg if isinstance(item, Tensor)]
    return found


def wants_grad(args: Any) -> bool:
    """Whether grad mode is on and one of the tensors requires grad."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_in(args))


def _in_forward_mode() -> bool:
    """Whether tangents are being computed (``torch.func.jvp``, ``forward_ad.dual_level``)."""
    return forward_ad._current_level >= 0


def _has_tangent(args: Any) -> bool:
    return _in_forward_mode() and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors_in(args))


def _under_transform() -> bool:
    """Inside of ``torch.func.vmap`` and its like a tensor does not show that something outside wants its gradient."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def exporting() -> bool:
    """Whether ``torch.export`` captures a graph; where Dynamo does so for it, torch's ``is_exporting`` says no."""
    if torch.compiler.is_exporting():
        return True
    tracer = getattr(symbolic_convert.tls, "current_tx", None)
    return tracer is not None and tracer.output.export


torch.compiler.assume_constant_result(exporting)


def _without_autocast(args: Any) -> AbstractContextManager[Any]:
    """The ops compute in their inputs' dtype, as the kernels do, whatever autocast says to the reference."""
    for device in {tensor.device.type for tensor in tensors_in(args)[:1]} & {"cpu", "cuda"}:
        if torch.is_autocast_enabled(device):
            return torch.autocast(device, enabled=False)
    return nullcontext()


def run_reference(reference: Callable[..., Any], args: Any, maps: bool = True) -> Any:
    """The reference with the outputs that a kernel gives: no autocast, and maps with NHWC strides."""
    with _without_autocast(args):
        outputs = reference(*args)
    if not maps:
        return outputs
    if isinstance(outputs, tuple):
        return tuple(as_nhwc(item) if item.dim() == 4 else item for item in outputs)
    return as_nhwc(outputs) if outputs.dim() == 4 else outputs


def refuse_grad(name: str, args: Any) -> None:
    """A raw op is not differentiable; silently detached gradients would be worse than an error.

    An exported graph is for inference: it holds raw ops, and refuses when it runs.
    """
    if (wants_grad(args) or _has_tangent(args)) and not exporting():
        public = f"mnv3_fast.ops.{name.removesuffix('_mean')}" if name != "run_plan" else "mnv3_fast.accelerate"
        raise RuntimeError(
            f"{name}: torch.ops.mnv3_fast.{name} is not differentiable and an input requires grad; "
            f"use {public}, or torch.no_grad(), which a graph made by torch.export needs too"
        )


def check_ranks(name: str, ranks: tuple[tuple[str, tuple[int, ...]], ...], args: Any) -> None:
    """What the kernels check themselves, for shapes that are computed without them."""
    for (argument, wanted), tensor in zip(ranks, args, strict=False):
        if tensor.dim() not in wanted:
            words = " or ".join(str(rank) for rank in wanted)
            raise ValueError(f"{name}: {argument} must have {words} dimensions, got {list(tensor.shape)}")


def register(
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    flops: Callable[..., int] | None = None,
    guarded: bool = True,
    maps: bool = True,
    ranks: tuple[tuple[str, tuple[int, ...]], ...] = (),
) -> Any:
    """Define ``mnv3_fast::<schema>`` with everything but its kernels, and return ``torch.ops.mnv3_fast.<name>``.

    Args:
        schema: the op's schema without namespace.
        reference: the specification in plain torch, with the arguments of the schema.
        fake: shapes and strides of the outputs, from fake tensors.
        flops: multiply-adds times two, from the shapes of the arguments; ``out_shape`` by keyword.
        guarded: refuse inputs that require grad by a kernel at the Autograd key; an op whose own kernel is written in
            Python calls :func:`refuse_grad` itself, which saves a dispatch.
        maps: outputs with four dimensions are maps, with NHWC strides.
        ranks: names of the first arguments, with the numbers of dimensions that they may have.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)

    def checked_fake(*args: Any) -> Any:
        devices = {str(tensor.device) for tensor in tensors_in(args)}
        if len(devices) > 1:  # a meta tensor among others brings the call here, which must not return memory as it is
            raise RuntimeError(f"{name}: all tensors must be on one device, got {', '.join(sorted(devices))}")
        check_ranks(name, ranks, args)
        return fake(*args)

    torch.library.register_fake(f"mnv3_fast::{name}", checked_fake, lib=LIBRARY)
    op = getattr(torch.ops.mnv3_fast, name)

    def last_resort(*args: Any) -> Any:
        if not guarded:
            refuse_grad(name, args)
        return run_reference(reference, args, maps)

    def guard(*args: Any) -> Any:
        refuse_grad(name, args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    LIBRARY.impl(name, last_resort, "CompositeExplicitAutograd")
    if guarded:
        LIBRARY.impl(name, guard, "Autograd")
    if flops is not None:
        register_flop_formula(op)(flops)
    return op


def differentiable(name: str, op: Any, reference: Callable[..., Any]) -> type[torch.autograd.Function]:
    """An ``autograd.Function`` whose forward is the raw op and whose backward recomputes through the reference.

    Takes the op's arguments, with lists of tensors given flat at the end (see ``inverted_residual``).
    """

    class Recomputed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.rest = [None if isinstance(item, Tensor) else item for item in inputs]
            ctx.save_for_backward(*[item if isinstance(item, Tensor) else None for item in inputs])

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            args = [kept if saved is None else saved for saved, kept in zip(ctx.saved_tensors, ctx.rest, strict=True)]
            wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]

            def of_wanted(*tensors: Tensor) -> Any:
                full = list(args)
                for i, tensor in zip(wanted, tensors, strict=True):
                    full[i] = tensor
                return reference(*full)

            # torch.func.vjp rather than autograd.grad: it is traced by torch.compile, and can be differentiated again.
            with _without_autocast(args):
                _, pull_back = torch.func.vjp(of_wanted, *[args[i] for i in wanted])
                found = pull_back(grad_outputs if len(grad_outputs) > 1 else grad_outputs[0])
            grads: list[Tensor | None] = [None] * len(args)
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
            return tuple(grads)

    Recomputed.__name__ = Recomputed.__qualname__ = f"{name}_recomputed"
    return Recomputed


def call(
    op: Any, reference: Callable[..., Any], function: type[torch.autograd.Function], args: tuple, maps: bool = True
) -> Any:
    """Run an op the way its arguments ask for: on the reference, differentiably, or on the kernels."""
    if _library.backend() == "reference" or _in_forward_mode():
        return run_reference(reference, args, maps)
    if torch.is_grad_enabled() and (wants_grad(args) or _under_transform()):
        # Dynamo would put the op into a graph inside of the graph, with gradients switched off around it.
        return op(*args) if torch.compiler.is_compiling() and exporting() else function.apply(*args)
    return op(*args)
