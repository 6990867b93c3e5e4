"""What the kernels ask of single modules, whichever library they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from mnv3_fast.models.layers import Conv2dSame
from mnv3_fast.ops.depthwise_conv.op import KERNEL_SIZES

if TYPE_CHECKING:
    from mnv3_fast.models.description import ConvLayer


class Unsupported(Exception):
    """A module that our kernels cannot run as it stands; the message says why."""


_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def check_norm(module: nn.Module | None, classes: tuple[type, ...] = _BATCH_NORMS) -> None:
    """A BatchNorm with running statistics, or none."""
    if module is None:
        return
    if type(module) not in classes:
        raise Unsupported(f"norm {type(module).__name__} cannot be folded into a convolution")
    if (module.weight is None) != (module.bias is None):
        raise Unsupported("BatchNorm with only one of weight and bias has no kernel")
    if module.running_mean is None or module.running_var is None:
        raise Unsupported("BatchNorm without running statistics cannot be folded into a convolution")
    if not isinstance(module.eps, (int, float)) or not module.eps >= 0:
        raise Unsupported(f"BatchNorm with eps {module.eps} is left to torch")


def is_same_conv(conv: nn.Module) -> bool:
    """Whether a convolution pads as TensorFlow's SAME: ours, or timm's, by its name, since timm is not imported."""
    cls = type(conv)
    return cls is Conv2dSame or (cls.__name__ == "Conv2dSame" and cls.__module__.startswith("timm."))


def is_conv(conv: nn.Module) -> bool:
    """Whether a module is a convolution whose forward is known; a subclass of a user's may do anything else."""
    return type(conv) is nn.Conv2d or is_same_conv(conv)


def check_conv(conv: nn.Module, kind: str) -> None:
    """A convolution of one kind, "pointwise", "depthwise" or "stem", that the kernels run."""
    if not is_conv(conv):
        raise Unsupported(f"{kind} convolution is a {type(conv).__name__}, not an nn.Conv2d")
    if is_same_conv(conv) and conv.padding != (0, 0):
        raise Unsupported(f"{kind} convolution is a {type(conv).__name__} with padding {conv.padding!r}")
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise Unsupported(f"padding {conv.padding!r} with mode {conv.padding_mode!r} has no kernel")
    if kind == "pointwise":
        plain = conv.groups == 1 and conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0)
        if not plain:
            raise Unsupported(f"expected a 1x1 convolution, got {_words(conv)}")
    elif kind == "depthwise":
        if conv.groups != conv.in_channels or conv.out_channels != conv.in_channels:
            raise Unsupported(f"expected a depthwise convolution, got {_words(conv)}")
        if not set(conv.kernel_size) <= set(KERNEL_SIZES):
            raise Unsupported(f"depthwise kernel size {conv.kernel_size} has no kernel (1, 3, 5 and 7 have)")
    elif conv.groups != 1 or conv.in_channels * conv.kernel_size[0] > 64:
        raise Unsupported(f"expected a stem (a dense convolution of few channels), got {_words(conv)}")


def check_residual(depthwise: ConvLayer, residual: bool) -> bool:
    """Whether a block adds its input; raises Unsupported if its depthwise convolution changes the size of the map."""
    conv = depthwise.conv
    if residual:
        same = is_same_conv(conv)
        for kernel, stride, padding, dilation in zip(
            conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True
        ):
            if stride != 1 or (not same and 2 * padding != dilation * (kernel - 1)):
                raise Unsupported(f"it adds its input to a map of another size: {_words(conv)}")
    return residual


def is_dense_linear(linear: nn.Module) -> bool:
    """A weight of at least one row and a bias of as many values; torch also takes a bias that it broadcasts."""
    outputs = linear.weight.shape[0]
    return outputs > 0 and (linear.bias is None or tuple(linear.bias.shape) == (outputs,))


def is_global_average(pool: nn.Module) -> bool:
    """Whether a module is AdaptiveAvgPool2d(1)."""
    return type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))


def _words(conv: nn.Conv2d) -> str:
    """The convolution in words; its repr cannot be traced by torch.compile."""
    return (
        f"{conv.in_channels} to {conv.out_channels} channels, kernel {conv.kernel_size}, stride {conv.stride}, "
        f"padding {conv.padding}, groups {conv.groups}"
    )
