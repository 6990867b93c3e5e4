"""freeze(): a whole network in one op, with folded and packed weights of its own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.ops.misc import FrozenBatchNorm2d

from mnv3_fast import _library
from mnv3_fast.engine import reference
from mnv3_fast.engine.op import OP
from mnv3_fast.engine.packing import pack_stages
from mnv3_fast.models.description import NetDescription, Unsupported, describe_net
from mnv3_fast.models.torchvision import has_hooks
from mnv3_fast.nn.conditions import observed, transform_active
from mnv3_fast.nn.parts import computed_attributes
from mnv3_fast.ops import registration


class Engine(nn.Module):
    """A frozen network: one ``mnv3_fast::run_plan`` a pass, then what stays torch's. Inference only.

    Made by :func:`freeze`. The plan is a buffer, so the engine can be copied, pickled, saved, moved to another process
    or CPU and exported. It keeps no tie to the model that it was made from.

    Attributes:
        plan: the packed network, uint8.
        geometry: what the output's shape follows from.
        rest: the modules after the plan.
        source: the class of the frozen model.
        normalises: whether the plan normalises images as it loads them.
    """

    plan: Tensor
    normalises: bool = False

    def __init__(self, plan: Tensor, geometry: list[int], input_channels: int, rest: nn.Module, source: str) -> None:
        super().__init__()
        self.register_buffer("plan", plan)
        self.geometry = geometry
        self.input_channels = input_channels
        self.rest = rest
        self.source = source
        super().train(False)

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] float32 (or uint8 for a network that starts with its stem), any strides, any N, H and W.

        Raises:
            TypeError, ValueError: naming what came and what is wanted.
            RuntimeError: if grad mode is on and the input requires grad.
        """
        self._check(input)
        output = self._run(input)
        if self.geometry[0] == 1 and input.is_contiguous() and not output.is_contiguous():
            output = output.contiguous()
        return self.rest(output)

    def _run(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or observed() or transform_active():
            return OP(input, self.plan, self.geometry)
        if _library.backend() == "reference":
            return registration.run_reference(reference.run_plan, (input, self.plan, self.geometry))
        if type(input) is not Tensor or not (input.is_cpu and _library.EXTENSION):
            return OP(input, self.plan, self.geometry)
        with torch._C._AutoDispatchBelowAutograd():  # past the op's guard against lost gradients: `_check` is ours
            return OP.default(input, self.plan, [])  # the geometry is for captures

    def _check(self, input: Any) -> None:
        if not isinstance(input, Tensor):
            raise TypeError(f"Engine: input must be a Tensor, got {type(input).__name__}")
        if input.dtype is not torch.float32 and input.dtype is not torch.uint8:
            raise TypeError(f"Engine: input must be float32 or uint8, got {str(input.dtype).removeprefix('torch.')}")
        if input.layout is not torch.strided or input.is_nested:
            kind = "a nested one" if input.is_nested else f"layout {input.layout}"
            raise TypeError(f"Engine: input must be a dense (strided) tensor, got {kind}")
        if input.dim() != 4 or input.shape[1] != self.input_channels:
            raise ValueError(f"Engine: input must be [N, {self.input_channels}, H, W], got {list(input.shape)}")
        if input.shape[2] < 1 or input.shape[3] < 1:
            raise ValueError(f"Engine: input must have at least one pixel, got {list(input.shape)}")
        if input.device != self.plan.device:
            raise ValueError(f"Engine: input must be on {self.plan.device} as the engine is, got {input.device}")
        if input.dtype is torch.uint8 and not (self.normalises or torch.compiler.is_compiling()):
            words = "Engine: uint8 images are taken as numbers from 0 to 255; freeze(scale=, shift=) normalises them"
            warnings.warn(words, stacklevel=4)
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "Engine: an engine is for inference and the input requires grad; use mnv3_fast.accelerate"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # a copy, or one from a file: its plan lies in memory of its own
        _library.prefer_huge_pages(self.plan)

    def train(self, mode: bool = True) -> Engine:
        """An engine has no training mode; it stays in eval mode whatever a surrounding model does."""
        return super().train(False)

    def extra_repr(self) -> str:
        kind = "features" if self.geometry[0] == 0 else "map"
        return (
            f"{self.source}, plan of {self.plan.numel() / 2**20:.1f} MiB, output {kind} of {self.geometry[1]} channels"
        )


def freeze(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    *,
    scale: Tensor | Sequence[float] | None = None,
    shift: Tensor | Sequence[float] | None = None,
) -> nn.Module:
    """Copy and pack a network's weights once and run it in one call; inference only.

    Args:
        model: a MobileNetV3 of torchvision or timm (accelerated or not), its ``features``, or a model that contains
            such networks: each of them becomes an engine in a copy of the model, the rest stays torch's. A classifier
            of fully connected layers joins the plan.
        dtype: None or torch.float32; other dtypes do not exist yet.
        scale, shift: both or neither, a value for each input channel: the engine computes x * scale + shift as it loads
            an image, before the zeros of the padding. With ``1 / (255 * std)`` and ``-mean / std``, for the mean and
            std of values from 0 to 1 that torchvision's transforms have, it takes uint8 images as they were decoded.

    Returns:
        An :class:`Engine`, or a copy of ``model`` with engines inside.

    Raises:
        TypeError: if ``model`` is no nn.Module.
        ValueError: in training mode, for another dtype, for a scale and shift of other shapes or of a model that does
            not start with its stem, or if no part of it can be frozen; the message says why.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze: model must be an nn.Module, got {type(model).__name__}")
    if dtype not in (None, torch.float32):
        raise ValueError(f"freeze: dtype {dtype} does not exist yet, only torch.float32 does")
    if model.training:
        raise ValueError("freeze: the model is in training mode; call model.eval() first")
    normalised = _scale_and_shift(scale, shift)
    try:
        return _engine_of(model, *normalised)
    except Unsupported as unsupported:
        reason = str(unsupported)
    if scale is not None:
        raise ValueError(f"freeze: scale and shift are for a whole network that starts with its stem: {reason}")
    computed = computed_attributes(model)
    copied = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    reasons: list[str] = []
    if not _freeze_children(copied, reasons):
        known = [] if "no known" in reason and reasons else [reason]
        raise ValueError(
            f"freeze: nothing in {type(model).__name__} can be frozen: {'; '.join([*known, *reasons][:3])}"
        )
    return copied


def _freeze_children(module: nn.Module, reasons: list[str]) -> bool:
    found = False
    for name, child in module._modules.items():
        if child is None:
            continue
        try:
            module._modules[name] = _engine_of(child)
            found = True
        except Unsupported as unsupported:
            if "no known" not in str(unsupported):
                reasons.append(f"{name}: {unsupported}")
            if not isinstance(child, InvertedResidual):  # parts of a block are no network
                found |= _freeze_children(child, reasons)
    return found


def _scale_and_shift(scale: Any, shift: Any) -> tuple[Tensor | None, Tensor | None]:
    if (scale is None) != (shift is None):
        raise ValueError("freeze: scale and shift must both be given or neither")
    if scale is None:
        return None, None
    found = []
    for name, value in (("scale", scale), ("shift", shift)):
        try:
            tensor = torch.as_tensor(value, dtype=torch.float32, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"freeze: {name} must be a tensor or numbers, got {value!r:.60}") from None
        if tensor.dim() != 1:
            raise ValueError(f"freeze: {name} must have a value for each input channel, got {list(tensor.shape)}")
        found.append(tensor)
    return found[0], found[1]


def _engine_of(model: nn.Module, scale: Tensor | None = None, shift: Tensor | None = None) -> Engine:
    description = describe_net(model)
    _check_frozen(model, description)
    if scale is not None and shift is not None:
        if description.stem is None:
            raise Unsupported("it does not start with a stem")
        channels = description.input_channels()
        if scale.numel() != channels or shift.numel() != channels:
            counts = f"{scale.numel()} and {shift.numel()}"
            raise ValueError(f"freeze: scale and shift must have {channels} values, one a channel, got {counts}")
    plan, geometry = pack_stages(description.stages(), scale, shift)
    rest = [copy.deepcopy(module) for module in description.rest]
    engine = Engine(plan, geometry, description.input_channels(), _sequence(rest), type(model).__name__)
    engine.normalises = scale is not None
    return engine


def _check_frozen(model: nn.Module, description: NetDescription) -> None:
    """What a plan would lose silently must be refused."""
    outside = {id(inner) for module in description.rest for inner in module.modules()}
    for name, module in model.named_modules():
        if id(module) in outside:
            continue
        if has_hooks(module):
            raise Unsupported(f"{name or type(model).__name__} has a hook, which an engine would not call")
        if "forward" in module.__dict__:
            raise Unsupported(f"{name or type(model).__name__} has a forward of its own")
        if hasattr(module, "parametrizations"):
            raise Unsupported(f"{name or type(model).__name__} is parametrized")
        if module.training and hasattr(module, "running_mean") and not isinstance(module, FrozenBatchNorm2d):
            raise Unsupported(f"{name} is in training mode")
    for tensor in model.parameters():
        if tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
            raise Unsupported(f"its weights are {tensor.dtype} on {tensor.device}, engines are float32 on the CPU")


def _sequence(modules: list[nn.Module]) -> nn.Module:
    if not modules:
        return nn.Identity()
    return modules[0].eval() if len(modules) == 1 else nn.Sequential(*modules).eval()
