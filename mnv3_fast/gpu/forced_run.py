"""One op by one of its kernels, Triton's or the CUDA one, and no other: for the first-use check and ``verify``."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu import choice, launch
from mnv3_fast.gpu.launch import AnyLaunch, CudaLaunch


def run_kernel(op: str, args: tuple, device: torch.device) -> Any:
    """A raw op by its kernel on a device; products in IEEE float32 whatever torch's TF32 setting says.

    Raises:
        RuntimeError: where something was launched, and not the variant that :func:`choice.force` asks for.
    """
    from mnv3_fast.gpu import dispatch

    launched: list[str] = []
    name = op.removesuffix("_mean")

    def exactly(each: AnyLaunch) -> bool:
        launched.append("cuda" if isinstance(each, CudaLaunch) and each.kernel.name == name else "triton")
        if each.constants.get("PRECISION") != "tf32":
            return False
        dataclasses.replace(each, constants={**each.constants, "PRECISION": "ieee"}).run()
        return True

    with launch.observe(exactly):
        outputs = dispatch.RUN[op](*_moved(args, device))
    wanted = choice.forced(name)
    if launched and wanted is not None and (wanted == "cuda") != ("cuda" in launched):
        raise RuntimeError(f"{op}: its {wanted} kernel is asked for, and did not run")
    return outputs


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return type(value)(_moved(item, device) for item in value) if isinstance(value, (tuple, list)) else value
