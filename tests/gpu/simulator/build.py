"""Compiles CUDA sources with g++ and the headers in ``include``, with AddressSanitizer; results are kept in build/."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.gpu.plant import NothingToDamage

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
BUILD = ROOT / "build" / "simulator"
FLAGS = (
    "-std=c++17", "-O1", "-g1", "-fsanitize=address,alignment", "-fno-sanitize-recover=alignment",
    "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    f"-I{HERE / 'include'}",
)  # fmt: skip
Damage = Callable[[str], str]


def compiler() -> str | None:
    """g++, whose fibers AddressSanitizer follows; None if there is none."""
    return shutil.which("g++")


def compile_object(source: Path, defines: Sequence[str] = (), damage: Damage | None = None) -> Path:
    """The object file of a source; compiled anew where it, a header or a flag changed.

    Args:
        source: a C++ or CUDA source.
        defines: macros, "NAME=value".
        damage: changes the source's text first, for tests that plant a fault.

    Raises:
        RuntimeError: with the compiler's messages, if the source does not compile.
    """
    text = source.read_text(encoding="utf-8")
    text = text if damage is None else damage(text)
    headers = [*sorted((ROOT / "csrc").rglob("*.h")), *sorted((HERE / "include").glob("*.h"))]
    command = [compiler() or "g++", *FLAGS, f"-I{ROOT / 'csrc'}", *[f"-D{define}" for define in defines]]
    parts = [text, *command, *[header.read_text(encoding="utf-8") for header in headers]]
    to = BUILD / f"{source.stem}-{_digest(parts)}.o"
    if not to.exists():
        _make(to, [*command, "-x", "c++", "-c", "-"], text)
    return to


def link(objects: Sequence[Path]) -> Path:
    """The program of some object files."""
    to = BUILD / f"program-{_digest([path.name for path in objects])}"
    if not to.exists():
        _make(to, [compiler() or "g++", "-fsanitize=address,alignment", *map(str, objects)], "")
    return to


def changed(before: str, old: str, new: str) -> str:
    """A text with the one occurrence of ``old`` replaced.

    Raises:
        NothingToDamage: if there is none, or more than one.
    """
    if before.count(old) != 1:
        raise NothingToDamage(f"the source has {old!r} {before.count(old)} times, wanted once")
    return before.replace(old, new)


def depthwise_conv(damage: Mapping[str, Damage] | None = None) -> Path:
    """The program that runs a launch of depthwise_conv's kernel (``run.py``).

    Args:
        damage: changes of sources, by dtype ("fp32", "fp16", "bf16").
    """
    return _program("depthwise_conv", "cuda_binding.cpp", "cuda.cu", "mnv3_cuda_depthwise_conv", ELEMENTS, damage or {})


def inverted_residual(damage: Mapping[str, Damage] | None = None) -> Path:
    """The program that runs a launch of inverted_residual's kernel.

    Args:
        damage: changes of sources, by dtype ("fp16", "bf16").
    """
    files = "cuda_binding.cpp", "cuda.cu"
    return _program("inverted_residual", *files, "mnv3_cuda_inverted_residual", HALVES, damage or {})


def gated_project(damage: Mapping[str, Damage] | None = None) -> Path:
    """The program that runs a launch of gated_project's kernel.

    Args:
        damage: changes of sources, by dtype ("fp16", "bf16").
    """
    files = "gated_project_binding.cpp", "gated_project.cu"
    return _program("inverted_residual", *files, "mnv3_cuda_gated_project", HALVES, damage or {})


def _program(
    op: str, binding: str, source: str, symbol: str, elements: Mapping[str, str], damage: Mapping[str, Damage]
) -> Path:
    folder = ROOT / "csrc" / "ops" / op
    objects = [compile_object(HERE / "simulator.cpp"), compile_object(folder / binding)]
    objects.append(compile_object(HERE / "launch.cpp", [f"SYMBOL={symbol}"]))
    for dtype, element in elements.items():
        objects.append(compile_object(folder / source, [f"MNV3_ELEMENT={element}"], damage.get(dtype)))
    return link(objects)


HALVES = {"fp16": "__half", "bf16": "__nv_bfloat16"}
ELEMENTS = {"fp32": "float", **HALVES}


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _make(to: Path, command: Sequence[str], text: str) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        made = Path(folder) / to.name
        done = subprocess.run([*command, "-o", str(made)], input=text, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{to.name} does not compile:\n{done.stderr}")
        made.replace(to)  # another process that compiles the same ends with the same file
