"""The GPUs that the model is evaluated for, as their makers describe them. Nothing here was measured by us."""

from __future__ import annotations

from dataclasses import dataclass

from mnv3_fast.gpu.counts import Properties

EAGER_LAUNCH = 10e-6
"""Seconds between two launches of eager torch, which the CPU needs. Assumed: 5 to 25 us are reported for a module's op
with Python, dispatcher and driver; the low half of it."""


@dataclass(frozen=True)
class GPU:
    """What the model knows of a GPU.

    Attributes:
        architecture: what our kernels are compiled for.
        multiprocessors, clock: in Hz, boost.
        bandwidth: of its memory, bytes/s.
        cache: bytes of L2.
        tensor: 16-bit operations/s with fp32 accumulators, dense; a multiply-add is two.
    """

    name: str
    architecture: int
    multiprocessors: int
    clock: float
    bandwidth: float
    cache: int
    tensor: float

    @property
    def properties(self) -> Properties:
        """What a time is computed from."""
        return Properties(self.architecture, self.multiprocessors, self.clock, self.bandwidth, self.cache, self.tensor)


GPUS = (
    # NVIDIA Ampere GA102 GPU architecture whitepaper v2, appendix A: 82 SMs, 1695 MHz, 936 GB/s, 6144 KB, 71 TFLOPS.
    GPU("RTX 3090", 86, 82, 1.695e9, 936e9, 6 << 20, 71e12),
    # NVIDIA Ada GPU architecture whitepaper, appendix A: 128 SMs, 2520 MHz, 1008 GB/s, 73728 KB, 165.2 TFLOPS.
    GPU("RTX 4090", 89, 128, 2.52e9, 1008e9, 72 << 20, 165.2e12),
    # L4 datasheet: 300 GB/s, 48 MB of L2, 242 TFLOPS sparse, so 121 dense, 30.3 TFLOPS of fp32 = 7424 lanes at 2040 MHz
    # (a clock that 72 W rarely hold).
    GPU("L4", 89, 58, 2.04e9, 300e9, 48 << 20, 121e12),
    # A100 whitepaper and datasheet (80 GB, SXM): 108 SMs of 64 lanes, 1410 MHz, 2039 GB/s, 40 MB, 312 TFLOPS.
    GPU("A100", 80, 108, 1.41e9, 2039e9, 40 << 20, 312e12),
    # H100 whitepaper and datasheet (SXM5): 132 SMs, 3.35 TB/s, 50 MB, 989.4 TFLOPS; 1755 MHz as nvidia-smi has it.
    GPU("H100", 90, 132, 1.755e9, 3.35e12, 50 << 20, 989.4e12),
    # NVIDIA RTX Blackwell GPU architecture whitepaper: 170 SMs, 2407 MHz, 1792 GB/s, 98304 KB, 209.5 TFLOPS.
    GPU("RTX 5090", 120, 170, 2.407e9, 1792e9, 96 << 20, 209.5e12),
)
