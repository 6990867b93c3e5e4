"""freeze(): a whole network in one op, with folded and packed weights of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.ops.misc import FrozenBatchNorm2d

from mnv3_fast import gpu
from mnv3_fast.engine import graph
from mnv3_fast.engine.chain import EngineChain
from mnv3_fast.engine.classifier import with_engine
from mnv3_fast.engine.engine import Engine
from mnv3_fast.engine.headed import HeadedEngine
from mnv3_fast.engine.packing import pack_stages
from mnv3_fast.engine.staged import StagedEngine
from mnv3_fast.gpu import Progress
from mnv3_fast.models.description import (
    NetDescription,
    PyramidDescription,
    Unsupported,
    describe_net,
    describe_pyramid,
)
from mnv3_fast.models.mmpretrain import is_classifier
from mnv3_fast.models.torchvision import has_hooks
from mnv3_fast.nn.parts import computed_attributes, copy_model
from mnv3_fast.ops.network.layout import Stage

TOLD = (
    "pretrained_cfg",
    "default_cfg",
    "num_classes",
    "num_features",
    "head_hidden_size",
    "feature_info",
    "stage_ends",
    "out_indices",
)
"""What timm and mmpretrain ask a network for beside its outputs: preprocessing, channels, strides."""


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
        model: a MobileNetV3 of torchvision, timm or mmpretrain (accelerated or not), its ``features``, a backbone with
            several outputs (mmpretrain's, timm's ``features_only``, of a detector or segmenter, or of
            ``create_feature_extractor``), or a model that contains such networks: each of them becomes an engine in a
            copy of the model, the rest stays torch's. A classifier of fully connected layers joins the plan. On the CPU
            its weights are float32; on a GPU float32, float16 or bfloat16, which the engine's activations and output
            then are as well.
        dtype: of the engine, by default the model's. On the CPU float32 only.
        scale, shift: both or neither, a value for each input channel: the engine computes x * scale + shift as it loads
            an image, before the zeros of the padding. With ``1 / (255 * std)`` and ``-mean / std``, for the mean and
            std of values from 0 to 1 that torchvision's transforms have, it takes uint8 images as they were decoded.
        progress: on a GPU called with how many kernels have been compiled and how many there are.

    Returns:
        An :class:`Engine`; for several outputs an :class:`EngineChain`; or a copy of ``model`` with these inside.

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
        return _frozen(model, dtype, progress, *normalised)
    except Unsupported as unsupported:
        reason = str(unsupported)
    if scale is not None:
        raise ValueError(f"freeze: scale and shift are for a whole network that starts with its stem: {reason}")
    copied = _copied(model)
    reasons: list[str] = []
    if not _freeze_children(copied, dtype, progress, reasons):
        known = [] if "no known" in reason and reasons else [reason]
        raise ValueError(
            f"freeze: nothing in {type(model).__name__} can be frozen: {'; '.join([*known, *reasons][:3])}"
        )
    return copied


def _copied(model: nn.Module) -> Any:
    computed = computed_attributes(model)
    return copy_model(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def _freeze_children(
    module: nn.Module, dtype: torch.dtype | None, progress: Progress | None, reasons: list[str]
) -> bool:
    found = False
    for name, child in module._modules.items():
        if child is None:
            continue
        try:
            module._modules[name] = _frozen(child, dtype, progress)
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


def _frozen(
    model: nn.Module,
    dtype: torch.dtype | None,
    progress: Progress | None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> nn.Module:
    """The engine of a network, the chain of engines of a backbone, or a traced graph with one; raises Unsupported."""
    name = type(model).__name__
    if isinstance(model, GraphModule):
        pyramid, place = graph.read_graph(model)
        _check_frozen(model, pyramid)
        parts = _parts(pyramid, name, dtype, progress, scale, shift)
        return graph.with_chain(_copied(model), place, EngineChain(parts, None, list, name))
    try:
        description: NetDescription | PyramidDescription = describe_net(model)
    except Unsupported as unsupported:
        if "no known" not in str(unsupported):
            raise
        description = describe_pyramid(model)
    _check_frozen(model, description)
    if isinstance(description, NetDescription):
        engine = _engine_of(description, name, dtype, progress, scale, shift)
        return with_engine(_copied(model), engine) if is_classifier(model) else _told(engine, model)
    parts = _parts(description, name, dtype, progress, scale, shift)
    return _told(EngineChain(parts, description.names, description.container, name), model)


def _told(engine: nn.Module, model: nn.Module) -> nn.Module:
    """The engine with a copy of what its model tells."""
    for name in TOLD:
        if name in model.__dict__:
            setattr(engine, name, copy.deepcopy(model.__dict__[name]))
    return engine


def _parts(
    pyramid: PyramidDescription,
    name: str,
    dtype: torch.dtype | None,
    progress: Progress | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> list[Engine]:
    first, *others = pyramid.parts
    found = [_engine_of(first, name, dtype, progress, scale, shift)]
    return found + [_engine_of(part, name, dtype, progress) for part in others]


def _engine_of(
    description: NetDescription,
    name: str,
    dtype: torch.dtype | None,
    progress: Progress | None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Engine:
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
    kind = StagedEngine if description.ends else HeadedEngine if description.headed else Engine
    engine = kind(plan, geometry, description.input_channels(), _sequence(rest), name)
    engine.normalises = scale is not None
    if isinstance(engine, StagedEngine):
        engine.ends = description.ends
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
    if is_usable(executor):
        channels = engine.input_channels
        executor.precompile([(images, channels, 224, 224) for images in (1, 32)], progress)


def _check_frozen(model: nn.Module, description: NetDescription | PyramidDescription) -> None:
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
