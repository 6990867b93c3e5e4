"""Each op has what its README's table of files lists, in the places that its name gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnv3_fast.testing.cases import OPS

ROOT = Path(__file__).parent.parent
PLACES = {
    "reference": "mnv3_fast/ops/{op}/reference.py",
    "op": "mnv3_fast/ops/{op}/op.py",
    "cpu": "csrc/ops/{op}/cpu.cpp",
    "binding": "csrc/ops/{op}/binding.cpp",
    "test": "tests/ops/test_{op}.py",
    "benchmark": "benchmarks/ops/bench_{op}.py",
}
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the source tree")


@pytest.mark.parametrize("op", OPS)
def test_the_table_of_files_is_true(op: str) -> None:
    readme = (ROOT / "mnv3_fast" / "ops" / op / "README.md").read_text()
    lines = [line.strip().strip("|").split("|") for line in readme.splitlines() if line.startswith("| ")]
    listed = {cells[0].strip(): cells[1].strip().strip("`") for cells in lines if len(cells) == 2}
    for name, place in PLACES.items():
        if op in ("inverted_residual", "network") and name == "binding":
            place = "csrc/engine/binding.cpp"  # the op is registered in Python and runs a plan
        if op == "network" and name == "cpu":
            place = "csrc/engine/executor.cpp"
        assert listed.get(name) == place.format(op=op), name
    for name, place in listed.items():
        if "/" in place:
            assert (ROOT / place).exists(), f"{name}: {place}"


@pytest.mark.parametrize("op", OPS)
def test_every_op_folder_has_the_same_files(op: str) -> None:
    names = {path.name for path in (ROOT / "mnv3_fast" / "ops" / op).iterdir() if path.is_file()}
    assert {"__init__.py", "reference.py", "op.py", "README.md"} <= names


def test_no_folder_without_an_op() -> None:
    for parent in ("mnv3_fast/ops", "csrc/ops"):
        folders = {path.name for path in (ROOT / parent).iterdir() if path.is_dir() and not path.name.startswith("__")}
        assert folders == set(OPS) - ({"network"} if parent == "csrc/ops" else set()), parent
