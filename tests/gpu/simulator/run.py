"""One call of depthwise_conv's CUDA kernel in the simulator, and what was found while it ran."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mnv3_fast.ops.elements import empty_nhwc, output_size

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
UNKNOWN = -1
"""The status of arguments that there is no kernel for."""


SIZES = ("out_height", "out_width", "height", "width", "channels")


@dataclass
class Outcome:
    """What a call gave; ``faults`` is empty if all is well. Without a kernel for it, or after a fault, no tensors."""

    status: int = 0
    parts: int = 0
    output: Tensor | None = None
    sums: Tensor | None = None
    mean: Tensor | None = None
    faults: list[str] = field(default_factory=list)


def depthwise_conv(
    program: Path,
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    kernel: tuple[int, int],
    window: Sequence[int],
    activation: int,
    mean: bool = False,
    shift: int = 0,
    wrong: str | None = None,
) -> Outcome:
    """Run the kernel in both orders of threads, with AddressSanitizer around memory of exactly the tensors' size.

    Args:
        program: ``build.depthwise_conv``'s.
        input: [N, C, H, W] float32, float16 or bfloat16.
        weight: [kh * kw, C], of its dtype.
        bias: [C] float32.
        kernel: kh, kw.
        window: stride h, w, padding left, right, top, bottom, dilation h, w.
        activation: 0 none, 1 relu, 2 hardswish.
        mean: sums and means, too.
        shift: elements by which the maps start behind an address that is a multiple of 16 bytes.
        wrong: one of :data:`SIZES`, which the kernel is told one too large: a planted fault.

    Returns:
        The status is :data:`UNKNOWN` where the kernel has one size and stride for both directions, and these differ.
    """
    if kernel[0] != kernel[1] or window[0] != window[1] or tuple(window[6:]) != (1, 1):
        return Outcome(UNKNOWN)
    n, c, height, width = input.shape
    out_height = output_size(height, kernel[0], window[0], window[4] + window[5], 1)
    out_width = output_size(width, kernel[1], window[1], window[2] + window[3], 1)
    header = {
        "images": n, "height": height, "width": width, "out_height": out_height, "out_width": out_width,
        "channels": c, "kernel": kernel[0], "stride": window[0], "pad_left": window[2], "pad_top": window[4],
        "dtype": DTYPES[input.dtype], "activation": activation, "sums": int(mean), "shift": shift,
        "wrong": SIZES.index(wrong) if wrong else -1,
    }  # fmt: skip
    words = struct.pack(f"<{len(header)}q", *header.values())
    maps = [input.permute(0, 2, 3, 1), weight, bias]
    given = b"".join([words, *map(_bytes, maps)])
    done = subprocess.run([program], input=given, capture_output=True)
    if done.returncode:
        return Outcome(faults=[_reason(done.stderr.decode(errors="replace"), done.returncode)])
    return _read(done.stdout, (n, c, out_height, out_width), input.dtype, mean)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _read(given: bytes, shape: tuple[int, ...], dtype: torch.dtype, mean: bool) -> Outcome:
    status, parts, differ = struct.unpack_from("<3q", given)
    outcome = Outcome(status, parts)
    if status != 0:
        return outcome
    if differ:
        outcome.faults.append(f"race: {differ} bytes differ where threads ran in another order, or were not written")
    n, c, height, width = shape
    place = 24

    def take(count: int, of: torch.dtype) -> Tensor:
        nonlocal place
        place += count * of.itemsize
        taken = bytearray(given[place - count * of.itemsize : place])
        return torch.frombuffer(taken, dtype=of) if taken else torch.empty(0, dtype=of)

    outcome.output = empty_nhwc(torch.empty(0, dtype=dtype), n, c, height, width)
    outcome.output.permute(0, 2, 3, 1).copy_(take(n * height * width * c, dtype).view(n, height, width, c))
    if mean:
        outcome.sums = take(n * parts * c, torch.float32).view(n, parts, c)
        outcome.mean = take(n * c, dtype).view(n, c)
    return outcome


def _reason(errors: str, code: int) -> str:
    """What AddressSanitizer or the simulator wrote, in a line."""
    if found := re.search(r"AddressSanitizer: (\S+).*?(READ|WRITE) of size (\d+)", errors, re.DOTALL):
        kind, access, size = found.groups()
        return f"access out of bounds: {kind}, {access.lower()} of {size} bytes"
    lines = [line for line in errors.splitlines() if "simulator:" in line or "runtime error" in line]
    return lines[0] if lines else f"status {code}: {errors[-300:]}"
