"""Equality tables: every op over its cases, and whole networks, with planted faults that must be found.

On the CPU; of a GPU see verify_device.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from mnv3_fast import _library
from mnv3_fast.acceleration import accelerate
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.testing.cases import OPS, Case, op_cases
from mnv3_fast.testing.compare import Plant, outputs_of
from mnv3_fast.testing.faults import FAULTS
from mnv3_fast.testing.op_faults import OP_FAULTS
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import NET_LIMIT, comparable, max_error, op_limit, relative_error, worst

SIZES = ((224, 224), (97, 131), (32, 32))
NETS = ("large", "small")


@dataclass(frozen=True)
class Row:
    """One line of the table: what was compared, how often, the worst error, the limit, and whether it passed.

    For an op ``error`` is the worst ratio of error to limit, so its limit is 1. For a planted fault ``passed`` means
    that the fault was found: its error is above the limit.
    """

    name: str
    instruction_set: str
    cases: int
    error: float
    limit: float
    passed: bool


def _sets(instruction_set: str | None) -> tuple[str, ...]:
    if instruction_set is not None:
        return (instruction_set,)
    return _library.instruction_sets() or ("reference",)


def _on(instruction_set: str) -> AbstractContextManager[None]:
    return nullcontext() if instruction_set == "reference" else _library.force_instruction_set(instruction_set)


def verify_ops(instruction_set: str | None = None) -> list[Row]:
    """All of :func:`op_rows`."""
    return list(op_rows(instruction_set))


@torch.no_grad()
def op_rows(instruction_set: str | None = None) -> Iterator[Row]:
    """Each op over its cases, by the rule for ops; then the planted faults. Rows as they are found.

    Args:
        instruction_set: one of ``mnv3_fast.instruction_sets()``; None for each in turn.

    Raises:
        ValueError: for an instruction set that does not exist here.
    """
    for name in _sets(instruction_set):
        for op in OPS:
            with _on(name):
                cases = op_cases(op)
                error = worst(_op_error(case) for case in cases)
            yield Row(op, name, len(cases), error, 1.0, error <= 1.0)
    for fault, planted in OP_FAULTS.items():
        error = _op_error(planted.case, planted.plant)
        yield Row(f"planted in {fault}", "", 1, error, 1.0, error > 1.0)


def _op_error(case: Case, plant: Plant | None = None) -> float:
    """The worst error over its limit; infinite where outputs cannot even be compared."""
    errors = []
    for ours, theirs, exact in zip(*outputs_of(case, plant), strict=True):
        try:
            ours, theirs, exact = comparable(ours, theirs, exact)
        except AssertionError:
            return float("inf")
        errors += [measure(ours, exact) / op_limit(measure(theirs, exact)) for measure in (relative_error, max_error)]
    return worst(errors)


def verify_models(instruction_set: str | None = None, nets: tuple[str, ...] = NETS) -> list[Row]:
    """All of :func:`model_rows`."""
    return list(model_rows(instruction_set, nets))


@torch.no_grad()
def model_rows(instruction_set: str | None = None, nets: tuple[str, ...] = NETS) -> Iterator[Row]:
    """Networks, accelerated and frozen, against torchvision's; then the planted faults, by the same comparison. Rows as
    they are found.

    Args:
        instruction_set: one of ``mnv3_fast.instruction_sets()``; None for each in turn.
        nets: of "large" and "small".

    Raises:
        ValueError: for an instruction set that does not exist here.
    """
    for net in nets:
        model = parity_model(net)
        images = [parity_images(2, *size, seed=1) for size in SIZES]
        expected = [model(x) for x in images]
        for name in _sets(instruction_set):
            for way, convert in (("accelerated", accelerate), ("frozen", freeze)):
                with _on(name):
                    run = convert(model)
                    error = worst(_net_error(run(x), y) for x, y in zip(images, expected, strict=True))
                yield Row(f"{net}, {way}", name, len(images), error, NET_LIMIT, error <= NET_LIMIT)
        for fault, plant in FAULTS.items():
            error = _net_error(plant(model)(images[0]), expected[0])
            yield Row(f"{net}, planted: {fault}", "", 1, error, NET_LIMIT, error > NET_LIMIT)


def _net_error(ours: Tensor, theirs: Tensor) -> float:
    same = ours.shape == theirs.shape and ours.dtype is theirs.dtype
    return relative_error(ours, theirs) if same else float("inf")
