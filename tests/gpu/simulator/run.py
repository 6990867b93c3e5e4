"""One launch of a CUDA kernel in the simulator, and what was found while it ran."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mnv3_fast.gpu.launch import CudaLaunch

UNKNOWN = -1
"""The status of arguments that there is no kernel for."""


@dataclass
class Outcome:
    """What a launch gave; ``faults`` is empty if all is well."""

    status: int = 0
    faults: list[str] = field(default_factory=list)


def run(
    program: Path,
    launch: CudaLaunch,
    written: Sequence[str],
    wrong: Mapping[str, int] | None = None,
    changed: Sequence[str] = (),
) -> Outcome:
    """Run a launch of CPU tensors in both orders of threads, with AddressSanitizer around memory of exactly their size.

    Args:
        program: of the launch's kernel (``build.program``).
        launch: of dense tensors, in memory that starts as far behind a multiple of 16 bytes as theirs.
        written: the arguments that the kernel writes, all of them whole; they receive the results.
        wrong: numbers that the kernel is told in place of the launch's, by field: a planted fault.
        changed: the arguments that the kernel reads or leaves as they are where it does not write them; they are given
            as they are and receive the results.
    """
    filled = launch.kernel.filled(launch)
    for name, value in (wrong or {}).items():
        setattr(filled, name, value)
    tensors = {name: value for name, value in launch.arguments.items() if isinstance(value, Tensor)}
    kinds = dict.fromkeys(written, 1) | dict.fromkeys(changed, 2)
    words = [struct.pack("<2q", len(bytes(filled)), len(tensors)), bytes(filled)]
    for name, tensor in tensors.items():
        place = getattr(launch.kernel.structure, name).offset
        words.append(struct.pack("<4q", place, tensor.nbytes, tensor.data_ptr() % 16, kinds.get(name, 0)))
    given = b"".join([*words, *[_memory(tensor).numpy().tobytes() for tensor in tensors.values()]])
    done = subprocess.run([program], input=given, capture_output=True)
    if done.returncode:
        return Outcome(faults=[_reason(done.stderr.decode(errors="replace"), done.returncode)])
    status, differ = struct.unpack_from("<2q", done.stdout)
    outcome = Outcome(status)
    if differ and status == 0:
        outcome.faults.append(f"race: {differ} bytes differ where threads ran in another order, or were not written")
    place = 16
    for name, tensor in tensors.items():
        if name in kinds and tensor.nbytes:
            taken = torch.frombuffer(bytearray(done.stdout[place : place + tensor.nbytes]), dtype=torch.uint8)
            _memory(tensor).copy_(taken)
            place += tensor.nbytes
    return outcome


def _memory(tensor: Tensor) -> Tensor:
    """The bytes of a dense tensor, in their order."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _reason(errors: str, code: int) -> str:
    """What AddressSanitizer or the simulator wrote, in a line."""
    if found := re.search(r"AddressSanitizer: (\S+).*?(READ|WRITE) of size (\d+)", errors, re.DOTALL):
        kind, access, size = found.groups()
        return f"access out of bounds: {kind}, {access.lower()} of {size} bytes"
    lines = [line for line in errors.splitlines() if "simulator:" in line or "runtime error" in line]
    return lines[0] if lines else f"status {code}: {errors[-300:]}"
