from mnv3_fast.ops.stem_conv.op import stem_conv

__all__ = ["stem_conv"]
