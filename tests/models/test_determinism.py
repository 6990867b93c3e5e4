"""The same result every time: from run to run, for any number of threads, at any position in a batch."""

from __future__ import annotations

import threading

import pytest
import torch

from mnv3_fast import testing
from tests.models.common import WAYS, cached_parity_model


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", ["large", "small"])
def test_bitwise_equal(net: str, way: str, instruction_set: str) -> None:
    model = WAYS[way](cached_parity_model(net))
    if way == "accelerated":
        model = model.features  # the classifier behind them is torch's
    x = testing.parity_images(5, 97, 131, seed=1)
    torch.set_num_threads(1)
    expected = model(x)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(model(x), expected)
        model(testing.parity_images(2, 64, seed=2))  # another shape in between, in the same arena
        for order in ([4, 2, 0, 1, 3], [3, 3, 3]):
            assert torch.equal(model(x[order]), expected[order])


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_one_image_alone(way: str) -> None:
    """The classifier of a frozen network too gives a row whatever rows stand beside it."""
    model = WAYS[way](cached_parity_model("small"))
    x = testing.parity_images(4, 64, seed=3)
    whole = model(x)
    for i in range(4):
        alone = model(x[i : i + 1])
        if way == "frozen":
            assert torch.equal(alone[0], whole[i])
        else:  # the classifier of an accelerated model is torch's, which takes another path for one row
            assert testing.relative_error(alone[0], whole[i]) <= testing.NET_LIMIT


@torch.no_grad()
def test_python_threads() -> None:
    engines = [WAYS["frozen"](cached_parity_model(net)) for net in ("large", "small")]
    inputs = [testing.parity_images(n, size, seed=n) for n, size in ((1, 96), (3, 64), (2, 65))]
    expected = [[engine(x) for x in inputs] for engine in engines]
    failures: list[tuple[int, int]] = []

    def work(offset: int) -> None:
        torch.set_num_threads(1 + offset % 2)
        for step in range(12):
            e, i = (offset + step) % 2, (offset * 5 + step) % 3
            if not torch.equal(engines[e](inputs[i]), expected[e][i]):
                failures.append((e, i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
