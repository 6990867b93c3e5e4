"""Every op says which instruction set its code was compiled for, and it is the one that was asked for."""

from __future__ import annotations

import os

import pytest
import torch

from mnv3_fast import _library
from mnv3_fast.testing.cases import OPS, op_cases
from mnv3_fast.testing.compare import op_module, prepared, take_variant

pytestmark = pytest.mark.skipif(not _library.EXTENSION, reason="needs compiled kernels")


def variants() -> dict[str, str | None]:
    """The instruction set of the code that each op runs now."""
    ran = {}
    with torch.no_grad():
        for op in OPS:
            take_variant(op)
            op_module(op).OP(*prepared(op_cases(op, "quick")[0]))
            ran[op] = take_variant(op)
    return ran


def test_what_the_process_chose_is_what_runs() -> None:
    """``make test-isa`` runs this under each MNV3_FAST_ISA."""
    chosen = os.environ.get("MNV3_FAST_ISA") or _library.instruction_sets()[-1]
    assert _library.instruction_set() == chosen
    assert variants() == dict.fromkeys(OPS, chosen)


@pytest.mark.parametrize("name", _library.instruction_sets())
def test_what_is_forced_is_what_runs(name: str) -> None:
    with _library.force_instruction_set(name):
        assert variants() == dict.fromkeys(OPS, name)
