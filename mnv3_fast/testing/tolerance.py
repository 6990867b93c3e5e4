"""The one tolerance rule. Errors are measured against fp64 of the same function and compared with torch's own error.

Nothing moves these numbers: no argument, no environment variable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

OP_FACTOR = 2.0
"""An op's error may be this many times torch's ..."""
OP_FLOOR_EPS = 4.0
"""... plus this many units of the dtype's rounding."""
GRADIENT_FACTOR = 3.0
"""The factor for gradients."""
NET_LIMIT = 2e-5
"""Relative L2 of a whole network's output against torchvision eager."""
MEAN_RATIO_LIMIT = 2.0
"""The geometric mean of our error over torchvision's, for at least eight seeds and configurations."""


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Relative L2 against an fp64 reference of the same shape; 0 for two empty tensors."""
    _check_shapes(value, reference)
    if reference.numel() == 0:
        return 0.0
    difference = (value.double() - reference.double()).norm().item()
    norm = reference.double().norm().item()
    return difference / norm if norm > 0 else difference


def max_error(value: Tensor, reference: Tensor) -> float:
    """max|value - reference| / max|reference|; 0 for two empty tensors."""
    _check_shapes(value, reference)
    if reference.numel() == 0:
        return 0.0
    difference = (value.double() - reference.double()).abs().max().item()
    largest = reference.double().abs().max().item()
    return difference / largest if largest > 0 else difference


def op_limit(torch_error: float, dtype: torch.dtype = torch.float32, gradient: bool = False) -> float:
    """The error that an op may make where torch makes ``torch_error``."""
    return (GRADIENT_FACTOR if gradient else OP_FACTOR) * torch_error + OP_FLOOR_EPS * torch.finfo(dtype).eps


def comparable(
    ours: Tensor, theirs: Tensor, exact: Tensor, dtype: torch.dtype = torch.float32, name: str = "output"
) -> tuple[Tensor, Tensor, Tensor]:
    """The three results where torch's is finite, once shape, dtype and all that is not finite have been compared.

    Raises:
        AssertionError: for another shape or dtype, and for NaN or infinite values where torch's run has none.
    """
    _check_shapes(ours, exact)
    _check_shapes(theirs, exact)
    if ours.dtype is not dtype:
        raise AssertionError(f"{name}: dtype {ours.dtype} is not {dtype}")
    if not torch.equal(torch.isnan(ours), torch.isnan(theirs)):
        raise AssertionError(f"{name}: NaN in other places than torch has them")
    infinite = torch.isinf(theirs)
    if not torch.equal(torch.isinf(ours), infinite) or not torch.equal(ours[infinite], theirs[infinite].to(dtype)):
        raise AssertionError(f"{name}: infinite values in other places than torch has them")
    # fp64 stays finite where float32 overflows, and an infinite error of torch's would allow us anything.
    finite = torch.isfinite(theirs) & torch.isfinite(exact)
    if bool(finite.all()):
        return ours, theirs, exact
    return ours[finite], theirs[finite], exact[finite]


def assert_close_enough(
    ours: Tensor,
    theirs: Tensor,
    exact: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    gradient: bool = False,
    name: str = "output",
) -> None:
    """Our error against fp64 is at most that of torch's own run, times the factor, plus the floor; both measures.

    Args:
        ours: what the kernel computed.
        theirs: what torch computed from the same float inputs.
        exact: the same in fp64.

    Raises:
        AssertionError: with both errors and the limit; and as :func:`comparable`.
    """
    ours, theirs, exact = comparable(ours, theirs, exact, dtype, name)
    for measure in (relative_error, max_error):
        error, torch_error = measure(ours, exact), measure(theirs, exact)
        limit = op_limit(torch_error, dtype, gradient)
        if not error <= limit:
            raise AssertionError(f"{name}: {measure.__name__} {error:.3g}, torch {torch_error:.3g}, limit {limit:.3g}")


def assert_net_equal(ours: Tensor, theirs: Tensor, name: str = "output") -> None:
    """A network's output is within NET_LIMIT of torchvision's, in relative L2.

    Raises:
        AssertionError: with the error; also for another shape or dtype, and for NaN.
    """
    if ours.dtype is not theirs.dtype:
        raise AssertionError(f"{name}: dtype {ours.dtype} is not {theirs.dtype}")
    error = relative_error(ours, theirs)
    if not error <= NET_LIMIT:
        raise AssertionError(f"{name}: relative error {error:.3g}, limit {NET_LIMIT:g}")


def worst(errors: Iterable[float]) -> float:
    """The largest error; NaN counts as infinite, which ``max`` would pass over."""
    return max((math.inf if math.isnan(error) else error for error in errors), default=0.0)


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of positive values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _check_shapes(value: Tensor, reference: Tensor) -> None:
    if value.shape != reference.shape:
        raise AssertionError(f"shape {list(value.shape)} is not {list(reference.shape)}")
