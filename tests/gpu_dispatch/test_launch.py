"""Launches as values: what a GPU cannot start, and who sees them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch

from mnv3_fast.gpu import launch
from mnv3_fast.gpu.dispatch import RUN
from mnv3_fast.gpu.launch import Launch


class Kernel:
    """Stands for a kernel of Triton's."""

    __name__ = "nothing_kernel"

    def __getitem__(self, grid: Any) -> Any:
        raise RuntimeError("started")


def made(grid: tuple[int, int, int] = (1, 1, 1)) -> Launch:
    return Launch(Kernel(), grid, {"x": torch.zeros(1)}, {})


@pytest.mark.parametrize("grid", [(2**31, 1, 1), (1, 65536, 1), (1, 1, 65536)])
def test_more_programs_than_a_gpu_starts(grid: tuple[int, int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"^nothing: the input is too large, it takes \(.*\) programs and a GPU starts"
    ):
        made(grid)
    made((2**31 - 1, 65535, 65535))


def test_more_channels_than_a_gpu_starts_programs_for() -> None:
    pytest.importorskip("triton")
    channels = 65535 * 64 + 1
    args = torch.zeros(1, channels, 1, 1), torch.zeros(1, channels), None, torch.zeros(channels, 1), None, 1, 0, 1 / 6
    started = []
    with (
        launch.observe(lambda each: not started.append(each)),
        pytest.raises(ValueError, match="^channel_sums: the in"),
    ):
        RUN["squeeze_excite"](*args)
    assert not started


def test_observers_of_two_threads() -> None:
    """Their blocks overlap: each takes its own away, and none stays."""
    seen: list[str] = []
    first, second = ExitStack(), ExitStack()
    first.enter_context(launch.observe(lambda each: not seen.append("first")))
    second.enter_context(launch.observe(lambda each: not seen.append("second")))
    first.close()
    launch.run([made()])
    second.close()
    assert seen == ["second"]
    with pytest.raises(RuntimeError, match="^started$"):
        launch.run([made()])


def test_an_error_takes_the_observer_away() -> None:
    with pytest.raises(KeyboardInterrupt), launch.observe(lambda each: True):
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="^started$"):
        launch.run([made()])
