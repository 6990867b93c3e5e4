"""The regression guard: noise passes, a slower tree does not."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

check = pytest.importorskip("benchmarks.check", reason="needs the source tree")


@pytest.mark.parametrize(
    ("slower_by", "passes"), [(0.97, True), (1.0, True), (1.04, True), (1.08, False), (1.5, False)]
)
def test_a_slower_tree_is_found_in_the_noise(slower_by: float, passes: bool) -> None:
    for seed in range(50):
        noise = random.Random(seed)
        ratios = [slower_by * noise.gauss(1, 0.02) for _ in range(20)]
        median, lower, fine = check.verdict(ratios)
        assert fine is passes
        assert lower <= median
        assert median == pytest.approx(slower_by, abs=0.03)


def test_few_rounds_in_much_noise_prove_nothing() -> None:
    assert check.verdict([0.8, 1.0, 1.1, 1.4])[2]


@pytest.mark.slow
def test_an_unknown_commit_is_named() -> None:
    command = [sys.executable, "-m", "benchmarks.check", "no-such-commit"]
    done = subprocess.run(command, cwd=Path(check.__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "bench-check: 'no-such-commit' is no commit of this repository" in done.stderr
