"""The check is driven by stand-ins for kernels here, with or without Triton."""

from __future__ import annotations

import pytest

from mnv3_fast.gpu import first_use


@pytest.fixture(autouse=True)
def _with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "triton_version", lambda: ("0.0", None))
