from mnv3_fast.ops.squeeze_excite.op import squeeze_excite

__all__ = ["squeeze_excite"]
