"""Equality on a GPU: every kernel over all real layers and edges, both networks, planted faults; and a report of it."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn

from mnv3_fast._version import __version__
from mnv3_fast.acceleration import accelerate
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.gpu import choice, first_use, launch
from mnv3_fast.gpu.first_use import DTYPES, Report, Runner
from mnv3_fast.gpu.outcomes import name_of, one_line
from mnv3_fast.testing.cases import LAYOUTS, Case, op_cases
from mnv3_fast.testing.compare import Plant
from mnv3_fast.testing.on_device import Comparison, compare
from mnv3_fast.testing.op_faults import OP_FAULTS
from mnv3_fast.testing.parity import parity_images, parity_model
from mnv3_fast.testing.tolerance import NET_LIMIT, comparable, max_error, op_limit, relative_error

NETS = ("large", "small")
SIZES = ((224, 224), (97, 131), (32, 32))
REPLAYS = 3
"""Calls beside the one that is compared with the reference; the last are replays of a CUDA graph where there is one."""


@dataclass(frozen=True)
class DeviceRow:
    """One line of the report.

    Attributes:
        name: a kernel's, a network's and the way it ran, or a planted fault's.
        cases: how many were compared.
        error, limit: of the case that was nearest to its limit, or furthest above it, and which that was (``worst``);
            None where outputs could not be compared.
        launches: of a network, kernels of ours that were started.
        passed: whether all is as it should be: of a planted fault, that it was found.
        reason: of the first miss.
    """

    name: str
    dtype: str
    cases: int
    error: float | None
    limit: float | None
    worst: str
    launches: int | None
    passed: bool
    reason: str | None = None


class _Counted:
    """Counts the launches inside of its ``with`` block."""

    def __init__(self) -> None:
        self.launches = 0

    def __call__(self, each: launch.Launch) -> bool:
        self.launches += 1
        return False


def device_cases(op: str) -> list[Case]:
    """Every real layer of both networks in full size and every edge case, layouts in turn."""
    full = op_cases(op, "full")
    return [full[i + (i // len(LAYOUTS)) % len(LAYOUTS)] for i in range(0, len(full), len(LAYOUTS))]


def device_op_rows(
    device: torch.device, dtypes: Sequence[torch.dtype] = DTYPES, run: Runner = first_use.run_kernel
) -> Iterator[DeviceRow]:
    """Each kernel over its cases in each dtype, then the planted faults in its first dtype. Rows as they are found."""
    kernels = {dtype: first_use.kernels_of(device, dtype) for dtype in DTYPES}
    for dtype in dtypes:
        for kernel in kernels[dtype]:
            yield _op_row(kernel, kernel, dtype, device_cases(kernel.removesuffix("_cuda")), device, run)
    for dtype in dtypes:
        for fault, planted in OP_FAULTS.items():
            for kernel in (planted.case.op, f"{planted.case.op}_cuda"):
                if kernel in kernels[dtype] and dtype is next(d for d in DTYPES if kernel in kernels[d]):
                    name = f"planted in {fault}{', CUDA' if kernel.endswith('_cuda') else ''}"
                    row = _op_row(name, kernel, dtype, [planted.case], device, run, planted.plant)
                    yield dataclasses.replace(row, passed=row.error is not None and not row.passed)


def _op_row(
    name: str, kernel: str, dtype: torch.dtype, cases: list[Case], device: torch.device, run: Runner,
    plant: Plant | None = None,
) -> DeviceRow:  # fmt: skip
    worst, at, first_miss, compared = Comparison(0.0, op_limit(0.0, dtype)), "", None, 0
    for case in cases:
        try:
            with choice.only(kernel):
                found = compare(case, dtype, lambda op, args: run(op, args, device), plant)
        except choice.NoKernel:
            continue
        except Exception as error:
            found = Comparison(None, None, one_line(error))
        compared += 1
        if found.ratio >= worst.ratio:
            worst, at = found, str(case)
        if found.reason is not None and first_miss is None:
            first_miss = f"{case}: {found.reason}"
    if compared == 0:
        worst, first_miss = Comparison(None, None), "there is no case that it computes"
    passed = first_miss is None
    return DeviceRow(name, name_of(dtype), compared, worst.error, worst.limit, at, None, passed, first_miss)


@torch.no_grad()
def device_model_rows(
    device: torch.device, dtypes: Sequence[torch.dtype] = DTYPES, nets: Sequence[str] = NETS
) -> Iterator[DeviceRow]:
    """Networks, accelerated and frozen, in each dtype. Rows as they are found.

    In float32 they must be as near to torchvision on the CPU as any network; in 16 bit to fp64 by the rule for ops,
    which compares with torchvision's own run on the device.
    """
    for net in nets:
        model = parity_model(net)
        for dtype in dtypes:
            lower = copy.deepcopy(model).to(dtype)
            on_device = copy.deepcopy(lower).to(device)
            for way, convert in (("accelerated", accelerate), ("frozen", freeze)):
                yield _model_row(f"{net}, {way}", lower, on_device, convert, dtype, device)


def _model_row(
    name: str, model: nn.Module, on_device: nn.Module, convert: Any, dtype: torch.dtype, device: torch.device
) -> DeviceRow:
    worst, at, first_miss, counted = Comparison(0.0, NET_LIMIT), "", None, _Counted()
    try:
        run = convert(on_device)
        for size in SIZES:
            images = parity_images(2, *size, seed=1).to(dtype)
            with launch.observe(counted):
                ours = run(images.to(device)).cpu()
            found = _net_comparison(ours, images, model, on_device, device)
            if not all(torch.equal(run(images.to(device)).cpu(), ours) for _ in range(REPLAYS)):
                found = Comparison(found.error, found.limit, "a later call, by a CUDA graph, gives something else")
            if found.ratio >= worst.ratio:
                worst, at = found, f"{size[0]} x {size[1]}"
            if found.reason is not None and first_miss is None:
                first_miss = f"{size[0]} x {size[1]}: {found.reason}"
    except Exception as error:
        worst, first_miss = Comparison(None, None), one_line(error)
    if first_miss is None and counted.launches == 0:
        first_miss = "it ran without a kernel of ours"
    return DeviceRow(
        name, name_of(dtype), len(SIZES), worst.error, worst.limit, at, counted.launches, first_miss is None, first_miss
    )


def _net_comparison(
    ours: torch.Tensor, images: torch.Tensor, model: nn.Module, on_device: nn.Module, device: torch.device
) -> Comparison:
    dtype = images.dtype
    if dtype is torch.float32:
        expected, exact, limit = model(images), None, NET_LIMIT
    else:
        expected = on_device(images.to(device)).cpu()
        exact, limit = copy.deepcopy(model).double()(images.double()), None
    try:
        ours, expected, exact = comparable(ours, expected, expected if exact is None else exact, dtype)
    except AssertionError as miss:
        return Comparison(None, None, str(miss))
    found = []
    for measure in (relative_error,) if limit else (relative_error, max_error):
        error, most = measure(ours, exact), limit or op_limit(measure(expected, exact), dtype)
        reason = None if error <= most else f"{measure.__name__} {error:.3g}, limit {most:.3g}"
        found.append(Comparison(error, most, reason))
    return max(found, key=lambda each: each.ratio)


def device_facts(device: torch.device) -> dict[str, Any]:
    """What a bug report must say of a machine with a GPU."""
    properties = torch.cuda.get_device_properties(device)
    name, capability = first_use.describe(device)
    return {
        "device": name,
        "capability": capability,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "torch": torch.__version__,
        "triton": first_use.triton_version()[0],
        "torchvision": torchvision.__version__,
        "mnv3_fast": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "float32_products": torch.backends.cuda.matmul.fp32_precision,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def driver_version() -> str | None:
    """The driver's version as ``nvidia-smi`` knows it; None where there is no such program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def report_of(facts: dict[str, Any], checked: Report, rows: Iterable[DeviceRow]) -> dict[str, Any]:
    """The report as JSON."""
    found = [dataclasses.asdict(row) for row in rows]
    return {
        "passed": checked.passed and all(row["passed"] for row in found),
        "machine": facts,
        "first_use": [dataclasses.asdict(outcome) for outcome in checked.outcomes],
        "rows": found,
    }


def report_text(report: dict[str, Any]) -> str:
    """The report for eyes, a line each."""
    facts = report["machine"]
    lines = [f"mnv3_fast {facts['mnv3_fast']} on {facts['device']}: " + ("passed" if report["passed"] else "MISS"), ""]
    lines += [f"{name}: {value}" for name, value in facts.items() if value is not None]
    lines += ["", "first use:"]
    for outcome in report["first_use"]:
        state = "usable" if outcome["passed"] else f"switched off: {outcome['reason']}"
        lines.append(f"{outcome['kernel']} {outcome['dtype']}: {_numbers(outcome)}{state}")
    lines += ["", "all layers and networks:"]
    for row in report["rows"]:
        state = ("found" if "planted" in row["name"] else "equal") if row["passed"] else f"MISS: {row['reason']}"
        lines.append(f"{row['name']} {row['dtype']}: {row['cases']} cases, {_numbers(row)}{state}")
    return "\n".join(lines) + "\n"


def _numbers(item: dict[str, Any]) -> str:
    return "" if item["error"] is None else f"error {item['error']:.3g}, limit {item['limit']:.3g}, "
