"""The flattened form of a block: what ``mnv3_fast::inverted_residual`` takes besides its input.

tensors: for expand (if there is one), depthwise and project in turn: weight, then bias if its flags say so, then
BatchNorm's weight, bias, running_mean, running_var (only the last two if it is not affine); then fc1 weight and bias
and fc2 weight and bias of squeeze-excite, if there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HAS_BIAS, HAS_BATCH_NORM, NOT_AFFINE = 1, 2, 4
FLOAT32 = (torch.float32,)
CPU = torch.device("cpu")

SPEC = (
    "has_expand",
    "expand_flags",
    "expand_activation",
    "depthwise_flags",
    "depthwise_activation",
    "stride_h",
    "stride_w",
    "pad_left",
    "pad_right",
    "pad_top",
    "pad_bottom",
    "dilation_h",
    "dilation_w",
    "has_squeeze_excite",
    "squeeze_activation",
    "gate",
    "project_flags",
    "project_activation",
    "residual",
)
"""The ints of ``spec``, in order; ``constants`` is expand_eps, depthwise_eps, project_eps, slope."""


@dataclass(frozen=True)
class Layer:
    """One convolution of a block: weight, bias, the four BatchNorm vectors (None where absent), eps."""

    weight: Tensor
    bias: Tensor | None
    batch_norm: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    eps: float


@dataclass(frozen=True)
class Block:
    """The tensors of a flattened block by name."""

    expand: Layer | None
    depthwise: Layer
    project: Layer
    squeeze_excite: tuple[Tensor, Tensor, Tensor, Tensor] | None


def unflatten(tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> Block:
    """The inverse of ``BlockDescription.flatten``.

    Raises:
        ValueError: if the numbers of tensors, ints or constants do not fit each other.
    """
    if len(spec) != len(SPEC) or len(constants) != 4 or len(tensors) != count_of_block(spec):
        raise ValueError(
            f"inverted_residual: {len(tensors)} tensors, {len(spec)} ints and {len(constants)} constants do not fit "
            "each other; flatten a block with mnv3_fast.models.description.describe_block(block).flatten()"
        )
    rest = list(tensors)
    expand = take_layer(rest, spec[1], constants[0]) if spec[0] else None
    depthwise = take_layer(rest, spec[3], constants[1])
    project = take_layer(rest, spec[16], constants[2])
    squeeze_excite = (rest[0], rest[1], rest[2], rest[3]) if spec[13] else None
    return Block(expand, depthwise, project, squeeze_excite)


def count_of_block(spec: Sequence[int]) -> int:
    """How many tensors a block's spec asks for."""
    count = 4 if spec[13] else 0
    for flags in (spec[1], spec[3], spec[16]) if spec[0] else (spec[3], spec[16]):
        count += count_of_layer(flags)
    return count


def count_of_layer(flags: int) -> int:
    """How many tensors a convolution has."""
    count = 1 + int(bool(flags & HAS_BIAS))
    if flags & HAS_BATCH_NORM:
        count += 2 if flags & NOT_AFFINE else 4
    return count


def flags_of(op: str, weight: Tensor, bias: Tensor | None, norm: Sequence[Tensor | None]) -> tuple[int, list[Tensor]]:
    """The flags of a convolution and its tensors. ``norm`` is BatchNorm's weight, bias, mean and var, or None each."""
    gamma, beta, mean, variance = norm
    if (gamma is None) != (beta is None):
        raise ValueError(f"{op}: batch_norm must have both weight and bias or neither")
    flags, tensors = 0, [weight]
    if bias is not None:
        flags |= HAS_BIAS
        tensors.append(bias)
    if mean is not None and variance is not None:
        flags |= HAS_BATCH_NORM | (NOT_AFFINE if gamma is None else 0)
        tensors += [mean, variance] if gamma is None or beta is None else [gamma, beta, mean, variance]
    return flags, tensors


def check_block(block: Block, dtypes: tuple[torch.dtype, ...] = FLOAT32, device: torch.device = CPU) -> None:
    """The kernels read the memory of these tensors by their sizes: all must be of the dtypes, and fit each other.

    Raises:
        TypeError: for another dtype.
        ValueError: for a shape that does not fit, or another device.
    """
    check_weights(block)
    hidden = block.depthwise.weight.shape[0]
    for name, layer in _convolutions(block):
        check_layer("inverted_residual", name, layer, name != "depthwise", dtypes, device)
    if block.squeeze_excite:
        squeeze = block.squeeze_excite[0].shape[0]
        shapes = ((squeeze, hidden), (squeeze,), (hidden, squeeze), (hidden,))
        for tensor, wanted in zip(block.squeeze_excite, shapes, strict=True):
            if tensor.shape != wanted and (len(wanted) == 1 or tensor.shape != (*wanted, 1, 1)):
                raise ValueError(f"inverted_residual: squeeze_excite does not fit the block, got {list(tensor.shape)}")
            check_vector("inverted_residual", "squeeze_excite", tensor, tensor.shape, dtypes, device)


def check_weights(block: Block) -> None:
    """The shapes of the convolutions' weights, on any device.

    Raises:
        ValueError: for one that does not fit.
    """
    for name, layer in _convolutions(block):
        if layer.weight.dim() != 4:
            raise ValueError(
                f"inverted_residual: {name} weight must have four dimensions, got {list(layer.weight.shape)}"
            )
    hidden = block.depthwise.weight.shape[0]
    wanted = {"expand": (hidden, None), "depthwise": (hidden, 1), "project": (None, hidden)}
    for name, layer in _convolutions(block):
        shape = layer.weight.shape
        if any(size is not None and size != got for size, got in zip(wanted[name], shape[:2], strict=True)):
            raise ValueError(f"inverted_residual: {name} weight does not fit the block, got {list(shape)}")


def _convolutions(block: Block) -> list[tuple[str, Layer]]:
    layers = [("expand", block.expand), ("depthwise", block.depthwise), ("project", block.project)]
    return [(name, layer) for name, layer in layers if layer is not None]


def check_layer(
    op: str,
    name: str,
    layer: Layer,
    pointwise: bool,
    dtypes: tuple[torch.dtype, ...] = FLOAT32,
    device: torch.device = CPU,
) -> None:
    """As :func:`check_block`, for one convolution; ``pointwise`` wants a 1x1 kernel."""
    shape = layer.weight.shape
    if pointwise and shape[2:] not in ((1, 1), ()):
        raise ValueError(f"{op}: {name} weight must be that of a 1x1 convolution, got {list(shape)}")
    if len(shape) < 2 or (not pointwise and len(shape) != 4):
        raise ValueError(f"{op}: {name} weight must have four dimensions, got {list(shape)}")
    check_vector(op, f"{name} weight", layer.weight, shape, dtypes, device)
    for part, vector in (("bias", layer.bias), *zip(("weight", "bias", "mean", "var"), layer.batch_norm, strict=True)):
        if vector is not None:
            check_vector(op, f"{name} {part}", vector, shape[:1], dtypes, device)


def check_vector(
    op: str,
    name: str,
    tensor: Tensor,
    shape: Sequence[int],
    dtypes: tuple[torch.dtype, ...] = FLOAT32,
    device: torch.device = CPU,
) -> None:
    """One tensor of a shape, one of the dtypes and on the device."""
    if tensor.dtype not in dtypes:
        wanted, got = " or ".join(map(str, dtypes)).replace("torch.", ""), str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be {wanted}, got {got}")
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} must be {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != device:
        place = "the CPU" if device == CPU else device
        raise ValueError(f"{op}: {name} must be on {place} as the input is, got {tensor.device}")


def take_layer(tensors: list[Tensor], flags: int, eps: float) -> Layer:
    """A convolution from the front of a list, which loses what it takes."""
    weight = tensors.pop(0)
    bias = tensors.pop(0) if flags & HAS_BIAS else None
    if not flags & HAS_BATCH_NORM:
        return Layer(weight, bias, (None, None, None, None), 0.0)
    gamma = None if flags & NOT_AFFINE else tensors.pop(0)
    beta = None if flags & NOT_AFFINE else tensors.pop(0)
    return Layer(weight, bias, (gamma, beta, tensors.pop(0), tensors.pop(0)), eps)
