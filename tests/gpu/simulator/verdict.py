"""A request run by its op's CUDA kernel in the simulator, and judged as the emulator's runs are (tests/gpu/verdict.py)."""

from __future__ import annotations

from collections.abc import Mapping

from mnv3_fast.ops.depthwise_conv import cuda_kernel
from mnv3_fast.ops.elements import ACTIVATIONS
from tests.gpu.operators import OPERATORS, Request
from tests.gpu.plant import NothingToDamage
from tests.gpu.simulator import build
from tests.gpu.simulator.run import SIZES, depthwise_conv
from tests.gpu.verdict import Verdict, compare


def missing_reason(request: Request) -> str | None:
    """Why a request cannot be simulated; None if it can."""
    if request.op != "depthwise_conv":
        return f"there is a CUDA kernel for depthwise_conv, none for {request.op}"
    if not cuda_kernel.is_known((request.kernel, request.kernel), request.window):
        return f"the CUDA kernel has 3x3 and 5x5, strides 1 and 2 and no dilation, got {request}"
    return "g++, which compiles the simulator, is not installed" if build.compiler() is None else None


def judge(request: Request, damage: Mapping[str, build.Damage] | None = None, wrong: str | None = None) -> Verdict:
    """Run a request in both orders of threads.

    Args:
        request: what is run.
        damage: changes the kernel's source first, by dtype.
        wrong: a size that the kernel is told one too large.
    """
    run = OPERATORS[request.op](request)
    verdict = Verdict(str(request))
    kernel, code = (request.kernel, request.kernel), ACTIVATIONS[request.activation]
    program = build.depthwise_conv(damage)
    outcome = depthwise_conv(program, *run.inputs, kernel, request.window, code, request.mean, wrong=wrong)
    verdict.faults += outcome.faults
    if outcome.output is None or outcome.faults:
        return verdict
    ours = {"output": outcome.output, "mean": outcome.mean}
    for name, result in run.results.items():
        result.ours = lambda name=name: ours[name]
    compare(verdict, run, request.torch_dtype)
    written = (outcome.output, outcome.sums, outcome.mean)
    verdict.written = sum(tensor.nbytes for tensor in written if tensor is not None)
    return verdict


def plant_and_judge(request: Request, fault: str) -> Verdict:
    """Run a request with a fault: "barrier" or "bound".

    Raises:
        NothingToDamage: for "mma", for "barrier" where nothing is summed, and where no size matters.
    """
    if fault == "mma":
        raise NothingToDamage("the CUDA kernel has no matrix product")
    if fault == "barrier":
        if not request.mean:
            raise NothingToDamage("the CUDA kernel has a barrier for --mean alone")
        verdict = judge(request, {request.dtype: lambda text: build.changed(text, "  __syncthreads();\n", "")})
        verdict.planted = fault
        return verdict
    for name in SIZES:
        verdict = judge(request, wrong=name)
        verdict.planted = f"bound: {name} one too large"
        if verdict.faults:
            return verdict
    raise NothingToDamage("no size of the kernel changes anything when it is one too large")
