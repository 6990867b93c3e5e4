"""Element math of the Triton kernels, the same as mnv3_fast/ops/elements.py. NaN passes through all of it."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def relu(x):
    """max(x, 0); NaN stays NaN, which a plain maximum on a GPU would lose."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def hardswish(x):
    """x * clip(x / 6 + 1/2, 0, 1). A NaN that the clip loses comes back with the factor x; of -inf NaN as in torch."""
    return x * tl.minimum(tl.maximum(x * (1.0 / 6.0) + 0.5, 0.0), 1.0)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """0: x, 1: relu, 2: hardswish, 3: relu6; fp32."""
    if ACTIVATION == 1:
        x = relu(x)
    elif ACTIVATION == 2:
        x = hardswish(x)
    elif ACTIVATION == 3:
        x = tl.minimum(relu(x), 6.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def apply_gate(x, slope, GATE: tl.constexpr):
    """0: clip(slope * x + 1/2, 0, 1), 1: the logistic sigmoid; fp32."""
    if GATE == 1:
        x = 1.0 / (1.0 + tl.exp(-x))
    else:
        x = tl.maximum(slope * x + 0.5, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def within(position, size):
    """0 <= position < size, in one comparison: a negative int32 is a large unsigned one."""
    return position.to(tl.uint32) < tl.cast(size, tl.uint32)
