"""One case through our op, through torch and through fp64: what tests, benchmarks and ``verify`` compare."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mnv3_fast import _library
from mnv3_fast.testing.cases import Case
from mnv3_fast.testing.layers import double

Plant = Callable[[tuple, dict[str, Any]], tuple[tuple, dict[str, Any]]]
"""Arguments of a call -> the same with a fault in them."""


def op_module(op: str) -> Any:
    """``mnv3_fast.ops.<op>.op``: OP, FUNCTION and prepare."""
    return importlib.import_module(f"mnv3_fast.ops.{op}.op")


def reference_of(op: str) -> Any:
    """The reference function of an op."""
    return getattr(importlib.import_module(f"mnv3_fast.ops.{op}.reference"), op)


def prepared(case: Case, plant: Plant | None = None) -> tuple:
    """The raw op's arguments of a case, with a fault in them where one is given."""
    args, keywords = case.make()
    if plant is not None:
        args, keywords = plant(args, keywords)
    keywords.pop("return_mean", None)  # chooses the raw op and is no argument of it
    return op_module(case.op).prepare(*args, **keywords)


def functions_of(case: Case) -> tuple[Any, Any]:
    """The raw op that a case calls, and its reference."""
    if case.make()[1].get("return_mean"):
        module = op_module(case.op)
        return module.MEAN_OP, module.reference.depthwise_conv_mean
    return op_module(case.op).OP, reference_of(case.op)


def outputs_of(case: Case, plant: Plant | None = None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """ours (the raw op), torch's (the reference in float32), exact (the reference in float64); lists of outputs.

    A fault (see op_faults.py) is planted in ours alone.
    """
    op, reference = functions_of(case)
    args = prepared(case)
    ours = op(*(args if plant is None else prepared(case, plant)))
    return as_list(ours), as_list(reference(*args)), as_list(reference(*double(args)))


def take_variant(op: str) -> str | None:
    """The instruction set of the code that an op ran on since the last call; of a network that of all its parts."""
    parts = ("stem_conv", "inverted_residual", "pointwise_conv") if op == "network" else (op,)
    ran = sorted({variant for variant in map(_library.take_variant, parts) if variant is not None})
    return ", ".join(ran) or None


def as_list(outputs: Any) -> list[Tensor]:
    """One output or several as a list."""
    return list(outputs) if isinstance(outputs, tuple) else [outputs]
