"""What we compare ourselves with: the same network, or the same layer, in other hands."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops.misc import Conv2dNormActivation

from mnv3_fast.acceleration import accelerate
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.testing.cases import Case
from mnv3_fast.testing.compare import op_module, prepared, reference_of

Run = Callable[[], Any]
COMPILED = "torch.compile, freezing"
OURS = ("mnv3_fast accelerated", "mnv3_fast frozen")


def fold_model(model: nn.Module) -> nn.Module:
    """A copy of a torchvision model with every BatchNorm folded by torch's own tool."""
    folded = copy.deepcopy(model)
    for module in folded.modules():
        if isinstance(module, Conv2dNormActivation) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
            module[0] = fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    return folded


def compile_frozen(model: nn.Module, x: Tensor, mode: str | None = None) -> Callable[[Tensor], Any]:
    """torch.compile with inductor's constant folding of the weights, in one of its modes; compiled for x now."""
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True), torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(model, mode=mode)
        compiled(x)
    return compiled


def model_rivals(model: nn.Module, x: Tensor, compiled: bool = True) -> dict[str, Run]:
    """A torchvision model in eval mode, its rivals and ourselves, each as a call without arguments."""
    nhwc = x.contiguous(memory_format=torch.channels_last)
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    folded = fold_model(model).to(memory_format=torch.channels_last)
    accelerated, frozen = accelerate(model), freeze(model)
    runs: dict[str, Run] = {
        "torchvision eager": lambda: model(x),
        "torchvision channels_last": lambda: channels_last(nhwc),
        "channels_last, BN folded": lambda: folded(nhwc),
    }
    if compiled:
        compiled_model = compile_frozen(copy.deepcopy(channels_last), nhwc)
        runs[COMPILED] = lambda: compiled_model(nhwc)
    runs[OURS[0]] = lambda: accelerated(x)
    runs[OURS[1]] = lambda: frozen(x)
    return runs


class _Reference(nn.Module):
    """An op's reference as a module, for torch.compile."""

    def __init__(self, op: str, args: tuple) -> None:
        super().__init__()
        self.run, self.args = reference_of(op), args

    def forward(self, x: Tensor) -> Any:
        return self.run(x, *self.args[1:])


def _folded_args(op: str, args: tuple) -> tuple | None:
    """A convolution's arguments with BatchNorm folded; None for an op without one."""
    if op not in ("stem_conv", "pointwise_conv", "depthwise_conv") or args[5] is None:
        return None
    fold = reference_of("fold_batch_norm")
    weight, bias = fold(args[1], args[2], *args[3:8])
    return (args[0], weight, bias, None, None, None, None, 0.0, *args[8:])


def with_layout(args: tuple, memory_format: torch.memory_format) -> tuple:
    """The raw arguments of an op with all their maps and weights in a memory format."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() == 4:
            return value.contiguous(memory_format=memory_format)
        if isinstance(value, list):
            return [convert(item) for item in value]
        return value

    return tuple(convert(value) for value in args)


def op_rivals(case: Case, compiled: bool = False) -> dict[str, Run]:
    """One layer: eager torch in both layouts, with BatchNorm folded, compiled, and our op."""
    args = prepared(case)
    reference, op = reference_of(case.op), op_module(case.op).OP
    contiguous = with_layout(args, torch.contiguous_format)
    nhwc = with_layout(args, torch.channels_last)
    runs: dict[str, Run] = {"eager": lambda: reference(*contiguous), "eager channels_last": lambda: reference(*nhwc)}
    folded = _folded_args(case.op, nhwc)
    if folded is not None:
        runs["channels_last, BN folded"] = lambda: reference(*folded)
    if compiled:
        compiled_op = compile_frozen(_Reference(case.op, folded or nhwc), nhwc[0])
        runs[COMPILED] = lambda: compiled_op(nhwc[0])
    runs["mnv3_fast"] = lambda: op(*args)
    return runs
