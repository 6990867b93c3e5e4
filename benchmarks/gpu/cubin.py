"""Our CUDA kernels compiled by nvcc for GPUs that are not here, and the instructions of each."""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
from pathlib import Path

import torch

from benchmarks.gpu import loops, sass
from mnv3_fast.gpu.instructions import Code, dtype_of
from mnv3_fast.gpu.launch import CudaLaunch

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "cubin"
ELEMENTS = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}
SOURCES = {
    "depthwise_conv": "ops/depthwise_conv/cuda.cu",
    "inverted_residual": "ops/inverted_residual/cuda.cu",
    "gated_project": "ops/inverted_residual/gated_project.cu",
}
"""The source of each kernel, below csrc."""
WHEELS = "nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-cccl nvidia-cuda-runtime"
"""pip's wheels that make up nvcc."""
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
COMMENT = re.compile(r"//[^\n]*")


def sources(kernel: str) -> list[Path]:
    """A kernel's source and all headers of ours that it includes."""
    found, open_ = [], [ROOT / "csrc" / SOURCES[kernel]]
    while open_:
        path = open_.pop()
        if path not in found:
            found.append(path)
            open_ += [ROOT / "csrc" / name for name in INCLUDE.findall(path.read_text(encoding="utf-8"))]
    return sorted(found)


def digest(kernel: str) -> str:
    """Of a kernel's sources, without comments and layout."""
    text = "\0".join(COMMENT.sub("", path.read_text(encoding="utf-8")) for path in sources(kernel))
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def compiled(nvcc: str, kernel: str, dtype: torch.dtype, architecture: int) -> Path:
    """The cubin of all variants of a kernel in a dtype; kept in build/ until a source changes."""
    flags = [
        "-std=c++17",
        "-O3",
        "-lineinfo",
        f"-arch=sm_{architecture}",
        f"-I{ROOT / 'csrc'}",
        f"-DMNV3_ELEMENT={ELEMENTS[dtype]}",
    ]
    texts = [path.read_text(encoding="utf-8") for path in sources(kernel)]  # with comments: lines are noted
    name = hashlib.sha256("\0".join([*texts, version(nvcc), *flags]).encode()).hexdigest()[:16]
    to = BUILD / f"{kernel}-{architecture}-{name}.cubin"
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        made = to.with_suffix(".part")
        subprocess.run([nvcc, *flags, "-cubin", "-o", made, ROOT / "csrc" / SOURCES[kernel]], check=True)
        made.replace(to)
    return to


@functools.cache
def version(nvcc: str) -> str:
    """Of nvcc, as 13.2."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", said).group(1)


@functools.cache
def functions(cubin: Path) -> dict[str, str]:
    """The listing of each function in a cubin, by its mangled name."""
    parts = re.split(r"\n\s*\.section\s+\.text\.", sass.disassembled(cubin, "-gi"))[1:]
    return {part.split(",")[0]: part for part in parts}


def compile_and_read(nvcc: str, launch: CudaLaunch, architecture: int) -> Code:
    """The code that a launch starts on an NVIDIA GPU. Needs nvcc, the tools that come with Triton, and no GPU.

    Raises:
        LookupError: if not one function of the source is that.
    """
    kernel = launch.kernel.name
    all_ = functions(compiled(nvcc, kernel, dtype_of(launch), architecture))
    found = [text for name, text in all_.items() if re.search(f"{kernel}_kernelI.*{variant(launch)}E+v", name)]
    if len(found) != 1:
        raise LookupError(f"{kernel}: {variant(launch)} must be in the name of one function, got {sorted(all_)}")
    return sass.read(found[0], loops.source_of(launch))


def variant(launch: CudaLaunch) -> str:
    """The template's arguments after the dtype, in a mangled name."""
    of = launch.constants
    if launch.kernel.name == "depthwise_conv":
        activation = of["ACTIVATION"] if of["WORDS"] else ANY
        return rf"Li{of['KERNEL']}ELi{of['STRIDE']}EL.*ActivationE{activation}ELb{int(of['WORDS'])}"
    if launch.kernel.name == "inverted_residual":
        return f"Li{of['KERNEL']}ELi{of['STRIDE']}ELb{int(of['PROJECT'])}"
    if launch.kernel.name == "gated_project":
        return f"Li{of['GROUPS']}"
    raise ValueError(f"variant: kernel must be one of {', '.join(SOURCES)}, got {launch.kernel.name}")


ANY = 4
"""kAny of csrc/cuda/vector.h: the activation is an argument of the kernel."""
