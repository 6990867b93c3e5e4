"""The GPU that ``--device`` names."""

from __future__ import annotations

import re

import torch

from mnv3_fast.cli.common import fail


def gpu(name: str, wanted: str = "cuda or cuda:N") -> torch.device:
    """The device of ``--device``, one of ``wanted``, which is checked; ends with status 2 where there is none."""
    from mnv3_fast import _library
    from mnv3_fast.gpu.first_use import triton_version

    if not re.fullmatch(r"cuda(:\d{1,4})?", name):
        fail(f"--device must be {wanted}, got {name!r}")
    if torch.version.cuda is None and torch.version.hip is None:
        fail(f"--device {name}: this torch ({torch.__version__}) was built without support for GPUs")
    if not torch.cuda.is_available():
        fail(f"--device {name}: torch finds no GPU that it can use; is there one, and its driver?")
    device = torch.device(name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        fail(f"--device {name}: the last one here is cuda:{torch.cuda.device_count() - 1}")
    if triton_version()[1] is not None:
        fail(f"--device {name}: Triton cannot be imported: {triton_version()[1]}")
    if _library.backend() == "reference":
        fail(f"--device {name}: MNV3_FAST_BACKEND=reference has switched the kernels off")
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
