"""Kernels on another device than the CPU, beside the reference on the CPU: for the first-use check and ``verify``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu.outcomes import Outcome, name_of
from mnv3_fast.testing.cases import Case, block, depthwise, gate, pointwise, squeeze_excite, stem
from mnv3_fast.testing.compare import Plant, as_list, functions_of, op_module
from mnv3_fast.testing.layers import double
from mnv3_fast.testing.tolerance import comparable, max_error, op_limit, relative_error

Run = Callable[[str, tuple], Any]
"""Name of a raw op and its arguments on the CPU -> what the kernel makes of them, on any device."""

FIRST_USE: dict[str, tuple[Case, ...]] = {
    op: tuple(Case(op, f"first use {i}", build, layout) for i, (build, layout) in enumerate(builders))
    for op, builders in {
        # Channels that are multiples of 8 and not of 16, and of neither; odd maps; every tile that a layer can take.
        "stem_conv": (
            (stem(2, 3, 17, 21, 16, activation="hardswish"), "contiguous"),
            (stem(1, 3, 9, 34, 24, bytes=True, activation="relu"), "channels_last"),
            (stem(1, 1, 11, 7, 33, kernel=5, stride=1, bias=True), "sliced"),
        ),
        "pointwise_conv": (
            (pointwise(2, 72, 7, 9, 24, gated=True, residual=True), "channels_last"),
            (pointwise(1, 24, 9, 15, 88, activation="hardswish"), "contiguous"),
            (pointwise(2, 17, 5, 3, 33, bias=True, gated=True, residual=True, activation="relu"), "channels_last"),
            (pointwise(1, 40, 128, 129, 136, activation="relu"), "channels_last"),
        ),
        "depthwise_conv": (
            (depthwise(2, 24, 9, 17, 3, activation="relu"), "channels_last"),
            (depthwise(1, 72, 15, 13, 5, stride=2, activation="hardswish", return_mean=True), "channels_last"),
            (depthwise(2, 40, 14, 15, 5, activation="hardswish", return_mean=True), "contiguous"),
            (depthwise(2, 17, 8, 9, 3, stride=2, bias=True, return_mean=True), "sliced"),
        ),
        "squeeze_excite_gate": (
            (gate(2, 72, 24), "channels_last"),
            (gate(17, 33, 9, activation="hardswish", gate="sigmoid"), "channels_last"),
        ),
        "squeeze_excite": (
            (squeeze_excite(2, 72, 7, 5, 24), "channels_last"),
            (squeeze_excite(1, 17, 33, 40, 6, gate="sigmoid"), "contiguous"),
        ),
    }.items()
}
"""What each of Triton's kernels is checked on when a device is first used."""

CUDA_FIRST_USE: dict[str, tuple[Case, ...]] = {
    f"{op}_cuda": tuple(Case(op, f"first use {i}", build, layout) for i, (build, layout) in enumerate(builders))
    for op, builders in {
        # Each size and stride, with sums and without; channels of whole words and of others; odd maps.
        "depthwise_conv": (
            (depthwise(2, 24, 9, 17, 3, activation="relu"), "channels_last"),
            (depthwise(2, 17, 8, 9, 3, stride=2, bias=True, return_mean=True), "sliced"),
            (depthwise(2, 40, 14, 15, 5, activation="hardswish", return_mean=True), "contiguous"),
            (depthwise(1, 72, 15, 13, 5, stride=2, activation="hardswish", return_mean=True), "channels_last"),
            (depthwise(1, 272, 14, 14, 3, activation="hardswish", return_mean=True), "channels_last"),
        ),
        # With squeeze-excite and without, each size and stride, channels that are no multiple of 16, odd maps.
        "inverted_residual": (
            (block(2, 40, 14, 14, 120, 40, 5, 32, residual=True, activation="hardswish"), "channels_last"),
            (block(1, 24, 15, 13, 88, 48, 5, 24, stride=2, activation="relu"), "channels_last"),
            (block(2, 56, 7, 7, 200, 56, 3, residual=True, activation="hardswish"), "channels_last"),
            (block(1, 16, 14, 11, 72, 24, 3, stride=2, activation="relu"), "contiguous"),
        ),
    }.items()
}
"""What each CUDA kernel is checked on; of an inverted residual block in 16 bits."""


@dataclass(frozen=True)
class Comparison:
    """The measure that was nearest to its limit, or furthest above it; ``reason`` is why it is a miss, None if not."""

    error: float | None
    limit: float | None
    reason: str | None = None

    @property
    def ratio(self) -> float:
        """Error over limit; infinite where outputs could not even be compared."""
        return self.error / self.limit if self.error is not None and self.limit else float("inf")


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Arguments with their float tensors in a dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(cast(item, dtype) for item in value)
    if isinstance(value, dict):
        return {name: cast(item, dtype) for name, item in value.items()}
    return value


def arguments(case: Case, dtype: torch.dtype, plant: Plant | None = None) -> tuple:
    """The raw op's arguments of a case in a dtype, on the CPU, with a fault in them where one is given."""
    with torch.device("cpu"):  # whatever the user's default device is
        args, keywords = case.make()
    if plant is not None:
        args, keywords = plant(args, keywords)
    keywords.pop("return_mean", None)
    args, keywords = cast((args, keywords), torch.float32)  # whatever the user's default dtype is
    return cast(op_module(case.op).prepare(*args, **keywords), dtype)


@torch.no_grad()
def compare(case: Case, dtype: torch.dtype, run: Run, plant: Plant | None = None) -> Comparison:
    """One case by a kernel, by the tolerance rule: torch's own run in the dtype and fp64 are the CPU's.

    A fault is planted in the kernel's arguments alone.
    """
    op, reference = functions_of(case)
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        args = arguments(case, dtype)
        theirs, exact = as_list(reference(*args)), as_list(reference(*double(args)))
        ours = as_list(run(op.__name__, args if plant is None else arguments(case, dtype, plant)))
    return judge([output.cpu() for output in ours], theirs, exact, dtype)


def judge(ours: Sequence[Tensor], theirs: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> Comparison:
    """Outputs by the tolerance rule, beside torch's own run in the dtype and the same in fp64."""
    worst = Comparison(0.0, op_limit(0.0, dtype))
    for results in zip(ours, theirs, exact, strict=True):
        try:
            a, b, c = comparable(*results, dtype)
        except AssertionError as miss:
            return Comparison(None, None, str(miss))
        for measure in (relative_error, max_error):
            error, limit = measure(a, c), op_limit(measure(b, c), dtype)
            reason = None if error <= limit else f"{measure.__name__} {error:.3g}, limit {limit:.3g}"
            worst = max(worst, Comparison(error, limit, reason), key=lambda found: found.ratio)
    return worst


def first_use_outcome(kernel: str, dtype: torch.dtype, run: Run) -> Outcome:
    """A kernel over its first-use cases; the first miss ends it."""
    worst = Comparison(0.0, op_limit(0.0, dtype))
    for case in (FIRST_USE | CUDA_FIRST_USE)[kernel]:
        found = compare(case, dtype, run)
        worst = max(worst, found, key=lambda each: each.ratio)
        if found.reason is not None:
            return Outcome(kernel, name_of(dtype), False, found.error, found.limit, f"{found.reason} ({case})")
    return Outcome(kernel, name_of(dtype), True, worst.error, worst.limit)
