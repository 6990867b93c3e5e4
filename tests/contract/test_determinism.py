"""Row "determinism" (promise 3), the same result every time: from run to run, for any number of threads, at any position in a batch."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.testing import cases, compare
from tests.models.common import WAYS, cached_parity_model

BATCH = 5
ORDERS = ([4, 2, 0, 1, 3], [3, 3, 3], [1])

OP_CASES = [
    cases.Case("stem_conv", "net", cases.stem(BATCH, 3, 65, 43, 16, activation="hardswish"), "contiguous"),
    cases.Case("pointwise_conv", "deep", cases.pointwise(BATCH, 672, 14, 13, 112, gated=True, residual=True)),
    cases.Case("pointwise_conv", "wide", cases.pointwise(BATCH, 16, 41, 39, 72, activation="relu"), "contiguous"),
    cases.Case("depthwise_conv", "stride1", cases.depthwise(BATCH, 40, 29, 31, 5, activation="hardswish")),
    cases.Case("depthwise_conv", "mean", cases.depthwise(BATCH, 72, 57, 43, 5, stride=2, return_mean=True), "sliced"),
    cases.Case("squeeze_excite_gate", "net", cases.gate(BATCH, 480, 120)),
    cases.Case("squeeze_excite", "net", cases.squeeze_excite(BATCH, 72, 28, 27, 24), "contiguous"),
    cases.Case("inverted_residual", "residual", cases.block(BATCH, 40, 28, 29, 120, 40, 5, 32, residual=True)),
    cases.Case("inverted_residual", "stride2", cases.block(BATCH, 24, 57, 55, 72, 40, 5, 24, stride=2)),
    cases.Case("inverted_residual", "no_expand", cases.block(BATCH, 16, 61, 59, 0, 16, 3), "contiguous"),
]


def of_images(value: Any, order: list[int], first: bool = True) -> Any:
    """Arguments of an op for these images of the batch; ``first`` is the input."""
    if isinstance(value, Tensor) and (first or value.dim() in (2, 4)) and value.shape[0] == BATCH:
        return value[order]
    return value


def of_first_rows(args: tuple, op: str) -> tuple:
    """The same call at another size: the upper half of each map."""
    if op == "squeeze_excite_gate":
        return of_images(args[0], [0, 1]), *args[1:]
    size = args[0].shape[2:]
    return tuple(
        arg[:, :, : size[0] // 2] if isinstance(arg, Tensor) and arg.shape[2:] == size else arg for arg in args
    )


@torch.no_grad()
@pytest.mark.parametrize("case", OP_CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_ops_are_bitwise_equal(case: cases.Case, instruction_set: str) -> None:
    op, _ = compare.functions_of(case)
    args = compare.prepared(case)
    other = of_first_rows(args, case.op)
    torch.set_num_threads(1)
    expected = compare.as_list(op(*args))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for order in (list(range(BATCH)), *ORDERS):
            op(*other)
            outputs = compare.as_list(op(*(of_images(arg, order, i == 0) for i, arg in enumerate(args))))
            for ours, whole in zip(outputs, expected, strict=True):
                assert torch.equal(ours, whole[order])


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", ["large", "small"])
def test_networks_are_bitwise_equal(net: str, way: str, instruction_set: str) -> None:
    model = WAYS[way](cached_parity_model(net))
    if way == "accelerated":
        model = model.features  # the classifier behind them is torch's
    x = testing.parity_images(BATCH, 97, 131, seed=1)
    torch.set_num_threads(1)
    expected = model(x)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(model(x), expected)
        model(testing.parity_images(2, 64, seed=2))  # another shape in between, in the same arena
        for order in ORDERS:
            assert torch.equal(model(x[order]), expected[order])


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(224, 224), (1, 1), (33, 257)], ids=str)
def test_other_sizes_too(size: tuple[int, int], way: str) -> None:
    """Where strips are many, where there is one pixel, and where maps are wide and low."""
    model = WAYS[way](cached_parity_model("large").features)
    x = testing.parity_images(2, *size, seed=4)
    torch.set_num_threads(1)
    expected = model(x)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(model(x), expected)
        assert torch.equal(model(x[1:]), expected[1:])


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
            testing.assert_net_equal(alone[0], whole[i])


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


@torch.no_grad()
def test_torchs_deterministic_mode() -> None:
    model = cached_parity_model("small")
    x = testing.parity_images(2, 64)
    for way in WAYS.values():
        run = way(model)
        expected = run(x)
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.equal(run(x), expected)
        finally:
            torch.use_deterministic_algorithms(False)


@torch.no_grad()
@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("size", [32, 80, 224])
def test_images_in_groups(net: str, size: int, instruction_set: str) -> None:
    """Late layers run over several images at a time: more of them the smaller the maps, whole groups and rests."""
    engine = mnv3_fast.freeze(cached_parity_model(net))
    x = testing.parity_images(7, size, seed=3)
    torch.set_num_threads(1)
    single = [engine(x[i : i + 1]) for i in range(7)]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in (2, 3, 4, 7):
            assert torch.equal(engine(x[:count]), torch.cat(single[:count]))
