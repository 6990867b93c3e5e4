"""``python -m benchmarks.gpu.instructions``: counts the instructions of our kernels, for the model and the choice.

Those of both networks in float16, and depthwise ones in every dtype, Triton's and CUDA's. Written to
mnv3_fast/gpu/counts.json, with digests of the kernels' sources, so that a time is computed without a compiler and a
test sees when the counts are of other kernels. What has not changed is not counted again; all of it takes some minutes.
Where nvcc is missing, the counts of CUDA kernels are kept as long as they are of these sources.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import textwrap
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu import cubin, loops, sass
from benchmarks.gpu.gpus import GPUS
from mnv3_fast.gpu import choice
from mnv3_fast.gpu import counts as choices
from mnv3_fast.gpu.instructions import FILE, Code, label, rounds
from mnv3_fast.gpu.launch import AnyLaunch, CudaLaunch
from mnv3_fast.gpu.network import Network
from mnv3_fast.ops.depthwise_conv import cuda_kernel, triton_kernel
from mnv3_fast.testing.gpu_bench.levels import stages_of
from mnv3_fast.testing.gpu_bench.requested import launches_of
from setup import find_nvcc

NETS, BATCHES, DTYPE = ("large", "small"), (1, 8, 32, 128, 256), torch.float16
MODELLED = sorted({gpu.architecture for gpu in GPUS})
ARCHITECTURES = sorted({*MODELLED, 100})
"""On sm_100 Triton's products wait in loops that the source has not; such a kernel is left out there."""


def kernels() -> dict[str, AnyLaunch]:
    """One launch for each compilation that is counted, by its label."""
    found: dict[str, AnyLaunch] = {}
    for launch in (*network_launches(), *depthwise_launches()):
        found.setdefault(label(launch), launch)
    return found


def network_launches() -> Iterator[AnyLaunch]:
    """Those of both networks, with each variant of their blocks and layers."""
    for net, batch, variant in product(NETS, BATCHES, choice.VARIANTS):
        with choice.assume(GPUS[0].properties), mock.patch.object(choices, "better", return_value=variant):
            yield from launches_of(Network(stages_of(net), DTYPE), (batch, 3, 224, 224))


def depthwise_launches() -> Iterator[AnyLaunch]:
    """Depthwise layers for which there are a Triton and a CUDA kernel, in every dtype."""
    for dtype, size, stride, activation, summed, kernel in product(
        cubin.ELEMENTS, (3, 5), (1, 2), (1, 2), (False, True), (triton_kernel, cuda_kernel)
    ):
        pad, out = size // 2, 14 // stride
        window = (stride, stride, pad, pad, pad, pad, 1, 1)
        input, output = (torch.empty(1, side, side, 64, dtype=dtype, device="meta") for side in (14, out))
        input, output = input.permute(0, 3, 1, 2), output.permute(0, 3, 1, 2)
        weight = torch.empty(size * size, 64, dtype=dtype, device="meta")
        bias = torch.empty(64, device="meta")
        sums = None
        if summed:
            sums = torch.empty(kernel.sums_shape(output, (size, size), window), device="meta")
        yield from kernel.launches(input, weight, bias, output, (size, size), window, activation, sums)


def digest() -> str:
    """Of the Triton kernels' sources, without comments and layout."""
    functions: dict[str, Any] = {}
    for launch in kernels().values():
        if not isinstance(launch, CudaLaunch):
            _collect(launch.kernel, functions)
    text = "\n".join(ast.unparse(ast.parse(textwrap.dedent(function.src))) for _, function in sorted(functions.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _collect(function: Any, found: dict[str, Any]) -> None:
    """A kernel and the functions that it calls."""
    name = f"{function.fn.__module__}.{function.__name__}"
    if name in found:
        return
    found[name] = function
    for value in function.fn.__globals__.values():
        if type(value) is type(function) and value.__name__ in function.src:
            _collect(value, found)


def reader() -> list[str]:
    """Digests of what reads compiled code: all, and that of CUDA kernels."""
    texts = (Path(module.__file__).read_text(encoding="utf-8") for module in (sass, loops))
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def outdated(before: dict[str, Any]) -> list[str]:
    """The CUDA kernels of which a file has no counts, or of other sources."""
    return [kernel for kernel in cubin.SOURCES if before.get("cuda", {}).get(kernel) != cubin.digest(kernel)]


def kept(before: dict[str, Any], now: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The counts of a file that were made of today's sources with today's compilers, by label and architecture."""
    read = before.get("reader", ["", ""])
    if read[0] != now["reader"][0]:
        return {}
    as_before = (before["nvcc"], read) == (now["nvcc"], now["reader"])
    same = {f"{kernel}_cuda_kernel" for kernel in cubin.SOURCES if as_before}
    same -= {f"{kernel}_cuda_kernel" for kernel in outdated(before)}
    triton = (before["sources"], before["triton"]) == (now["sources"], now["triton"])
    found = {}
    for name, codes in before["counts"].items():
        kernel = name.split(" ")[0]
        if kernel in same if kernel.endswith("_cuda_kernel") else triton:
            found[name] = codes
    return found


def count(launch: AnyLaunch, architecture: int, nvcc: str | None) -> Code | None:
    """The code of a launch on an architecture; None where its loops are not those of the source, on sm_100."""
    if isinstance(launch, CudaLaunch):
        return cubin.compile_and_read(str(nvcc), launch, architecture)
    try:
        code = sass.compile_and_read(launch, architecture)
        code.executed(rounds(launch, code))
    except ValueError:
        if architecture in MODELLED:
            raise
        return None
    return code


def main() -> None:
    """Count what has changed, and write."""
    import triton

    before = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    nvcc, wanted = find_nvcc(), kernels()
    if nvcc is None:
        if outdated(before) or before["reader"] != reader():
            sys.exit(
                f"the CUDA kernels of {', '.join(outdated(before) or cubin.SOURCES)} must be counted anew, and that "
                "needs nvcc, which is not on the path, in CUDA_HOME or in this environment: "
                f"pip install {cubin.WHEELS}"
            )
        sys.stderr.write(f"there is no nvcc: the counts of CUDA kernels stay those of nvcc {before['nvcc']}\n")
    now = {
        "triton": triton.__version__, "nvcc": cubin.version(nvcc) if nvcc else before["nvcc"], "reader": reader(),
        "sources": digest(), "cuda": {kernel: cubin.digest(kernel) for kernel in cubin.SOURCES},
    }  # fmt: skip
    old = kept(before, now)
    counts: dict[str, dict[str, Any]] = {name: dict(old.get(name, {})) for name in wanted}
    for architecture in ARCHITECTURES:
        for name, launch in wanted.items():
            if name not in old and (code := count(launch, architecture, nvcc)) is not None:
                counts[name][str(architecture)] = code.as_json()
        made = sum(name not in old for name in wanted)
        sys.stderr.write(f"sm_{architecture}: {made} of {len(wanted)} kernels counted anew\n")
    write({**now, "counts": counts})


def write(record: dict[str, Any]) -> None:
    """The file, a kernel a line."""
    head = ",\n".join(f"{json.dumps(name)}: {json.dumps(record[name])}" for name in record if name != "counts")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(codes)}" for name, codes in record["counts"].items())
    FILE.write_text(f'{{{head},\n"counts": {{\n{lines}}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
