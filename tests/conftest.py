"""Fixed seeds, one thread unless a test says otherwise, and the instruction sets of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from mnv3_fast import _library

# All of this machine's, or the one that MNV3_FAST_ISA asks for.
FORCED = os.environ.get("MNV3_FAST_ISA")
INSTRUCTION_SETS = (FORCED,) if FORCED else _library.instruction_sets() or ("reference",)


@pytest.fixture(autouse=True)
def _fixed_state() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn."""
    if request.param == "reference":
        yield request.param
        return
    with _library.force_instruction_set(request.param):
        yield request.param
