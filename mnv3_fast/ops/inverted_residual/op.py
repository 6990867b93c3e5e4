"""``mnv3_fast::inverted_residual``: a whole block from its original tensors; folding and packing are cached inside.

So a captured graph holds one op a block, needs no state beyond the state_dict, and stays right after an update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mnv3_fast.engine.cache import Plan
from mnv3_fast.engine.kinds import BLOCK
from mnv3_fast.engine.packed_op import PackedOp
from mnv3_fast.engine.plan import PlanBuilder
from mnv3_fast.ops import checks
from mnv3_fast.ops.elements import convolved_size, empty_nhwc
from mnv3_fast.ops.inverted_residual import reference
from mnv3_fast.ops.inverted_residual.layout import check_block, check_weights, flags_of, unflatten
from mnv3_fast.ops.squeeze_excite_gate.op import prepare_layers


def _output_shape(input: Sequence[int], shapes: Any, spec: Sequence[int]) -> tuple[int, int, int, int]:
    """``shapes(layer)`` gives the shape of the depthwise and project weights."""
    _, _, kernel_h, kernel_w = shapes("depthwise")
    return input[0], shapes("project")[0], *convolved_size(input[2:], (kernel_h, kernel_w), spec[5:13])


def _fake(input: Tensor, tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> Tensor:
    block = unflatten(tensors, spec, constants)
    check_weights(block)
    return empty_nhwc(input, *_output_shape(input.shape, lambda layer: getattr(block, layer).weight.shape, spec))


def _flops(input: Any, tensors: Any, spec: Any, constants: Any, *, out_shape: Any = None, **kwargs: Any) -> int:
    block = unflatten(tensors, spec, constants)  # of shapes, not of tensors
    pixels_in, pixels_out = input[0] * input[2] * input[3], out_shape[0] * out_shape[2] * out_shape[3]
    expand = block.expand.weight[0] * block.expand.weight[1] * pixels_in if block.expand else 0
    depthwise = block.depthwise.weight[0] * block.depthwise.weight[2] * block.depthwise.weight[3] * pixels_out
    squeeze = 2 * block.squeeze_excite[0][0] * block.squeeze_excite[0][1] * input[0] if block.squeeze_excite else 0
    return 2 * (expand + depthwise + squeeze + block.project.weight[0] * block.project.weight[1] * pixels_out)


def _pack(tensors: list[Tensor], spec: Sequence[int], constants: Sequence[float]) -> Plan:
    block = unflatten(tensors, spec, constants)
    check_block(block)
    first = block.expand or block.depthwise
    builder = PlanBuilder(first.weight.shape[1] if block.expand else first.weight.shape[0])
    builder.add_block(tensors, spec, constants)
    return builder.build()


def _stages(tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> list[Any]:
    from mnv3_fast.ops.network.layout import Stage  # a network is built of blocks

    check_weights(unflatten(tensors, spec, constants))
    return [Stage(BLOCK, spec, constants, tensors)]


PACKED = PackedOp("inverted_residual", reference.inverted_residual, _fake, _flops, _pack, _stages)
OP, FUNCTION = PACKED.op, PACKED.function


def _flatten_layer(
    name: str, layer: Any, inputs: int, outputs: int | None, kernel: tuple, input: Tensor
) -> tuple[list[Tensor], int, float]:
    op, device, dtypes = "inverted_residual", input.device, checks.parameter_dtypes(input.dtype)
    if not isinstance(layer, (tuple, list)) or len(layer) != 3:
        raise TypeError(f"{op}: {name} must be (weight, bias or None, batch_norm or None), got {type(layer).__name__}")
    weight, bias, batch_norm = layer
    words = (
        f"[{'O' if outputs is None else outputs}, {inputs}, {', '.join('k' if k is None else str(k) for k in kernel)}]"
    )
    checks.check_tensor(op, f"{name} weight", weight, [outputs, inputs, *kernel], words, dtypes, device)
    if bias is not None:
        checks.check_tensor(op, f"{name} bias", bias, [weight.shape[0]], f"[{weight.shape[0]}]", dtypes, device)
    *norm, eps = checks.check_batch_norm(op, batch_norm, weight.shape[0], device, dtypes)
    flags, tensors = flags_of(f"{op}: {name}", weight, bias, norm)
    return tensors, flags, eps


def prepare(
    input: Tensor,
    depthwise: tuple,
    project: tuple,
    *,
    expand: tuple | None = None,
    squeeze_excite: tuple | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: int | tuple[int, int] = 1,
    activation: str = "relu",
    squeeze_activation: str = "relu",
    gate: str = "hardsigmoid",
    slope: float = 1 / 6,
    residual: bool = False,
) -> tuple[Tensor, list[Tensor], list[int], list[float]]:
    """The checked arguments of the raw op."""
    op = "inverted_residual"
    checks.check_tensor(op, "input", input, [None] * 4, "[N, C, H, W]", checks.input_dtypes(input))
    device, hidden = input.device, input.shape[1]
    tensors: list[Tensor] = []
    expand_flags, expand_eps = 0, 0.0
    if expand is not None:
        tensors, expand_flags, expand_eps = _flatten_layer("expand", expand, hidden, None, (1, 1), input)
        hidden = tensors[0].shape[0]
    depthwise_tensors, depthwise_flags, depthwise_eps = _flatten_layer(
        "depthwise", depthwise, 1, hidden, (None, None), input
    )
    project_tensors, project_flags, project_eps = _flatten_layer("project", project, hidden, None, (1, 1), input)
    tensors = tensors + depthwise_tensors + project_tensors
    window = checks.check_window(op, stride, padding, dilation)
    checks.check_output(op, input.shape[2:], depthwise_tensors[0].shape[2:], window)
    code = checks.activation_code(op, activation)
    squeeze_code, gate_code = (
        checks.activation_code(op, squeeze_activation, "squeeze_activation"),
        checks.gate_code(op, gate),
    )
    if squeeze_excite is not None:
        if not isinstance(squeeze_excite, (tuple, list)) or len(squeeze_excite) != 4:
            raise TypeError(f"{op}: squeeze_excite must be (fc1 weight, fc1 bias, fc2 weight, fc2 bias)")
        allowed = checks.parameter_dtypes(input.dtype)
        tensors += prepare_layers(op, hidden, device, *squeeze_excite, squeeze_activation, gate, slope, allowed)[:4]
    spec = [
        int(expand is not None),
        expand_flags,
        code,
        depthwise_flags,
        code,
        *window,
        int(squeeze_excite is not None),
    ]
    spec += [squeeze_code, gate_code, project_flags, 0, int(residual)]
    constants = [expand_eps, depthwise_eps, project_eps, float(slope)]
    if residual:
        shape = _output_shape(
            input.shape, {"depthwise": depthwise_tensors[0].shape, "project": project_tensors[0].shape}.get, spec
        )
        if tuple(shape) != tuple(input.shape):
            raise ValueError(
                f"{op}: residual needs an output of the input's shape {list(input.shape)}, got {list(shape)}"
            )
    return input, tensors, spec, constants


def inverted_residual(input: Tensor, depthwise: tuple, project: tuple, **options: Any) -> Tensor:
    """A whole inverted residual block: expand 1x1 -> depthwise -> squeeze-excite -> project 1x1 (+ input).

    Args:
        input: [N, C, H, W], float32 (on a GPU also float16 and bfloat16, with tensors of its dtype or float32), any
            strides.
        depthwise: (weight [E, 1, kh, kw], bias or None, batch_norm or None); batch_norm as of ``depthwise_conv``.
        project: (weight [O, E, 1, 1], bias or None, batch_norm or None).
        expand: (weight [E, C, 1, 1], bias or None, batch_norm or None); None where E = C.
        squeeze_excite: (fc1 weight, fc1 bias, fc2 weight, fc2 bias), between depthwise and project.
        stride, padding, dilation: of the depthwise convolution, as of ``depthwise_conv``; default 1, 0, 1.
        activation: after expand and depthwise, "none", "relu" (default) or "hardswish".
        squeeze_activation, gate, slope: of squeeze-excite; default "relu", "hardsigmoid", 1/6.
        residual: add the input; needs stride 1 and as many outputs as inputs.

    Returns:
        [N, O, OH, OW] of the input's dtype with channels_last strides.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    return PACKED.run(*prepare(input, depthwise, project, **options))
