"""What must hold for any fused module, whatever it is made of: backend, autocast, transforms, the input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from mnv3_fast import _library, gpu
from mnv3_fast.ops.checks import parameter_dtypes


def environment_reason(device: str = "cpu") -> str | None:
    """Why no input at all can run on the kernels for a type of device, None if it can."""
    if _library.backend() == "reference":
        return "the kernels are switched off (backend reference)"
    if not _library.EXTENSION:
        return "there are no compiled kernels"
    if device == "cuda":
        return gpu.missing_reason()  # what autocast asks for, the kernels do
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    return None


def input_reason(x: Any) -> str | None:
    """Why the kernels cannot take an input, None if they can."""
    if not isinstance(x, Tensor):
        return "the input is no tensor (symbolic tracing)"
    if x.dtype not in (gpu.DTYPES if x.is_cuda else (torch.float32,)):
        return f"the input is {x.dtype}, the kernels are float32"
    if not (x.is_cpu or x.is_cuda):
        return f"the input is on {x.device}, the kernels are for the CPU and GPUs"
    if x.layout is not torch.strided:
        return f"the input's layout is {x.layout}, not strided"
    if x.dim() != 4:
        return f"the input has {x.dim()} dimensions, not 4"
    return environment_reason("cuda" if x.is_cuda else "cpu")


def as_autocast(x: Tensor) -> Tensor:
    """An input on a GPU in the dtype that autocast asks for there."""
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        return x.to(torch.get_autocast_dtype("cuda"))
    return x


def weights_fit(x: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether torch takes these weights, too, beside an input on a GPU (that is as autocast asks for), and ours do.

    The ops would take float32 beside 16 bit; without autocast torch refuses, and its error is the model's.
    """
    if not x.is_cuda:
        return True
    if tensors[0].dtype is not x.dtype and not torch.is_autocast_enabled("cuda"):
        return False
    return all(tensor.dtype in parameter_dtypes(x.dtype) for tensor in tensors)


def plan_may_run(x: Any) -> bool:
    """Whether a plan may run on an input in place of the modules: nothing wants to see these, or the ops inside.

    On a GPU the ops run one by one; :func:`mnv3_fast.freeze` makes a plan for it.
    """
    return (
        type(x) is Tensor
        and x.is_cpu
        and input_reason(x) is None
        and not torch_module._has_any_global_hook()
        and not transform_active()
        and not observed()
    )


def is_inference(root: nn.Module, x: Any) -> bool:
    """The same for a pass of a module in which nothing is differentiated."""
    return not (root.training or torch.is_grad_enabled()) and plan_may_run(x)


def transform_active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is under way."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def observed() -> bool:
    """Whether something looks at each op that runs and should see a block's own: tracing, dispatch modes."""
    return (
        torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0
    )


def checks_trace() -> bool:
    """Whether ``torch.jit.trace`` is repeating a trace to check it, which torch tells by nothing but the call stack."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_check_trace" and frame.f_globals.get("__name__") == "torch.jit._trace":
            return True
        frame = frame.f_back
    return False
