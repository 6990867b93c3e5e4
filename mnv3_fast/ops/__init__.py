"""The operators of MobileNetV3. Each folder holds reference, op and README; ``torch.ops.mnv3_fast`` the raw ops."""

from mnv3_fast.ops.depthwise_conv import depthwise_conv
from mnv3_fast.ops.fold_batch_norm import fold_batch_norm
from mnv3_fast.ops.inverted_residual import inverted_residual
from mnv3_fast.ops.network import network
from mnv3_fast.ops.pointwise_conv import pointwise_conv
from mnv3_fast.ops.squeeze_excite import squeeze_excite
from mnv3_fast.ops.squeeze_excite_gate import squeeze_excite_gate
from mnv3_fast.ops.stem_conv import stem_conv

__all__ = [
    "depthwise_conv",
    "fold_batch_norm",
    "inverted_residual",
    "network",
    "pointwise_conv",
    "squeeze_excite",
    "squeeze_excite_gate",
    "stem_conv",
]
