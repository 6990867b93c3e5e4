"""One case through our op, through torch and through fp64: what tests, benchmarks and ``verify`` compare."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from mnv3_fast.testing.cases import Case
from mnv3_fast.testing.layers import double


def op_module(op: str) -> Any:
    """``mnv3_fast.ops.<op>.op``: OP, FUNCTION and prepare."""
    return importlib.import_module(f"mnv3_fast.ops.{op}.op")


def reference_of(op: str) -> Any:
    """The reference function of an op."""
    return getattr(importlib.import_module(f"mnv3_fast.ops.{op}.reference"), op)


def prepared(case: Case) -> tuple:
    """The raw op's arguments of a case."""
    args, keywords = case.make()
    return op_module(case.op).prepare(*args, **keywords)


def outputs_of(case: Case) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """ours (the raw op), torch's (the reference in float32), exact (the reference in float64); lists of outputs."""
    args = prepared(case)
    ours = op_module(case.op).OP(*args)
    reference = reference_of(case.op)
    return as_list(ours), as_list(reference(*args)), as_list(reference(*double(args)))


def as_list(outputs: Any) -> list[Tensor]:
    """One output or several as a list."""
    return list(outputs) if isinstance(outputs, tuple) else [outputs]
