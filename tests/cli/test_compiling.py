"""The bar that shows how far the compilation of kernels for a GPU is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mnv3_fast.cli import common
from mnv3_fast.testing.gpu_bench import engines


def test_frozen_is_told_and_stdout_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the engines that `bench --device cuda` builds, the frozen one is given the bar; the others are as they were."""
    told: list[Any] = []
    monkeypatch.setattr(engines, "freeze", lambda model, progress: told.append(progress) or model)
    with common.compiling() as progress:
        found = engines.telling(engines.ENGINES, progress)
        assert [one.key for one in found] == [one.key for one in engines.ENGINES]
        (frozen,) = [one for one in found if one not in engines.ENGINES]
        assert frozen.key == "frozen"
        frozen.build(torch.nn.Identity(), torch.zeros(1), torch.float16)
        assert told == [progress]
        for done in (1, 2):
            progress(done, 2)
    assert capsys.readouterr().out == ""
