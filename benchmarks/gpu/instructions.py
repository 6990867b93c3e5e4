"""``python -m benchmarks.gpu.instructions``: counts the instructions of all kernels of both networks, for the model.

Written to instructions.json beside this file, with a digest of the kernels' sources, so that the model computes in a
second and a test sees when the counts are of other kernels. Compiles for about three minutes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.gpus import GPUS
from benchmarks.gpu.sass import Code, compile_and_read, label
from mnv3_fast.gpu.launch import Launch
from mnv3_fast.gpu.network import Network
from mnv3_fast.testing.gpu_bench.levels import stages_of
from mnv3_fast.testing.gpu_bench.requested import launches_of

FILE = Path(__file__).parent / "instructions.json"
NETS, BATCHES, DTYPE = ("large", "small"), (1, 8, 32, 128, 256), torch.float16


def kernels() -> dict[str, Launch]:
    """One launch for each compilation that both networks need, by its label."""
    found: dict[str, Launch] = {}
    for net in NETS:
        network = Network(stages_of(net), DTYPE)
        for batch in BATCHES:
            for launch in launches_of(network, (batch, 3, 224, 224)):
                found.setdefault(label(launch), launch)
    return found


def digest() -> str:
    """Of the kernels' sources, without comments and layout."""
    functions: dict[str, Any] = {}
    for launch in kernels().values():
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


def load() -> dict[int, dict[str, Code]]:
    """The counts of the file, by architecture and label."""
    record = json.loads(FILE.read_text())
    return {
        int(architecture): {name: Code.from_json(code) for name, code in codes.items()}
        for architecture, codes in record["counts"].items()
    }


def main() -> None:
    """Count and write."""
    import triton

    counts = {}
    for architecture in sorted({gpu.architecture for gpu in GPUS}):
        counts[architecture] = {
            name: compile_and_read(launch, architecture).as_json() for name, launch in kernels().items()
        }
        sys.stderr.write(f"sm_{architecture}: {len(counts[architecture])} kernels\n")
    write({"triton": triton.__version__, "sources": digest(), "counts": counts})


def write(record: dict[str, Any]) -> None:
    """The file, a kernel a line."""
    sections = [
        f'"{architecture}": {{\n'
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(code)}" for name, code in codes.items())
        for architecture, codes in record["counts"].items()
    ]
    head = ", ".join(f"{json.dumps(name)}: {json.dumps(record[name])}" for name in ("triton", "sources"))
    FILE.write_text(f'{{{head}, "counts": {{\n' + "},\n".join(sections) + "}}}\n")


if __name__ == "__main__":
    main()
