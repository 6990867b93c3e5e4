"""What tests, benchmarks and ``mnv3-fast verify`` share: parity models, planted faults, the tolerance rule, cases."""

from mnv3_fast.testing.cases import Case, op_cases
from mnv3_fast.testing.faults import FAULTS
from mnv3_fast.testing.layers import RealLayer, real_layers
from mnv3_fast.testing.op_faults import OP_FAULTS, OpFault
from mnv3_fast.testing.parity import parity_images, parity_model, randomize_
from mnv3_fast.testing.tolerance import (
    GRADIENT_FACTOR,
    MEAN_RATIO_LIMIT,
    NET_LIMIT,
    OP_FACTOR,
    assert_close_enough,
    assert_net_equal,
    geometric_mean,
    max_error,
    op_limit,
    relative_error,
    worst,
)

__all__ = [
    "FAULTS",
    "GRADIENT_FACTOR",
    "MEAN_RATIO_LIMIT",
    "NET_LIMIT",
    "OP_FACTOR",
    "OP_FAULTS",
    "Case",
    "OpFault",
    "RealLayer",
    "assert_close_enough",
    "assert_net_equal",
    "geometric_mean",
    "max_error",
    "op_cases",
    "op_limit",
    "parity_images",
    "parity_model",
    "randomize_",
    "real_layers",
    "relative_error",
    "worst",
]
