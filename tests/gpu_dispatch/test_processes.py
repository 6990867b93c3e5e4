"""What needs a process of its own: Triton's interpreter, a driver that stands in for a GPU's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in the root of the tests."""
    variables = {**os.environ, **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.slow
def test_results_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu_dispatch/interpreted", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d{2,} passed in", done.stdout, re.MULTILINE), done.stdout  # and none was skipped


def test_the_driver_gets_the_launches_that_were_made(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = run("-m", "tests.gpu_dispatch.stub_driver", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["imported early"] == []  # no kernel before one is launched
    depthwise, pointwise = printed["ops"]
    assert [name for name, *_ in depthwise["driver"]] == ["depthwise_conv_kernel", "channel_sums_kernel"]
    assert [name for name, *_ in pointwise["driver"]] == ["pointwise_conv_kernel"]
    for found in (depthwise, pointwise):
        assert found["driver"] == found["made"]
        output, *mean = found["outputs"]
        assert output in found["driver"][0][2]
        assert all(address in found["driver"][1][2] for address in mean)
