"""Each op as launches on made-up inputs, with what its reference says in fp64 and in torch's own arithmetic."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu import choice, packing
from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.network import block_launches
from mnv3_fast.ops.depthwise_conv import reference as depthwise_reference
from mnv3_fast.ops.depthwise_conv import triton_kernel as depthwise_kernel
from mnv3_fast.ops.elements import ACTIVATIONS, GATES
from mnv3_fast.ops.inverted_residual import reference as block_reference
from mnv3_fast.ops.inverted_residual.layout import HAS_BIAS
from mnv3_fast.ops.pointwise_conv import reference as pointwise_reference
from mnv3_fast.ops.pointwise_conv import triton_kernel as pointwise_kernel
from mnv3_fast.ops.squeeze_excite import reference as squeeze_reference
from mnv3_fast.ops.squeeze_excite import triton_kernel as squeeze_kernel
from mnv3_fast.ops.squeeze_excite_gate import reference as gate_reference
from mnv3_fast.ops.squeeze_excite_gate import triton_kernel as gate_kernel
from mnv3_fast.ops.stem_conv import reference as stem_reference
from mnv3_fast.ops.stem_conv import triton_kernel as stem_kernel
from tests.gpu.device import garbage
from tests.gpu.requests import Request, Result, Run

NO_NORM = (None, None, None, None, 0.0)


def _numbers(request: Request) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(str(request).encode()))


def _random(request: Request, generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers that the request's dtype holds exactly, in fp32."""
    return (torch.randn(*shape, generator=generator) * scale).to(request.torch_dtype).float()


def _map(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _empty_map(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    return garbage(n, h, w, c, dtype=dtype).permute(0, 3, 1, 2)


def _code(request: Request) -> int:
    return ACTIVATIONS[request.activation]


def _both(function: Callable, *arguments: object, dtype: torch.dtype) -> tuple:
    """A reference in fp64, and in torch's arithmetic of a dtype."""
    return tuple(
        function(*(a.to(to) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments))
        for to in (torch.float64, dtype)
    )


def depthwise_conv(request: Request, kernels: Any = depthwise_kernel) -> Run:
    """A depthwise convolution; with ``mean`` also the sums of its output's tiles, compared as means.

    Args:
        request: what is computed.
        kernels: the op's ``triton_kernel`` or ``cuda_kernel``.
    """
    generator, dtype, kernel = _numbers(request), request.torch_dtype, request.kernel
    x = _random(request, generator, request.n, request.c, request.h, request.w)
    weight = _random(request, generator, request.c, 1, kernel, kernel, scale=(2 / kernel**2) ** 0.5)
    bias = _random(request, generator, request.c, scale=0.3)
    arguments = (x, weight, bias, *NO_NORM, *request.window, _code(request))
    (exact, exact_mean), (theirs, their_mean) = _both(depthwise_reference.depthwise_conv_mean, *arguments, dtype=dtype)
    inputs = [_map(x, dtype), packing.pack_depthwise(weight, dtype), bias]
    output = _empty_map(request.n, request.c, *request.out_size, dtype)
    results, outputs, sums = {"output": Result(lambda: output, exact, theirs)}, [output], None
    if request.mean:
        sums = garbage(*kernels.sums_shape(output, (kernel, kernel), request.window), dtype=torch.float32)
        pixels = request.out_size[0] * request.out_size[1]
        results["mean"] = Result(lambda: (sums.sum(1) / pixels).to(dtype), exact_mean, their_mean)
        outputs.append(sums)
    launches = kernels.launches(*inputs, output, (kernel, kernel), request.window, _code(request), sums)
    return Run(launches, inputs, outputs, results)


def pointwise_conv(request: Request) -> Run:
    """A 1x1 convolution with what stands around it."""
    generator, dtype = _numbers(request), request.torch_dtype
    outs = request.outputs
    x = _random(request, generator, request.n, request.c, request.h, request.w)
    weight = _random(request, generator, outs, request.c, scale=(2 / request.c) ** 0.5)
    bias = _random(request, generator, outs, scale=0.3)
    gate = torch.rand(request.n, request.c, generator=generator).to(dtype).float() if request.gate else None
    residual = _random(request, generator, request.n, outs, request.h, request.w) if request.residual else None
    arguments = (x, weight, bias, *NO_NORM, gate, residual, _code(request))
    exact, theirs = _both(pointwise_reference.pointwise_conv, *arguments, dtype=dtype)
    output = _empty_map(request.n, outs, request.h, request.w, dtype)
    packed = [_map(x, dtype), packing.pack_pointwise(weight, dtype), bias]
    extra = [None if gate is None else gate.to(dtype), None if residual is None else _map(residual, dtype)]
    launches = pointwise_kernel.launches(*packed, output, _code(request), *extra)
    inputs = packed + [tensor for tensor in extra if tensor is not None]
    return Run(launches, inputs, [output], {"output": Result(lambda: output, exact, theirs)})


def stem_conv(request: Request) -> Run:
    """The first convolution; with ``bytes`` of a uint8 image that is normalised on the way in."""
    generator, dtype, kernel = _numbers(request), request.torch_dtype, request.kernel
    outs = request.outputs
    x = _random(request, generator, request.n, request.c, request.h, request.w)
    scale = shift = None
    if request.bytes:
        x = (x * 60 + 128).clamp(0, 255).to(torch.uint8)
        scale = (torch.rand(request.c, generator=generator) / 60).to(dtype).float()
        shift = _random(request, generator, request.c)
    weight = _random(request, generator, outs, request.c, kernel, kernel, scale=(2 / (request.c * kernel**2)) ** 0.5)
    bias = _random(request, generator, outs, scale=0.3)
    arguments = (weight, bias, *NO_NORM, scale, shift, *request.window, _code(request))
    exact, theirs = _both(stem_reference.stem_conv, x, *arguments, dtype=dtype)
    output = _empty_map(request.n, outs, *request.out_size, dtype)
    image = _map(x, torch.uint8 if request.bytes else dtype)
    image = image.contiguous() if request.layout == "contiguous" else image
    inputs = [image, packing.pack_stem(weight, dtype), bias]
    extra = [] if scale is None or shift is None else [scale, shift]
    window, code = request.window, _code(request)
    launches = stem_kernel.launches(*inputs, output, (kernel, kernel), window, code, *extra)
    return Run(launches, inputs + extra, [output], {"output": Result(lambda: output, exact, theirs)})


def _layers(request: Request, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights and biases of both layers of squeeze-excite."""
    c, squeeze = request.c, request.squeeze or max(1, request.c // 4)
    first = _random(request, generator, squeeze, c, scale=(2 / c) ** 0.5)
    second = _random(request, generator, c, squeeze, scale=(2 / squeeze) ** 0.5)
    first_bias, second_bias = _random(request, generator, squeeze, scale=0.1), _random(request, generator, c)
    return first, first_bias, second, second_bias


def _packed_layers(layers: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    return [packing.pack_pointwise(t, dtype) if t.dim() == 2 else t for t in layers]


def _workspace(request: Request, squeeze: int) -> Tensor:
    return garbage(gate_kernel.workspace_size(request.n, request.c, squeeze), dtype=request.torch_dtype)


def squeeze_excite_gate(request: Request) -> Run:
    """The gate from sums of channels, which come as the sums of each row of a map [h, w]."""
    generator, dtype = _numbers(request), request.torch_dtype
    sums = torch.randn(request.n, request.h, request.c, generator=generator) * request.w
    pixels, layers = request.h * request.w, _layers(request, generator)
    mean = sums.double().sum(1) / pixels
    exact, theirs = _both(gate_reference.squeeze_excite_gate, mean, *layers, _code(request), 0, 1 / 6, dtype=dtype)
    packed = _packed_layers(layers, dtype)
    gates = garbage(request.n, request.c, dtype=dtype)
    workspace = _workspace(request, len(layers[0]))
    launches = gate_kernel.launches(sums, pixels, *packed, gates, workspace, _code(request), 0, 1 / 6)
    return Run(launches, [sums, *packed], [gates], {"gates": Result(lambda: gates, exact, theirs)})


def squeeze_excite(request: Request) -> Run:
    """Sums, gate and product."""
    generator, dtype = _numbers(request), request.torch_dtype
    x = _random(request, generator, request.n, request.c, request.h, request.w)
    layers = _layers(request, generator)
    exact, theirs = _both(squeeze_reference.squeeze_excite, x, *layers, _code(request), 0, 1 / 6, dtype=dtype)
    packed, image = _packed_layers(layers, dtype), _map(x, dtype)
    output = _empty_map(request.n, request.c, request.h, request.w, dtype)
    sums = garbage(*squeeze_kernel.sums_shape(image), dtype=torch.float32)
    gates = garbage(request.n, request.c, dtype=torch.float32)
    work = _workspace(request, len(layers[0]))
    launches = squeeze_kernel.launches(image, *packed, output, sums, gates, work, _code(request), 0, 1 / 6)
    outputs = [output, sums, gates]
    return Run(launches, [image, *packed], outputs, {"output": Result(lambda: output, exact, theirs)})


def _triton_block(block: packing.Block, input: Tensor, output: Tensor) -> list[AnyLaunch]:
    with choice.force(inverted_residual="triton", depthwise_conv="triton"):
        return in_arena(lambda arena: block_launches(block, input, output, arena))


def in_arena(launches: Callable[[Arena], list[AnyLaunch]]) -> list[AnyLaunch]:
    """Launches with the memory that they take of an arena: made once to see how much, and once more in it."""
    arena = Arena(torch.device("cpu"))
    launches(arena)
    arena.allocate()
    return launches(arena)


def inverted_residual(request: Request, launches: Callable[..., list[AnyLaunch]] = _triton_block) -> Run:
    """A whole block: expansion, depthwise convolution, squeeze-excite where there are squeezed channels, projection.

    Args:
        request: what is computed; its activation stands behind the first two layers.
        launches: gives the launches of a packed block on an input and an output.
    """
    generator, dtype, kernel = _numbers(request), request.torch_dtype, request.kernel
    hidden, outs, code = request.hidden or request.c, request.outputs, _code(request)
    x = _random(request, generator, request.n, request.c, request.h, request.w)
    tensors = [_random(request, generator, hidden, request.c, 1, 1, scale=(2 / request.c) ** 0.5)]
    tensors.append(_random(request, generator, hidden, scale=0.3))
    tensors.append(_random(request, generator, hidden, 1, kernel, kernel, scale=(2 / kernel**2) ** 0.5))
    tensors.append(_random(request, generator, hidden, scale=0.3))
    tensors.append(_random(request, generator, outs, hidden, 1, 1, scale=(2 / hidden) ** 0.5))
    tensors.append(_random(request, generator, outs, scale=0.3))
    tensors += _layers(replace(request, c=hidden), generator) if request.squeeze else []
    spec = (1, HAS_BIAS, code, HAS_BIAS, code, *request.window, int(bool(request.squeeze)))
    spec = (*spec, ACTIVATIONS["relu"], GATES["hardsigmoid"], HAS_BIAS, 0, int(request.residual))
    constants = (0.0, 0.0, 0.0, 1 / 6)
    exact, theirs = (
        block_reference.inverted_residual(x.to(to), [t.to(to) for t in tensors], spec, constants)
        for to in (torch.float64, dtype)
    )
    input, output = _map(x, dtype), _empty_map(request.n, outs, *request.out_size, dtype)
    found = launches(packing.pack_block(tensors, spec, constants, dtype), input, output)
    return Run(found, [input], [output], {"output": Result(lambda: output, exact, theirs)})


OPERATORS: dict[str, Callable[[Request], Run]] = {
    "depthwise_conv": depthwise_conv,
    "pointwise_conv": pointwise_conv,
    "squeeze_excite_gate": squeeze_excite_gate,
    "squeeze_excite": squeeze_excite,
    "stem_conv": stem_conv,
    "inverted_residual": inverted_residual,
}


def in_dtype(request: Request, dtype: str) -> Request:
    """The same in another dtype."""
    return replace(request, dtype=dtype)
