"""Equality tables: every op over its cases, and whole networks, with planted faults that must be found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mnv3_fast import _library
from mnv3_fast.acceleration import accelerate
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.testing.cases import OPS, op_cases
from mnv3_fast.testing.compare import outputs_of
from mnv3_fast.testing.faults import FAULTS
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import NET_LIMIT, max_error, op_limit, relative_error

SIZES = ((224, 224), (97, 131), (32, 32))


@dataclass(frozen=True)
class Row:
    """One line of the table: what was compared, how often, the worst error, the limit, and whether it passed.

    For an op ``error`` is the worst ratio of error to limit, so its limit is 1. For a planted fault ``passed`` means
    that the fault was found.
    """

    name: str
    instruction_set: str
    cases: int
    error: float
    limit: float
    passed: bool


def _sets() -> tuple[str, ...]:
    return _library.instruction_sets() or ("reference",)


@torch.no_grad()
def verify_ops() -> Iterator[Row]:
    """Each op on each instruction set, by the rule for ops."""
    for name in _sets():
        for op in OPS:
            cases = op_cases(op)
            if name == "reference":
                worst = max(_op_error(case) for case in cases)
            else:
                with _library.force_instruction_set(name):
                    worst = max(_op_error(case) for case in cases)
            yield Row(op, name, len(cases), worst, 1.0, worst <= 1.0)


def _op_error(case) -> float:
    ours, theirs, exact = outputs_of(case)
    worst = 0.0
    for a, b, c in zip(ours, theirs, exact, strict=True):
        if not bool(torch.isfinite(a).all()):
            return float("inf")
        for measure in (relative_error, max_error):
            worst = max(worst, measure(a, c) / op_limit(measure(b, c)))
    return worst


@torch.no_grad()
def verify_models() -> Iterator[Row]:
    """Both networks, accelerated and frozen, on each instruction set, against torchvision; then the planted faults."""
    for net in ("large", "small"):
        model = parity_model(net)
        images = [parity_images(2, *size, seed=1) for size in SIZES]
        expected = [model(x) for x in images]
        for name in _sets():
            for way, convert in (("accelerated", accelerate), ("frozen", freeze)):
                run = convert(model)
                if name == "reference":
                    worst = max(relative_error(run(x), y) for x, y in zip(images, expected, strict=True))
                else:
                    with _library.force_instruction_set(name):
                        worst = max(relative_error(run(x), y) for x, y in zip(images, expected, strict=True))
                yield Row(f"{net}, {way}", name, len(images), worst, NET_LIMIT, worst <= NET_LIMIT)
        ours = freeze(model)(images[0])
        for fault, plant in FAULTS.items():
            error = relative_error(plant(model)(images[0]), ours)
            yield Row(f"{net}, planted: {fault}", "", 1, error, NET_LIMIT, error > NET_LIMIT)
