"""``python tests/dump_cases.py FILE``: the quick cases of every op and both networks for csrc/driver, which has no torch.

Each call goes in with its raw arguments, what torch gives, the same in fp64, and the limit that the tolerance rule sets
to our error, so the rule stays in one place. Plans are packed here. The format is that of csrc/driver/cases.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.nn import functional

import mnv3_fast
from mnv3_fast.engine.op import OP as RUN_PLAN
from mnv3_fast.engine.op import STATE
from mnv3_fast.testing.cases import OPS, Case, op_cases
from mnv3_fast.testing.compare import Plant, as_list, functions_of, op_module, prepared
from mnv3_fast.testing.layers import double
from mnv3_fast.testing.op_faults import OP_FAULTS
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import NET_LIMIT, comparable, max_error, op_limit, relative_error

KINDS = {"Tensor": "T", "Optional[Tensor]": "t", "int": "i", "float": "f", "List[int]": "I", "List[Tensor]": "L"}
DTYPES = {torch.float32: 6, torch.uint8: 0}
SPECIAL = (-3.0, 3.0, -2.9999998, 2.9999998, -3.0000002, float("inf"), -float("inf"), float("nan"), -0.0)
"""Where activations have corners, and what must pass through them as in torch."""


@dataclass(frozen=True)
class Call:
    """A kernel's arguments and what is expected: torch's, exact and both limits of each output, or a number."""

    name: str
    op: Any
    arguments: tuple
    expected: list[tuple[Tensor, Tensor, float, float]]
    planted: bool = False
    number: int | None = None


def _expected(theirs: Any, exact: Any) -> list[tuple[Tensor, Tensor, float, float]]:
    rows = []
    for a, b in zip(as_list(theirs), as_list(exact), strict=True):
        _, finite, finite_exact = comparable(a, a, b)
        limits = [op_limit(measure(finite, finite_exact)) for measure in (relative_error, max_error)]
        rows.append((a, b, limits[0], limits[1]))
    return rows


def _compiled(op: str, raw: Any, arguments: tuple) -> tuple[Any, tuple]:
    """The compiled kernel that an op ends in, and its arguments: a plan for the ops that are registered in Python."""
    if op not in ("inverted_residual", "network"):
        return raw, arguments
    input, tensors, spec, constants = arguments
    entry = op_module(op).PACKED.packed(list(tensors), spec, constants)
    return RUN_PLAN, (input, entry.plan, entry.geometry)


def _call(case: Case, plant: Plant | None = None, special: bool = False) -> Call:
    raw, reference = functions_of(case)
    arguments, changed = prepared(case), prepared(case, plant)
    name = f"{case.op} {case}"
    if special:  # NaN in one pixel of one image
        input = arguments[0].clone()
        input[(0,) * input.dim()] = float("nan")
        arguments = changed = (input, *arguments[1:])
        name += "-nan"
    expected = _expected(reference(*arguments), reference(*double(arguments)))
    return Call(name, *_compiled(case.op, raw, changed), expected, planted=plant is not None)


def _corners() -> Iterator[Call]:
    """Every activation at its corners, behind a 1x1 convolution, a depthwise one and a stem that change nothing."""
    x = torch.tensor(SPECIAL).view(1, 1, 1, -1)
    none = (None,) * 5
    window = (1, 1, 0, 0, 0, 0, 1, 1)
    for op, before, after in (
        ("pointwise_conv", none, (None, None)),
        ("depthwise_conv", none, window),
        ("stem_conv", none, (None, None, *window)),
    ):
        for activation, function in enumerate((lambda y: y, torch.relu, functional.hardswish)):
            arguments = (x, torch.ones(1, 1, 1, 1), *before, 0.0, *after, activation)
            expected = _expected(function(x), function(x.double()))
            yield Call(f"{op} corners-{activation}", op_module(op).OP, arguments, expected)


def _networks() -> Iterator[Call]:
    scale, shift = torch.tensor([0.017, 0.018, 0.016]), torch.tensor([-2.1, -2.0, -1.8])
    for net in ("large", "small"):
        model = parity_model(net, size=64)
        for size, bytes in (((2, 33, 47), False), ((3, 64, 32), True)):
            images = parity_images(*size, seed=1)
            images = (images * 60 + 128).clamp(0, 255).to(torch.uint8) if bytes else images
            engine = mnv3_fast.freeze(model, **({"scale": scale, "shift": shift} if bytes else {}))
            floats = images * scale.view(3, 1, 1) + shift.view(3, 1, 1) if bytes else images
            theirs = model(floats)
            name = f"{net} {'x'.join(map(str, size))}{'-bytes' if bytes else ''}"
            expected = [(theirs, theirs.double(), NET_LIMIT, float("inf"))]
            yield Call(name, RUN_PLAN, (images, engine.plan, engine.geometry), expected)


def calls() -> Iterator[Call]:
    """Every case, cases with NaN, planted faults, and what a plan's cache sees of tensors."""
    for op in OPS:
        cases = op_cases(op)
        yield from map(_call, cases)
        if op != "fold_batch_norm":
            yield _call(cases[0], special=True)
    for fault in OP_FAULTS.values():
        yield _call(fault.case, fault.plant)
    yield from _corners()
    yield from _networks()
    for count in (1, 7, 64, 129):  # short tensors are looked at whole, so the number is the same on every CPU
        tensors = [torch.linspace(-1, 1, count), torch.full((2, 3), float(count))]
        yield Call(f"tensor_state {count}", STATE, (tensors,), [], number=STATE(tensors))


class Writer:
    """Writes the format of csrc/driver/cases.h."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def integers(self, *values: int) -> None:
        """Each as int64."""
        self._file.write(struct.pack(f"<{len(values)}q", *values))

    def vector(self, values: Sequence[int]) -> None:
        """The length, then the values."""
        self.integers(len(values), *values)

    def text(self, text: str) -> None:
        """The length, then the characters."""
        self.integers(len(text))
        self._file.write(text.encode("ascii"))

    def tensor(self, t: Tensor) -> None:
        """dtype, sizes, strides, and all that lies between its first and its last element."""
        self.integers(DTYPES[t.dtype])
        self.vector(t.shape)
        self.vector(t.stride())
        span = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        self._file.write(t.as_strided((span,), (1,)).numpy().tobytes() if t.numel() else b"")

    def argument(self, kind: str, value: Any) -> None:
        """One argument of a kernel."""
        if kind == "i":
            self.integers(value)
        elif kind == "f":
            self._file.write(struct.pack("<d", value))
        elif kind == "I":
            self.vector(value)
        else:
            tensors = [value] if kind == "T" else [] if value is None else [value] if kind == "t" else value
            if kind != "T":
                self.integers(len(tensors))
            for tensor in tensors:
                self.tensor(tensor)

    def call(self, call: Call) -> None:
        """One case."""
        schema = call.op.default._schema
        kinds = "".join(KINDS[str(argument.type)] for argument in schema.arguments)
        self.text(schema.name.removeprefix("mnv3_fast::"))
        self.text(f"{call.name} (planted)" if call.planted else call.name)
        self.integers(call.planted)
        self.text(kinds)
        for kind, value in zip(kinds, call.arguments, strict=True):
            self.argument(kind, value)
        self.integers(call.number is not None)
        if call.number is not None:
            self.integers(call.number)
        self.integers(len(call.expected))
        for theirs, exact, relative_limit, max_limit in call.expected:
            self.vector(theirs.shape)
            self._file.write(theirs.contiguous().numpy().tobytes() + exact.contiguous().numpy().tobytes())
            self._file.write(struct.pack("<2d", relative_limit, max_limit))


@torch.no_grad()
def main(path: str) -> None:
    """Write the file."""
    count = 0
    with open(path, "wb") as file:
        writer = Writer(file)
        file.write(b"MNV3CASE")
        writer.integers(0)
        for call in calls():
            writer.call(call)
            count += 1
        file.seek(8)
        writer.integers(count)


if __name__ == "__main__":
    main(*sys.argv[1:])
