"""The gate of squeeze-excite (Hu et al. 2018) from channel means: two fully connected layers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mnv3_fast.ops.elements import activate, apply_gate


def squeeze_excite_gate(
    mean: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: int,
    gate: int,
    slope: float,
) -> Tensor:
    """gate(fc2(act(fc1(mean)))): [N, C] -> [N, C]."""
    x = functional.linear(mean, fc1_weight.flatten(1), fc1_bias)
    x = functional.linear(activate(x, activation), fc2_weight.flatten(1), fc2_bias)
    return apply_gate(x, gate, slope)
