"""How products of float32 are computed: as torch's own setting for matrix products says."""

from __future__ import annotations

import torch


def dot_precision(dtype: torch.dtype) -> str:
    """Triton's ``input_precision``: "tf32" where the user allowed it for float32, else "ieee".

    The setting is read by its newer name, which knows the older ones (``torch.backends.cuda.matmul.allow_tf32``,
    ``torch.set_float32_matmul_precision``); the older one raises once the newer was written.
    """
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"
