"""The environment chooses the code that runs, and an impossible value says what exists."""

from __future__ import annotations

import json
import os

import pytest
import torch

from mnv3_fast import _library
from mnv3_fast.testing.cases import op_cases
from mnv3_fast.testing.compare import op_module, prepared
from tests.package.sources import ROOT, run_python

OPS = (
    "fold_batch_norm",
    "stem_conv",
    "pointwise_conv",
    "depthwise_conv",
    "squeeze_excite_gate",
    "squeeze_excite",
    "inverted_residual",
)
needs_kernels = pytest.mark.skipif(not _library.EXTENSION, reason="no compiled kernels")


def variants() -> dict[str, str | None]:
    """The instruction set of the code that each op runs now."""
    ran = {}
    with torch.no_grad():
        for op in OPS:
            _library.take_variant(op)
            op_module(op).OP(*prepared(op_cases(op, "quick")[0]))
            ran[op] = _library.take_variant(op)
    return ran


@needs_kernels
def test_what_is_chosen_is_what_runs() -> None:
    """In this process, so also under the MNV3_FAST_ISA that the suite was started with."""
    chosen = os.environ.get("MNV3_FAST_ISA") or _library.instruction_sets()[-1]
    assert _library.instruction_set() == chosen
    assert variants() == dict.fromkeys(OPS, chosen)


@needs_kernels
@pytest.mark.parametrize("name", _library.instruction_sets())
def test_forcing_is_seen(name: str) -> None:
    before = _library.instruction_set()
    with _library.force_instruction_set(name):
        assert variants() == dict.fromkeys(OPS, name)
    assert _library.instruction_set() == before


@needs_kernels
def test_environment_is_read_at_import() -> None:
    script = "import json, mnv3_fast as m; print(json.dumps([m.instruction_set(), m.backend()]))"
    best = _library.instruction_sets()[-1]
    for isa, backend, expected in [
        ("baseline", "reference", ["baseline", "reference"]),
        ("", "", [best, "auto"]),
    ]:
        result = run_python("-c", script, path=ROOT, MNV3_FAST_ISA=isa, MNV3_FAST_BACKEND=backend)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == expected


@needs_kernels
def test_impossible_value_at_import() -> None:
    result = run_python("-c", "import mnv3_fast", path=ROOT, MNV3_FAST_ISA="avx1024")
    assert result.returncode != 0
    available = ", ".join(_library.instruction_sets())
    assert f"ValueError: MNV3_FAST_ISA: instruction set 'avx1024' is not available here, available: {available}" in (
        result.stderr
    )


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("MNV3_FAST_BACKEND", "MNV3_FAST_BACKEND: backend 'fast' does not exist, available: auto, reference"),
        ("MNV3_FAST_ISA", "MNV3_FAST_ISA: instruction set 'fast' is not available here, available: "),
    ],
)
def test_impossible_values(variable: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MNV3_FAST_BACKEND", "MNV3_FAST_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "fast")
    with pytest.raises(ValueError, match=message):
        _library._read_environment()


def test_impossible_names() -> None:
    with pytest.raises(ValueError, match="force_backend: backend 'cuda' does not exist, available: auto, reference"):
        _library.force_backend("cuda").__enter__()
    if _library.EXTENSION:
        with pytest.raises(ValueError, match=r"force_instruction_set: instruction set 'sse' .* available: baseline"):
            _library.force_instruction_set("sse").__enter__()
