from mnv3_fast.ops.fold_batch_norm.op import fold_batch_norm

__all__ = ["fold_batch_norm"]
