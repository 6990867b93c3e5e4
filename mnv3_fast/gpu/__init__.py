"""The operators on GPUs, in Triton. Nothing else here is imported before a tensor on a GPU needs it."""

from __future__ import annotations

import importlib.util

import torch

from mnv3_fast import _library

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels take and give."""
TRITON = importlib.util.find_spec("triton") is not None


def missing_reason() -> str | None:
    """Why there are no kernels for GPUs; None if there are."""
    if _library.backend() == "reference":
        return "the kernels are switched off (backend reference)"
    return None if TRITON else "Triton is not installed, which torch brings on Linux with a GPU"
