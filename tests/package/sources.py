"""Where the sources lie, for tests that read or build them; an installed wheel comes without."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

needs_sources = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="the sources are not beside the tests")


def load_setup() -> ModuleType:
    """setup.py as a module; it builds nothing when imported."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("mnv3_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler() -> str:
    """The C++ compiler of this machine, or skip."""
    found = load_setup().find_compiler(os.environ)
    if not found:
        pytest.skip("no C++ compiler")
    return found


def shim_functions() -> set[str]:
    """Names of the functions that csrc/torch_shim.h declares."""
    return set(re.findall(r"\b(\w*torch_\w+)\(", (ROOT / "csrc/torch_shim.h").read_text()))


def run_python(*args: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a new process that imports mnv3_fast from ``path``, with these environment variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MNV3_FAST_")}
    return subprocess.run(
        [sys.executable, *args],
        env={**kept, "PYTHONPATH": str(path), **environment},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )
