"""GPU kernels checked without a GPU: see docs/gpu.md. Run by ``make test-gpu-emulated``, left out of ``make test``."""
