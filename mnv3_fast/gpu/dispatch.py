"""The single ops on GPUs: check, fold, pack, allocate, launch. Registered for CUDA tensors, which are ROCm's, too.

Each ``run_<op>`` takes the raw op's arguments and works on tensors of any device on which launches can be run or
observed. Triton is imported when the first of them makes launches. An op folds and packs its weights on each call;
blocks and networks do so once (``mnv3_fast.accelerate``, ``mnv3_fast.freeze``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu import choice, first_use, launch, raw_arguments
from mnv3_fast.gpu.choice import Question
from mnv3_fast.ops import checks, registration
from mnv3_fast.ops.elements import convolved_size, dense_nhwc, empty_nhwc, resolve_window

Run = Callable[..., Any]


def compute_dtype(args: Sequence[Any]) -> torch.dtype:
    """The dtype of an op's arithmetic and output: its input's, or beside an image of bytes its weight's."""
    return args[1].dtype if args[0].dtype is torch.uint8 else args[0].dtype


def mixed(reference: Run) -> Run:
    """A reference that takes parameters of another dtype than its input's.

    Where dtypes differ it computes in the widest and rounds once; torch's own operators refuse such arguments.
    """

    @functools.wraps(reference)
    def run(*args: Any) -> Any:
        floats = {item.dtype for item in args if isinstance(item, Tensor) and item.is_floating_point()}
        if len(floats) <= 1:
            return reference(*args)
        dtype, wide = compute_dtype(args), functools.reduce(torch.promote_types, floats)
        outputs = reference(*[_cast(item, wide) for item in args])
        return tuple(item.to(dtype) for item in outputs) if isinstance(outputs, tuple) else outputs.to(dtype)

    return run


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def implementation(name: str, kernel: str, reference: Run) -> Run:
    """What ``mnv3_fast::<name>`` does on a GPU: its kernel, or the reference where that is switched off.

    Args:
        name: of the raw op, which :data:`RUN` and ``raw_arguments.CHECK`` know.
        kernel: what ``first_use`` checks.
        reference: of the raw op.
    """

    def on_gpu(*args: Any) -> Any:
        dtype = compute_dtype(args)
        if dtype not in checks.GPU_DTYPES or first_use.usable(kernel, args[0].device, dtype):
            return RUN[name](*args)  # which refuses another dtype
        return registration.run_reference(reference, raw_arguments.CHECK[name](*args))

    return on_gpu


def register(name: str, kernel: str, reference: Run) -> None:
    """Give ``mnv3_fast::<name>`` its :func:`implementation` for CUDA tensors."""
    registration.LIBRARY.impl(name, implementation(name, kernel, reference), "CUDA")


def run_stem_conv(*args: Any) -> Tensor:
    """``mnv3_fast::stem_conv`` by its kernel.

    Args:
        args: the raw op's: input [N, C, H, W] float32, float16, bfloat16 or uint8 of any strides, read as it is;
            weight, bias, BatchNorm, scale and shift of the input's dtype (of bytes: the weight's) or float32.

    Returns:
        [N, O, OH, OW] of the input's dtype (of bytes: the weight's), dense NHWC.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    args = raw_arguments.check_stem_conv(*args)
    input, weight, bias, *norm, eps, scale, shift = args[:10]
    window, activation, dtype = args[10:18], args[18], compute_dtype(args)
    window = resolve_window(input.shape[2:], weight.shape[2:], window)
    size = convolved_size(input.shape[2:], weight.shape[2:], window)
    output = empty_nhwc(input.new_empty(0, dtype=dtype), input.shape[0], weight.shape[0], *size)
    if input.shape[0] == 0:
        return output
    from mnv3_fast.engine.kinds import STEM
    from mnv3_fast.gpu.packing import pack_vector
    from mnv3_fast.ops.stem_conv import triton_kernel

    layer = _packed(STEM, weight, bias, norm, eps, dtype, window, activation)
    normalisation: list[Tensor | None] = [None, None]
    if scale is not None or shift is not None:
        channels = input.shape[1]
        ones = torch.ones(channels, device=input.device) if scale is None else scale
        normalisation = [pack_vector(vector, channels, input.device) for vector in (ones, shift)]
    options = layer.kernel, window, activation, *normalisation
    launch.run(triton_kernel.launches(input, layer.weight, layer.bias, output, *options))
    return output


def run_pointwise_conv(*args: Any) -> Tensor:
    """``mnv3_fast::pointwise_conv`` by its kernel.

    Args:
        args: the raw op's: input [N, C, H, W] float32, float16 or bfloat16, any strides (copied if not NHWC);
            residual of the input's dtype; weight, bias, BatchNorm and gate of the input's dtype or float32.

    Returns:
        [N, O, H, W] of the input's dtype, dense NHWC.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    input, weight, bias, *norm, eps, gate, residual, activation = raw_arguments.check_pointwise_conv(*args)
    output = empty_nhwc(input, input.shape[0], weight.shape[0], *input.shape[2:])
    if input.shape[0] == 0:
        return output
    from mnv3_fast.engine.kinds import POINTWISE
    from mnv3_fast.gpu.packing import NO_WINDOW
    from mnv3_fast.ops.pointwise_conv import triton_kernel

    layer = _packed(POINTWISE, weight, bias, norm, eps, input.dtype, NO_WINDOW, activation)
    gate = None if gate is None else gate.contiguous()
    residual = None if residual is None else dense_nhwc(residual)
    options = activation, gate, residual
    launch.run(triton_kernel.launches(dense_nhwc(input), layer.weight, layer.bias, output, *options))
    return output


def run_depthwise_conv(*args: Any) -> Tensor:
    """``mnv3_fast::depthwise_conv`` by its kernel.

    Args:
        args: the raw op's: input [N, C, H, W] float32, float16 or bfloat16, any strides (copied if not NHWC);
            weight, bias and BatchNorm of the input's dtype or float32.

    Returns:
        [N, C, OH, OW] of the input's dtype, dense NHWC.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    return _depthwise_conv(raw_arguments.check_depthwise_conv(*args), False)[0]


def run_depthwise_conv_mean(*args: Any) -> tuple[Tensor, Tensor]:
    """``mnv3_fast::depthwise_conv_mean``: the same, and the means [N, C] from sums that its kernel made by tile."""
    return _depthwise_conv(raw_arguments.check_depthwise_conv(*args), True)


def _depthwise_conv(args: Sequence[Any], with_mean: bool) -> tuple[Tensor, Tensor]:
    input, weight, bias, *norm, eps = args[:8]
    window, activation, (n, channels) = args[8:16], args[16], input.shape[:2]
    window = resolve_window(input.shape[2:], weight.shape[2:], window)
    output = empty_nhwc(input, n, channels, *convolved_size(input.shape[2:], weight.shape[2:], window))
    mean = input.new_empty(n, channels)
    if n == 0:
        return output, mean
    from mnv3_fast.engine.kinds import BLOCK
    from mnv3_fast.ops.squeeze_excite.triton_kernel import channel_sums

    layer = _packed(BLOCK, weight, bias, norm, eps, input.dtype, window, activation)
    shape = n, channels, *input.shape[2:]
    question = Question("depthwise_conv", input.dtype, shape, layer.kernel, tuple(window), activation, with_mean)
    kernel, sums = choice.depthwise_conv(question, input.device), None
    if with_mean:
        sums = input.new_empty(kernel.sums_shape(output, layer.kernel, window), dtype=torch.float32)
    options = layer.kernel, window, activation, sums
    found = kernel.launches(dense_nhwc(input), layer.weight, layer.bias, output, *options)
    if sums is not None:
        # Tiles are added up in their order, as the pixels of a map [N, C, tiles, 1] that lies there as NHWC.
        parts = sums.transpose(1, 2)[..., None]
        found += channel_sums(parts, mean.view(n, 1, channels), 1 / (output.shape[2] * output.shape[3]))
    launch.run(found)
    return output, mean


def run_squeeze_excite_gate(*args: Any) -> Tensor:
    """``mnv3_fast::squeeze_excite_gate`` by its kernel.

    Args:
        args: the raw op's: mean [N, C] float32, float16 or bfloat16; layers of its dtype or float32.

    Returns:
        [N, C] of the mean's dtype.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    mean, *layers, activation, gate, slope = raw_arguments.check_squeeze_excite_gate(*args)
    gates = mean.new_empty(mean.shape)
    if mean.shape[0] == 0:
        return gates
    from mnv3_fast.ops.squeeze_excite_gate import triton_kernel

    packed, workspace = _packed_layers(mean, layers)
    sums = mean.contiguous()[:, None]
    launch.run(triton_kernel.launches(sums, 1, *packed, gates, workspace, activation, gate, slope))
    return gates


def run_squeeze_excite(*args: Any) -> Tensor:
    """``mnv3_fast::squeeze_excite`` by its kernels.

    Args:
        args: the raw op's: input [N, C, H, W] float32, float16 or bfloat16, any strides (copied if not NHWC);
            layers of its dtype or float32.

    Returns:
        [N, C, H, W] of the input's dtype, dense NHWC.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    input, *layers, activation, gate, slope = raw_arguments.check_squeeze_excite(*args)
    output = empty_nhwc(input, *input.shape)
    if input.shape[0] == 0:
        return output
    from mnv3_fast.ops.squeeze_excite import triton_kernel

    packed, workspace = _packed_layers(input, layers)
    sums = input.new_empty(triton_kernel.sums_shape(input), dtype=torch.float32)
    gates = input.new_empty(input.shape[:2], dtype=torch.float32)
    rest = workspace, activation, gate, slope
    launch.run(triton_kernel.launches(dense_nhwc(input), *packed, output, sums, gates, *rest))
    return output


def run_inverted_residual(input: Tensor, tensors: list[Tensor], spec: list[int], constants: list[float]) -> Tensor:
    """``mnv3_fast::inverted_residual`` by its kernels, packed for this call alone.

    Args:
        input, tensors, spec, constants: the raw op's, as ``mnv3_fast.gpu.execute.run_stages`` checks them.

    Returns:
        [N, O, OH, OW] of the input's dtype, dense NHWC.
    """
    from mnv3_fast.engine.kinds import BLOCK
    from mnv3_fast.gpu.executor import Executor
    from mnv3_fast.gpu.network import Network
    from mnv3_fast.ops.network.layout import Stage

    return Executor(Network([Stage(BLOCK, spec, constants, tensors)], input.dtype)).run(input)


def _packed(
    kind: int, weight: Tensor, bias: Tensor | None, norm: Sequence[Any], eps: float, dtype: torch.dtype, *rest: Any
) -> Any:
    """A layer folded and packed; ``rest`` is its window and activation."""
    from mnv3_fast.gpu.packing import pack_layer
    from mnv3_fast.ops.inverted_residual.layout import Layer

    return pack_layer(kind, Layer(weight, bias, tuple(norm), eps), *rest, dtype)


def _packed_layers(like: Tensor, layers: Sequence[Any]) -> tuple[list[Tensor], Tensor]:
    """Both layers of squeeze-excite packed for an input [N, C, ...], and work space for its launch."""
    from mnv3_fast.gpu.packing import pack_pointwise, pack_vector
    from mnv3_fast.ops.squeeze_excite_gate.triton_kernel import workspace_size

    fc1, bias1, fc2, bias2 = layers
    (n, channels), squeeze = like.shape[:2], fc1.shape[0]
    packed = [
        pack_pointwise(fc1, like.dtype),
        pack_vector(bias1, squeeze, like.device),
        pack_pointwise(fc2, like.dtype),
        pack_vector(bias2, channels, like.device),
    ]
    return packed, like.new_empty(workspace_size(n, channels, squeeze))


RUN: dict[str, Run] = {
    "stem_conv": run_stem_conv,
    "pointwise_conv": run_pointwise_conv,
    "depthwise_conv": run_depthwise_conv,
    "depthwise_conv_mean": run_depthwise_conv_mean,
    "squeeze_excite_gate": run_squeeze_excite_gate,
    "squeeze_excite": run_squeeze_excite,
    "inverted_residual": run_inverted_residual,
}
