from mnv3_fast.ops.network.op import network

__all__ = ["network"]
