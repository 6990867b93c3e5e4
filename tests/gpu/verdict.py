"""An op's launches run on the emulator and judged: results, bytes written, races, accesses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu.launch import Launch
from mnv3_fast.testing.tolerance import max_error, op_limit, relative_error
from tests.gpu import plant
from tests.gpu.compile import compile_launch
from tests.gpu.device import ARCHITECTURE, Device
from tests.gpu.machine import EmulationError
from tests.gpu.operators import OPERATORS
from tests.gpu.parse import UnknownPtx
from tests.gpu.requests import Request, Run


@dataclass
class Verdict:
    """What came of a request; ``faults`` is empty if all is well."""

    request: str
    error: dict[str, float] = field(default_factory=dict)
    """Of each output the larger of relative L2 and max|diff| / max|ref|, against fp64."""
    tolerance: dict[str, float] = field(default_factory=dict)
    requested: int = 0
    unique: int = 0
    written: int = 0
    traffic: list[dict[str, Any]] = field(default_factory=list)
    """Of each launch the bytes of each tensor, and instructions by class."""
    faults: list[str] = field(default_factory=list)
    planted: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For printing; infinite errors as words, which JSON has none for."""
        plain = asdict(self)
        plain["error"] = {k: v if math.isfinite(v) else str(v) for k, v in self.error.items()}
        return plain


def compare(verdict: Verdict, run: Run, dtype: torch.dtype) -> None:
    """Judge the results by the one tolerance rule."""
    for name, result in run.results.items():
        errors, limits = [], []
        for measure in (relative_error, max_error):
            error = _number(measure(result.ours(), result.exact))
            errors.append(error)
            limits.append(op_limit(measure(result.theirs, result.exact), dtype))
        worst = max(range(2), key=lambda i: errors[i] / limits[i])
        verdict.error[name], verdict.tolerance[name] = errors[worst], limits[worst]
        if not errors[worst] <= limits[worst]:
            verdict.faults.append(f"{name}: error {errors[worst]:.3g}, tolerance {limits[worst]:.3g}")


def _number(error: float) -> float:
    return math.inf if math.isnan(error) else error


def judge(
    request: Request, damage: Callable[[str], str] | None = None, passed: dict[str, Tensor | int] | None = None
) -> Verdict:
    """Run a request.

    Args:
        request: what is run.
        damage: changes the compiled kernels first.
        passed: replaces arguments of the kernels that have them, after compilation.
    """
    run = OPERATORS[request.op](request)
    verdict, device = Verdict(str(request)), Device(damage)
    try:
        for launch in run.launches:
            report = device.run(launch, passed={k: v for k, v in (passed or {}).items() if k in launch.arguments})
            tensors = {name: asdict(traffic) for name, traffic in report.traffic.items()}
            verdict.traffic.append(
                {
                    "kernel": report.kernel,
                    "programs": report.programs,
                    "bytes": tensors,
                    "instructions": report.instructions,
                }
            )
            verdict.requested += report.total("requested")
            verdict.unique += report.total("unique")
            verdict.written += report.total("written")
    except (EmulationError, UnknownPtx) as error:
        verdict.faults.append(str(error))
        return verdict
    verdict.faults += device.faults + device.written_faults(run.inputs, run.outputs)
    compare(verdict, run, request.torch_dtype)
    return verdict


def plant_and_judge(request: Request, fault: str) -> Verdict:
    """Run a request with a fault: "barrier", "mma" or "bound".

    Raises:
        NothingToDamage: if its kernels have no barrier, no matrix product, or no size that matters.
    """
    if fault != "bound":
        verdict = judge(request, _damage_where_possible(request, fault))
        verdict.planted = fault
        return verdict
    for name in sizes(OPERATORS[request.op](request).launches):
        value = _value_of(request, name)
        verdict = judge(request, passed={name: value + 1})
        verdict.planted = f"bound: {name} = {value + 1} for {value}"
        if verdict.faults:
            return verdict
    raise plant.NothingToDamage("no size of the kernels changes anything when it is one too large")


def _damage_where_possible(request: Request, fault: str) -> Callable[[str], str]:
    """Damages the kernels that have what the fault damages; at least one must."""
    change, damaged, missing = plant.PTX[fault], {}, None
    for launch in OPERATORS[request.op](request).launches:
        text = compile_launch(launch, ARCHITECTURE).asm["ptx"]
        try:
            damaged[text] = change(text)
        except plant.NothingToDamage as error:
            missing = error
    if not damaged:
        raise missing or plant.NothingToDamage("there is no launch")
    return lambda text: damaged.get(text, text)


def sizes(launches: list[Launch]) -> list[str]:
    """The names of whole numbers that the compiled kernels are given, sizes of maps first."""
    names = {}
    for launch in launches:
        kept = compile_launch(launch, ARCHITECTURE).parameters
        names |= {name: None for name in kept if isinstance(launch.arguments[name], int)}
    first = ("out_height", "out_width", "height", "width", "pixels", "outputs", "inputs", "channels")
    return sorted(names, key=lambda name: first.index(name) if name in first else len(first))


def _value_of(request: Request, name: str) -> int:
    launches = OPERATORS[request.op](request).launches
    return next(int(launch.arguments[name]) for launch in launches if name in launch.arguments)
