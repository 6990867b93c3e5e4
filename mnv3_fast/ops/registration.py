"""How each op is registered with torch: schema, reference, fake, FLOP formula and the guard against lost gradients.

The compiled library registers the CPU kernels for the names defined here. The reference is the last resort
(CompositeExplicitAutograd): it runs where there is no compiled library, and on other devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mnv3_fast import _library
from mnv3_fast.ops.elements import as_nhwc

LIBRARY = torch.library.Library("mnv3_fast", "DEF")

BATCH_NORM = "Tensor? bn_weight, Tensor? bn_bias, Tensor? bn_mean, Tensor? bn_var, float bn_eps"
WINDOW = (
    "int stride_h, int stride_w, int pad_left, int pad_right, int pad_top, int pad_bottom, int dilation_h, int dilation_w"
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


def refuse_grad(name: str, args: Any) -> None:
    """A raw op is not differentiable; silently detached gradients would be worse than an error."""
    if wants_grad(args):
        raise RuntimeError(
            f"{name}: torch.ops.mnv3_fast.{name} is not differentiable and an input requires grad; "
            f"use mnv3_fast.ops.{name} or torch.no_grad()"
        )


def register(
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    flops: Callable[..., int] | None = None,
    guarded: bool = True,
) -> Any:
    """Define ``mnv3_fast::<schema>`` with everything but its kernels, and return ``torch.ops.mnv3_fast.<name>``.

    Args:
        schema: the op's schema without namespace.
        reference: the specification in plain torch, with the arguments of the schema.
        fake: shapes and strides of the outputs, from fake tensors.
        flops: multiply-adds times two, from the shapes of the arguments; ``out_shape`` by keyword.
        guarded: refuse inputs that require grad by a kernel at the Autograd key; an op whose own kernel is written in
            Python calls :func:`refuse_grad` itself, which saves a dispatch.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    torch.library.register_fake(f"mnv3_fast::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.mnv3_fast, name)

    def run_reference(*args: Any) -> Any:
        outputs = reference(*args)
        if isinstance(outputs, tuple):
            return tuple(as_nhwc(item) if item.dim() == 4 and name != "fold_batch_norm" else item for item in outputs)
        return as_nhwc(outputs) if outputs.dim() == 4 else outputs

    def guard(*args: Any) -> Any:
        refuse_grad(name, args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    LIBRARY.impl(name, run_reference, "CompositeExplicitAutograd")
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
        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.rest = [None if isinstance(item, Tensor) else item for item in inputs]
            ctx.save_for_backward(*[item if isinstance(item, Tensor) else None for item in inputs])

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            again = torch.is_grad_enabled()  # create_graph: the gradient itself will be differentiated
            args = [kept if saved is None else saved for saved, kept in zip(ctx.saved_tensors, ctx.rest, strict=True)]
            wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
            with torch.enable_grad():
                for i in wanted:  # an alias of its own for each argument, also where one tensor is given twice
                    args[i] = args[i].view_as(args[i]) if again else args[i].detach().requires_grad_()
                outputs = reference(*args)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if g is not None and o.requires_grad]
            found = torch.autograd.grad(
                [o for o, _ in pairs],
                [args[i] for i in wanted],
                [g for _, g in pairs],
                allow_unused=True,
                create_graph=again,
            )
            grads: list[Tensor | None] = [None] * len(args)
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
            return tuple(grads)

    Recomputed.__name__ = Recomputed.__qualname__ = f"{name}_recomputed"
    return Recomputed


def call(op: Any, reference: Callable[..., Any], function: type[torch.autograd.Function] | None, args: tuple) -> Any:
    """Run an op the way its arguments ask for: differentiably, on the reference, or on the kernels."""
    if function is not None and wants_grad(args):
        return function.apply(*args)
    if _library.backend() == "reference":
        return reference(*args)
    return op(*args)
