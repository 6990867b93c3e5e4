"""The operators on GPUs, in Triton, which is not imported before a tensor on a GPU needs it."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mnv3_fast import _library

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels take and give."""
Progress = Callable[[int, int], None]
"""Told how many kernels have been compiled, and how many there are."""
TRITON = importlib.util.find_spec("triton") is not None


def missing_reason() -> str | None:
    """Why there are no kernels for GPUs; None if there are."""
    if _library.backend() == "reference":
        return "the kernels are switched off (backend reference)"
    return None if TRITON else "Triton is not installed, which torch brings on Linux with a GPU"


def variants(plan: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> list[str]:
    """Which kernels compute each layer of a plan on its device for an input [N, C, H, W], and why; may check them."""
    from mnv3_fast.gpu.execute import plan_executor

    return plan_executor(plan, dtype).network.variants(shape)


def try_kernels(model: nn.Module) -> None:
    """Compare the kernels with their references on the GPUs that a model is on, where nobody has done so yet."""
    if missing_reason() is not None or not torch.cuda.is_available():
        return
    tensors = itertools.chain(model.parameters(), model.buffers())
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        from mnv3_fast.gpu.first_use import check_device

        check_device(device)
