"""GPUs: what a pass must move, what a model of it makes of that, and timings for whoever has a GPU.

``python -m benchmarks.gpu.roofline`` and ``python -m benchmarks.gpu.model`` compute and need no GPU;
``python -m benchmarks.gpu`` (``make bench-gpu``) measures. docs/gpu.md has the tables.
"""
