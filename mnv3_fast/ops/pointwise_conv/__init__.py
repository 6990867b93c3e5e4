from mnv3_fast.ops.pointwise_conv.op import pointwise_conv

__all__ = ["pointwise_conv"]
