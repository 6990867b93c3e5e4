"""mnv3_fast: the frozen engine and the accelerated model, called with an ordinary tensor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rivals import cases
from benchmarks.rivals.engine import Engine, Run


def _run(convert: Callable[[Any], Any], folder: Path, threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    model, x = convert(cases.network(folder)), cases.image_tensor(folder)

    def run() -> Any:
        with torch.inference_mode():
            return model(x)

    return run


def load_frozen(folder: Path, threads: int) -> Run:
    """``mnv3_fast.freeze``."""
    import mnv3_fast

    return _run(mnv3_fast.freeze, folder, threads)


def load_accelerated(folder: Path, threads: int) -> Run:
    """``mnv3_fast.accelerate``."""
    import mnv3_fast

    return _run(mnv3_fast.accelerate, folder, threads)


def load_tree(folder: Path, threads: int) -> Run:
    """``mnv3_fast.freeze`` of the source tree that the environment names."""
    tree = Path(os.environ[TREE_VARIABLE])
    sys.path.insert(0, str(tree))
    import mnv3_fast

    assert Path(mnv3_fast.__file__).is_relative_to(tree), mnv3_fast.__file__
    return _run(mnv3_fast.freeze, folder, threads)


TREE_VARIABLE = "BENCHMARK_TREE"
TREE = Engine("tree", "mnv3_fast of a source tree", load_tree, packages=("torch",), ours=True)
"""For benchmarks.check; no row of the tables."""
# MNV3_FAST_ISA, which asks for the limit, is inherited.
_LIMITS = {"avx2": {}, "baseline": {}}
ENGINES = tuple(
    Engine(key, name, load, packages=("torch", "torchvision"), ours=True, limits=_LIMITS)
    for key, name, load in (
        ("frozen", "mnv3_fast frozen", load_frozen),
        ("accelerated", "mnv3_fast accelerated", load_accelerated),
    )
)
