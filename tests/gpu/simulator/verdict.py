"""A request run by its op's CUDA kernels in the simulator, and judged as the emulator's runs are (tests/gpu/verdict.py)."""

from __future__ import annotations

from collections.abc import Mapping

from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.ops.depthwise_conv import cuda_kernel as depthwise_kernel
from mnv3_fast.ops.inverted_residual import cuda_kernel as block_kernel
from tests.gpu import operators
from tests.gpu.plant import NothingToDamage
from tests.gpu.requests import Request, Run
from tests.gpu.simulator import build
from tests.gpu.simulator.run import run as simulate
from tests.gpu.verdict import Verdict, compare

SIZES = {
    "depthwise_conv": ("out_height", "out_width", "height", "width", "channels"),
    "inverted_residual": ("out_height", "out_width", "height", "width", "inputs", "hidden", "outputs"),
    "gated_project": ("pixels", "channels", "squeeze", "outputs", "count"),
}
"""Fields of a kernel's structure that are planted one too large."""
PROGRAMS = {
    "depthwise_conv": build.depthwise_conv,
    "inverted_residual": build.inverted_residual,
    "gated_project": build.gated_project,
}
WRITTEN = {
    "depthwise_conv": ("output", "sums"),
    "inverted_residual": ("output", "parts"),
    "gated_project": ("output",),
}
CHANGED = {"gated_project": ("partials", "arrivals")}
Damage = Mapping[str, Mapping[str, build.Damage]]
"""Changes of the source, by kernel and dtype."""


def missing_reason(request: Request) -> str | None:
    """Why a request cannot be simulated; None if it can."""
    shape, kernel = (request.n, request.c, request.h, request.w), (request.kernel, request.kernel)
    if request.op == "depthwise_conv":
        if not depthwise_kernel.is_known(shape, kernel, request.window):
            return f"the CUDA kernel has 3x3 and 5x5, strides 1 and 2 and no dilation, got {request}"
    elif request.op == "inverted_residual":
        sizes = request.hidden or 0, request.squeeze or 0, request.outputs
        if not block_kernel.is_known(request.torch_dtype, shape, kernel, request.window, *sizes):
            return (
                "the CUDA kernels have fp16 and bf16, 3x3 and 5x5, strides 1 and 2, channels that are multiples of 8 "
                f"and no more of them than fit, got {request}"
            )
    else:
        return f"there are CUDA kernels for depthwise_conv and inverted_residual, none for {request.op}"
    return "g++, which compiles the simulator, is not installed" if build.compiler() is None else None


def _run(request: Request) -> Run:
    if request.op == "depthwise_conv":
        return operators.depthwise_conv(request, depthwise_kernel)
    return operators.inverted_residual(request, _block)


def _block(block, input, output) -> list[AnyLaunch]:
    packed = block_kernel.pack(block)
    return operators.in_arena(lambda arena: block_kernel.launches(packed, input, output, arena))


def judge(request: Request, damage: Damage | None = None, wrong: tuple[str, str] | None = None) -> Verdict:
    """Run a request in both orders of threads.

    Args:
        request: what is run.
        damage: changes the kernels' sources first.
        wrong: a kernel and a size that it is told one too large.
    """
    run = _run(request)
    verdict = Verdict(str(request))
    for launch in run.launches:
        name = launch.kernel.name
        changed = {wrong[1]: launch.arguments[wrong[1]] + 1} if wrong and wrong[0] == name else {}
        program = PROGRAMS[name]((damage or {}).get(name))
        outcome = simulate(program, launch, WRITTEN[name], changed, CHANGED.get(name, ()))
        verdict.faults += outcome.faults
        if outcome.status or outcome.faults:
            return verdict
    compare(verdict, run, request.torch_dtype)
    verdict.written = sum(tensor.nbytes for tensor in run.outputs)
    return verdict


def plant_and_judge(request: Request, fault: str) -> Verdict:
    """Run a request with a fault: "barrier" or "bound".

    Raises:
        NothingToDamage: for "mma", and where no size matters.
    """
    if fault == "mma":
        raise NothingToDamage("only compiled kernels are damaged so, CUDA kernels have a barrier and bounds")
    if fault == "barrier":
        damage = {name: {request.dtype: _without_barriers} for name in PROGRAMS}
        verdict = judge(request, damage)
        verdict.planted = fault
        return verdict
    for launch in _run(request).launches:
        for size in SIZES[launch.kernel.name]:
            verdict = judge(request, wrong=(launch.kernel.name, size))
            verdict.planted = f"bound: {size} of {launch.kernel.name} one too large"
            if verdict.faults:
                return verdict
    raise NothingToDamage("no size of the kernels changes anything when it is one too large")


def _without_barriers(text: str) -> str:
    return text.replace("__syncthreads();", "")
