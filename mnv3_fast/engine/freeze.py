"""freeze(): a whole network in one op, with folded and packed weights of its own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.ops.misc import FrozenBatchNorm2d

from mnv3_fast import _library, gpu
from mnv3_fast.engine import reference
from mnv3_fast.engine.op import OP, check_place, dtype_of
from mnv3_fast.engine.packing import pack_stages
from mnv3_fast.gpu import Progress
from mnv3_fast.models.description import NetDescription, Unsupported, describe_net
from mnv3_fast.models.torchvision import has_hooks
from mnv3_fast.nn.conditions import observed, transform_active
from mnv3_fast.nn.parts import computed_attributes
from mnv3_fast.ops import registration
from mnv3_fast.ops.network.layout import Stage


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
        """[N, C, H, W] of the engine's dtype (or uint8 for a network that starts with its stem), any strides and sizes.

        Raises:
            TypeError, ValueError: naming what came and what is wanted.
            RuntimeError: if grad mode is on and the input requires grad.
        """
        self._check(input)
        output = self._run(input)
        if self.geometry[0] % 2 == 1 and input.is_contiguous() and not output.is_contiguous():
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
        if self.geometry[0] > 1:
            check_place(self.plan, self.dtype)
        if input.dtype is not self.dtype and input.dtype is not torch.uint8:
            wanted, got = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, input.dtype))
            raise TypeError(f"Engine: input must be {wanted} or uint8, got {got}")
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

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and output: that of the frozen model."""
        return dtype_of(self.geometry)

    def _apply(self, fn: Any, recurse: bool = True) -> Engine:
        """A plan is for the device that it was made for: on another it would run without its kernels, unseen."""
        moved = fn(self.plan)
        if moved.device != self.plan.device:
            raise RuntimeError(
                f"Engine: cannot be moved from {self.plan.device} to {moved.device}; "
                f'freeze the model there: mnv3_fast.freeze(model.to("{moved.device}"))'
            )
        return super()._apply(fn, recurse)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # a copy, or one from a file: its plan lies in memory of its own
        _library.prefer_huge_pages(self.plan)

    def train(self, mode: bool = True) -> Engine:
        """An engine has no training mode; it stays in eval mode whatever a surrounding model does."""
        return super().train(False)

    def extra_repr(self) -> str:
        kind = "map" if self.geometry[0] % 2 else "features"
        return (
            f"{self.source}, plan of {self.plan.numel() / 2**20:.1f} MiB, output {kind} of {self.geometry[1]} channels"
        )


def freeze(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    *,
    scale: Tensor | Sequence[float] | None = None,
    shift: Tensor | Sequence[float] | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Copy and pack a network's weights once and run it in one call; inference only.

    Args:
        model: a MobileNetV3 of torchvision or timm (accelerated or not), its ``features``, or a model that contains
            such networks: each of them becomes an engine in a copy of the model, the rest stays torch's. A classifier
            of fully connected layers joins the plan. On the CPU its weights are float32; on a GPU float32, float16 or
            bfloat16, which the engine's activations and output then are as well.
        dtype: of the engine, by default the model's. On the CPU float32 only.
        scale, shift: both or neither, a value for each input channel: the engine computes x * scale + shift as it loads
            an image, before the zeros of the padding. With ``1 / (255 * std)`` and ``-mean / std``, for the mean and
            std of values from 0 to 1 that torchvision's transforms have, it takes uint8 images as they were decoded.
        progress: on a GPU called with how many kernels have been compiled and how many there are.

    Returns:
        An :class:`Engine`, or a copy of ``model`` with engines inside.

    Raises:
        TypeError: if ``model`` is no nn.Module.
        ValueError: in training mode, for another dtype, for a scale and shift of other shapes or of a model that does
            not start with its stem, or if no part of it can be frozen; the message says why.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze: model must be an nn.Module, got {type(model).__name__}")
    device = next((tensor.device.type for tensor in chain(model.parameters(), model.buffers())), "cpu")
    exist = gpu.DTYPES if device == "cuda" else (torch.float32,)
    if dtype is not None and dtype not in exist:
        words = " and ".join(str(known) for known in exist)
        raise ValueError(f"freeze: dtype {dtype} does not exist yet on {device}, only {words} there")
    if model.training:
        raise ValueError("freeze: the model is in training mode; call model.eval() first")
    normalised = _scale_and_shift(scale, shift)
    gpu.try_kernels(model)
    try:
        return _engine_of(model, dtype, progress, *normalised)
    except Unsupported as unsupported:
        reason = str(unsupported)
    if scale is not None:
        raise ValueError(f"freeze: scale and shift are for a whole network that starts with its stem: {reason}")
    computed = computed_attributes(model)
    copied = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    reasons: list[str] = []
    if not _freeze_children(copied, dtype, progress, reasons):
        known = [] if "no known" in reason and reasons else [reason]
        raise ValueError(
            f"freeze: nothing in {type(model).__name__} can be frozen: {'; '.join([*known, *reasons][:3])}"
        )
    return copied


def _freeze_children(
    module: nn.Module, dtype: torch.dtype | None, progress: Progress | None, reasons: list[str]
) -> bool:
    found = False
    for name, child in module._modules.items():
        if child is None:
            continue
        try:
            module._modules[name] = _engine_of(child, dtype, progress)
            found = True
        except Unsupported as unsupported:
            if "no known" not in str(unsupported):
                reasons.append(f"{name}: {unsupported}")
            if not isinstance(child, InvertedResidual):  # parts of a block are no network
                found |= _freeze_children(child, dtype, progress, reasons)
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


def _engine_of(
    model: nn.Module,
    dtype: torch.dtype | None,
    progress: Progress | None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Engine:
    description = describe_net(model)
    _check_frozen(model, description)
    if scale is not None and shift is not None:
        if description.stem is None:
            raise Unsupported("it does not start with a stem")
        channels = description.input_channels()
        if scale.numel() != channels or shift.numel() != channels:
            counts = f"{scale.numel()} and {shift.numel()}"
            raise ValueError(f"freeze: scale and shift must have {channels} values, one a channel, got {counts}")
    weight = description.stages()[0].tensors[0]  # which may be a buffer
    plan, geometry = pack_stages(_on_cpu(description.stages(), weight), scale, shift)
    plan = plan.to(weight.device)
    geometry[0] += 2 * gpu.DTYPES.index(dtype or weight.dtype)
    rest = [copy.deepcopy(module) for module in description.rest]
    engine = Engine(plan, geometry, description.input_channels(), _sequence(rest), type(model).__name__)
    engine.normalises = scale is not None
    if plan.is_cuda and gpu.missing_reason() is None:
        _prepare(engine, progress)
    return engine


def _on_cpu(stages: list[Stage], weight: Tensor) -> list[Stage]:
    """Stages as they are packed."""
    if weight.device.type == "cpu":
        return stages
    return [replace(stage, tensors=[t.detach().to("cpu", torch.float32) for t in stage.tensors]) for stage in stages]


def _prepare(engine: Engine, progress: Progress | None) -> None:
    """Compile what passes of common sizes need."""
    from mnv3_fast.gpu.execute import is_usable, plan_executor  # not imported before a model on a GPU needs it

    executor = plan_executor(engine.plan, engine.dtype)
    if is_usable(executor.network):
        channels = engine.input_channels
        executor.precompile([(images, channels, 224, 224) for images in (1, 32)], progress)


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
    weights = list(model.parameters())
    for tensor in weights:
        on_gpu = tensor.is_cuda and tensor.dtype in gpu.DTYPES
        if not on_gpu and (tensor.dtype is not torch.float32 or tensor.device.type != "cpu"):
            words = "engines are float32 on the CPU, also float16 and bfloat16 on a GPU"
            raise Unsupported(f"its weights are {tensor.dtype} on {tensor.device}, {words}")
        if tensor.device != weights[0].device:
            raise Unsupported(f"its weights are on {weights[0].device} and {tensor.device}, an engine's on one device")


def _sequence(modules: list[nn.Module]) -> nn.Module:
    if not modules:
        return nn.Identity()
    return modules[0].eval() if len(modules) == 1 else nn.Sequential(*modules).eval()
