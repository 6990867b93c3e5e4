from mnv3_fast.ops.squeeze_excite_gate.op import squeeze_excite_gate

__all__ = ["squeeze_excite_gate"]
