"""The choice by counting: times of launches by hand, which variant wins, and the tables of layers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("benchmarks.gpu", reason="needs the source tree")
pytest.importorskip("triton")

from benchmarks.gpu import layers, model
from benchmarks.gpu.gpus import GPUS
from mnv3_fast.gpu import choice, counts
from mnv3_fast.gpu.candidates import candidate
from mnv3_fast.gpu.choice import Question
from mnv3_fast.gpu.counts import LAUNCH, Properties, better, cost, times
from mnv3_fast.gpu.launch import CudaLaunch
from mnv3_fast.gpu.traffic import traffic
from mnv3_fast.testing.gpu_bench.levels import layers_of, stages_of

SLOW = Properties(80, 10, 1e9, 1e9, 0, 1e12)
"""Ten multiprocessors at 1 GHz, 1 GB/s, no L2, 100 operations of tensor cores a multiprocessor and nanosecond."""


def depthwise(size: int = 5, stride: int = 1, n: int = 2, side: int = 14, channels: int = 64, **more: Any) -> Question:
    """A layer with sums."""
    pad = size // 2
    window = (stride, stride, pad, pad, pad, pad, 1, 1)
    return Question(
        "depthwise_conv", more.pop("dtype", torch.float16), (n, channels, side, side), (size, size), window, 2, True
    )


def test_the_times_of_a_launch_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 channels of two maps of 28 x 28, stride 2: blocks of 8 words by 14 of 28 tiles of 1 x 7, two an image."""
    launch = candidate(depthwise(5, 2, 2, 28), SLOW, "cuda")[0]
    assert isinstance(launch, CudaLaunch)
    assert (launch.grid, launch.threads) == ((2, 1, 2), 112)
    monkeypatch.setattr(counts, "executed", lambda launch, architecture: (1000, 600))
    map_, weight, bias = 2 * 64 * 28 * 28 * 2, 25 * 64 * 2, 64 * 4
    rest = weight + bias + map_ / 4 + 2 * 2 * 64 * 4  # output and sums
    found = times(launch, SLOW)
    assert found["memory"] == pytest.approx((map_ + rest) * 1e-9)
    # Half of L2 holds the map that the launch before wrote; with a byte less it does not.
    assert times(launch, replace(SLOW, cache=2 * map_))["memory"] == pytest.approx(rest * 1e-9)
    assert times(launch, replace(SLOW, cache=2 * map_ - 1))["memory"] == found["memory"]
    # Four blocks on ten multiprocessors: one each. 64 lanes take half a cycle more for each fp32 instruction.
    assert found["issue"] == pytest.approx(4 * 600 / 2 * 1e-9)
    assert times(launch, replace(SLOW, architecture=90))["issue"] == pytest.approx(4 * 1000 / 4 * 1e-9)
    assert times(launch, replace(SLOW, multiprocessors=3))["issue"] == 2 * found["issue"]
    assert found["L2"] == pytest.approx((map_ / 4 + weight + bias) / 64 * 1e-9)
    assert (found["tensor"], found["launch"]) == (0, LAUNCH)


def test_properties_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    a100 = {
        "major": 8, "minor": 0, "multi_processor_count": 108, "clock_rate": 1410000, "memory_clock_rate": 1593000,
        "memory_bus_width": 5120, "L2_cache_size": 40 << 20,
    }  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**a100))
    found = counts.properties(torch.device("cuda", 0))
    assert (found.architecture, found.multiprocessors, found.clock, found.cache) == (80, 108, 1.41e9, 40 << 20)
    assert found.bandwidth == pytest.approx(2039e9, rel=1e-3)
    untold = {**a100, "clock_rate": 0, "memory_clock_rate": 0}
    few = {name: a100[name] for name in ("major", "minor", "multi_processor_count")}  # of an older torch
    for less in (untold, few):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, less=less: SimpleNamespace(**less))
        found = counts.properties(torch.device("cuda", 0))
        assert (found.clock, found.bandwidth) == (counts.CLOCK, counts.BANDWIDTH)


def test_products_are_those_of_the_fullest_multiprocessor() -> None:
    """The last layer of large for 128 images: 2 x 16 tiles of 64 x 64, 1280 inputs."""
    launch = model.passes("large", 128)[-1]
    assert launch.grid == (32, 1, 1)
    each = 2 * 64 * 64 * 1280
    assert times(launch, SLOW)["tensor"] == pytest.approx(4 * each / 100 * 1e-9)
    assert times(launch, replace(SLOW, multiprocessors=40, tensor=0.0))["tensor"] == pytest.approx(each / 2048 * 1e-9)
    assert counts._tensor(87) == counts._tensor(86) == 512  # an architecture between two


def test_requested_bytes_of_the_cuda_depthwise_kernel_by_hand() -> None:
    """24 channels, 3 words, of one map of 9 x 9 with 3x3 at stride 1: tiles of 2 x 7, 5 down and 2 across, in one block."""
    launch = candidate(depthwise(3, 1, 1, 9, 24), SLOW, "cuda")[0]
    assert (launch.grid, launch.threads) == ((1, 1, 1), 30)
    moved = traffic(launch)
    rows = 3 + 4 + 4 + 4 + 2  # of the map, of the four that each row of tiles reads, from -1, 1, 3, 5 and 7 on
    columns = 8 + 3  # nine from -1 on, and from 6 on
    assert moved.requested == {"input": 24 * rows * columns * 2, "weight": 24 * 9 * 2, "bias": 30 * 8 * 4}
    assert moved.unique == {"input": 24 * 81 * 2, "weight": 24 * 9 * 2, "bias": 24 * 4}
    assert moved.written == {"output": 24 * 81 * 2, "sums": 24 * 4}
    assert moved.brought == moved.unique
    # 64 channels of 28 x 28, 5x5 at stride 2: 28 tiles of 1 x 7 by 8 words, in two blocks of 14.
    launch = candidate(depthwise(5, 2, 1, 28), SLOW, "cuda")[0]
    assert (launch.grid, launch.threads) == ((2, 1, 1), 112)
    rows, columns = 14 * 5 - 2 - 1, 2 * 17 - 2 - 1  # two above, one below the map; likewise beside it
    assert traffic(launch).requested == {
        "input": 64 * rows * columns * 2, "weight": 2 * 64 * 25 * 2, "bias": 2 * 112 * 8 * 4
    }  # fmt: skip
    assert traffic(launch).brought == {"input": 64 * 28 * 28 * 2, "weight": 2 * 64 * 25 * 2, "bias": 2 * 64 * 4}


def test_threads_without_a_tile_ask_for_biases_as_well() -> None:
    """264 channels are 33 words, two blocks of 17: a thread of the second has none. 7 of 14 tiles a block."""
    launch = candidate(depthwise(5, 1, 1, 14, 264), SLOW, "cuda")[0]
    assert (launch.grid, launch.threads) == ((2, 2, 1), 17 * 7)
    assert traffic(launch).requested["bias"] == 4 * 17 * 7 * 8 * 4
    assert traffic(launch).requested["weight"] == 2 * 264 * 25 * 2  # taps are read once a block


def test_fewer_instructions_win_where_the_times_are_those_of_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of the CUDA kernel, of four warps, and one of Triton's, of eight, which issue in twice the time."""
    gpu, question = GPUS[0].properties, depthwise(n=1)
    for fewer, each in (("cuda", {"cuda": 500, "triton": 300}), ("triton", {"cuda": 500, "triton": 200})):
        cost.cache_clear()
        kind = lambda launch: "cuda" if isinstance(launch, CudaLaunch) else "triton"  # noqa: E731
        monkeypatch.setattr(counts, "executed", lambda launch, _, each=each: (each[kind(launch)], 0))
        assert cost(question, gpu, "cuda") == (LAUNCH, pytest.approx(500 / gpu.clock))
        assert cost(question, gpu, "triton") == (LAUNCH, pytest.approx(2 * each["triton"] / gpu.clock))
        assert better(question, gpu) == fewer
    cost.cache_clear()


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_the_library_chooses_as_the_tables_do(gpu: Any) -> None:
    """What a pass of the model takes is what is asked for one layer, and the sooner done of both."""
    asked: list[tuple[Question, str]] = []
    original = counts.better

    def recorded(question: Question, properties: Properties) -> str:
        asked.append((question, original(question, properties)))
        return asked[-1][1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(counts, "better", recorded)
        launches = model.passes.__wrapped__("small", 1, gpu)
    assert {question.op for question, _ in asked} <= set(choice.OPS)
    for question, answer in asked:
        costs = {variant: cost(question, gpu.properties, variant) for variant in choice.VARIANTS}
        assert costs[answer] == min(costs.values())
    names = [launch.kernel.__name__ for launch in launches]
    assert any("cuda" in name for name in names) == any(answer == "cuda" for _, answer in asked)


def test_rows_pair_launches_with_the_layers_they_compute() -> None:
    found = layers_of(stages_of("small"), (1, 3, 224, 224))
    launches = model.passes("small", 1)
    assert [row.layers for row in layers.rows(found, launches)] == [layer.name for layer in found]
    with pytest.raises(ValueError, match="1 of 46 layers have no launch, linear1 first"):
        layers.rows(found, launches[:-1])
    with pytest.raises(ValueError, match="pointwise_conv has no layer left of 45"):
        layers.rows(found[:-1], launches)


def test_a_table_of_layers_adds_up() -> None:
    lines = layers.table("small", 1).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    rows = [line.split("|")[1:-1] for line in lines[2:]]
    totals = {row[0].strip(): row for row in rows[-4:]}
    for i, gpu in enumerate(GPUS):
        times_ = [row[6 + i].split()[0] for row in rows[:-4]]
        taken = [float(time) for time in times_ if time != "-"]
        assert len(taken) == int(totals["launches"][6 + i]) == len(model.passes("small", 1, gpu))
        assert sum(taken) == pytest.approx(float(totals["all, us"][6 + i]), abs=0.05 * len(taken))
