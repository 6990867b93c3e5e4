"""Runs the Triton kernels in Triton's interpreter, which has to be chosen before Triton is imported.

So these tests need a process of their own, and are skipped in any other:
``TRITON_INTERPRET=1 pytest tests/gpu/interpreted``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
REASON = "needs a process of its own: TRITON_INTERPRET=1 pytest tests/gpu/interpreted"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips this folder, and nothing else, where Triton compiles."""
    if INTERPRETED:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=REASON))
