from mnv3_fast.ops.inverted_residual.op import inverted_residual

__all__ = ["inverted_residual"]
