"""What a pass moves: against counts by hand, the figures that this design was made from, and the emulator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("benchmarks.gpu", reason="needs the source tree")
pytest.importorskip("triton")

from benchmarks.gpu import roofline
from mnv3_fast.gpu.network import Network
from mnv3_fast.gpu.traffic import traffic
from mnv3_fast.testing.gpu_bench import levels
from mnv3_fast.testing.gpu_bench.levels import LEVELS, kernels, layers_of, stages_of
from mnv3_fast.testing.gpu_bench.requested import launches_of

MB_AN_IMAGE = {  # of maps in 16 bit at batch 128, computed before there was a kernel
    "large": {"a": 57.0, "b": 24.1, "c": 18.8, "d": 3.68},
    "small": {"a": 18.75, "b": 8.02, "c": 6.10, "d": 1.83},
}
KINDS = {
    "stem": "stem_conv_kernel", "depthwise": "depthwise_conv_kernel", "gate": "squeeze_excite_gate_kernel",
    "pool": "channel_sums_kernel",
}  # fmt: skip


@pytest.mark.parametrize("net", ["large", "small"])
def test_levels_are_those_that_the_design_was_made_from(net: str) -> None:
    all_ = roofline.lines(net, 128, torch.float16)[-1]
    for level, megabytes in MB_AN_IMAGE[net].items():
        assert all_.levels[level] / 128e6 == pytest.approx(megabytes, rel=0.01), level
    # What our launches move, with sums by tile and work space, is within 10% of level c.
    assert all_.unique / 128e6 == pytest.approx(MB_AN_IMAGE[net]["c"], rel=0.1)
    assert all_.requested <= 3 * all_.unique
    assert all_.launches <= {"large": 62, "small": 48}[net]
    macs = {"large": 216.6e6, "small": 56.5e6}[net]
    assert all_.macs / 128 == pytest.approx(macs, rel=1e-3)


def test_a_block_by_hand() -> None:
    """Large's fifth block (b4) at batch 2 in fp16: 40 channels at 28 x 28, 120 hidden, 5x5, 32 squeezed, residual."""
    n, pixels, fp16, fp32 = 2, 28 * 28, 2, 4
    layers = {layer.name: layer for layer in layers_of(stages_of("large"), (n, 3, 224, 224))}
    hidden, outer = n * 120 * pixels * fp16, n * 40 * pixels * fp16
    bytes_ = {
        (name, level): sum(kernel.bytes for kernel in kernels(layers[f"b4.{name}"], level, fp16))
        for name in ("expand", "depthwise", "gate", "project")
        for level in LEVELS
    }
    expand, depthwise, project = 40 * 120 * fp16, 120 * 25 * fp16, 120 * 40 * fp16
    vectors = 120 * fp32
    assert bytes_["expand", "c"] == outer + expand + vectors + hidden
    assert bytes_["depthwise", "c"] == hidden + depthwise + vectors + hidden + n * 120 * fp32
    squeeze = 2 * 120 * 32 * fp16 + (120 + 32) * fp32
    assert bytes_["gate", "c"] == 2 * n * 120 * fp32 + squeeze
    assert bytes_["project", "c"] == hidden + project + 40 * fp32 + n * 120 * fp32 + outer + outer
    # b: pool and scale read the hidden map once each and write it once, the addition moves three maps.
    small = n * (120 + 120 + 32 + 32 + 120 + 120) * fp16
    assert bytes_["gate", "b"] == 3 * hidden + small + squeeze
    assert bytes_["project", "b"] == hidden + project + 40 * fp32 + outer + 3 * outer
    # a: BatchNorm and the activation read and write the map once more each; no bias, but BatchNorm's four vectors.
    assert bytes_["expand", "a"] == outer + expand + hidden + 2 * hidden + 4 * vectors + 2 * hidden
    assert bytes_["project", "a"] == hidden + project + outer + 2 * outer + 4 * 40 * fp32 + 3 * outer
    # d: the block's input and output and all its weights.
    weights = expand + depthwise + project + 2 * 120 * 32 * fp16
    assert [bytes_[name, "d"] for name in ("expand", "depthwise", "gate")] == [0, 0, 0]
    assert bytes_["project", "d"] == outer + weights + outer
    assert layers["b4.depthwise"].macs == n * 120 * pixels * 25


def test_launches_are_layers_in_order() -> None:
    for net in ("large", "small"):
        stages, shape = stages_of(net), (2, 3, 224, 224)
        layers, launches = layers_of(stages, shape), launches_of(Network(stages, torch.float16), shape)
        names = [launch.kernel.__name__ for launch in launches]
        assert names == [KINDS.get(layer.kind, "pointwise_conv_kernel") for layer in layers]


def test_unique_bytes_of_our_launches_are_those_of_their_tensors() -> None:
    stages, shape = stages_of("large"), (3, 3, 224, 224)
    launches = launches_of(Network(stages, torch.bfloat16), shape)
    layers = layers_of(stages, shape)
    extra = 0
    for layer, launch in zip(layers, launches, strict=True):
        ideal = sum(kernel.bytes for kernel in kernels(layer, "c", 2))
        moved = traffic(launch)
        sums = moved.written.get("sums", 0) if layer.kind == "depthwise" else moved.unique.get("sums", 0)
        work = sum(moved.unique.get(name, 0) + moved.written.get(name, 0) for name in ("means", "hidden"))
        means = 4 * (layer.sums if layer.kind == "depthwise" else layer.input if layer.kind == "gate" else 0)
        if layer.kind == "pool":
            sums = means = moved.written["sums"]
        assert moved.unique_bytes - ideal == sums - means + work, layer.name
        extra += sums - means + work
    assert extra > 0


def test_requested_bytes_of_a_layer_by_hand() -> None:
    """3x3 with stride 1 on 112 x 112: tiles of 2 x 4 outputs read 4 x 6 inputs, less at the four edges."""
    launches = launches_of(Network(stages_of("large"), torch.float16), (1, 3, 224, 224))
    launch = next(one for one in launches if one.kernel.__name__ == "depthwise_conv_kernel")
    moved = traffic(launch)
    rows, columns = 56 * 4 - 2, 28 * 6 - 2
    assert moved.requested == {
        "input": 16 * rows * columns * 2,
        "weight": 56 * 28 * 16 * 9 * 2,
        "bias": 56 * 28 * 16 * 4,
    }
    assert moved.unique == {"input": 16 * 112 * 112 * 2, "weight": 9 * 16 * 2, "bias": 16 * 4}
    assert moved.written == {"output": 16 * 112 * 112 * 2}


def test_requested_bytes_of_products_by_hand() -> None:
    """Large's last block at batch 128: 160 to 960 channels at 7 x 7, its gate with 240 squeezed, back to 160."""
    stages, shape = stages_of("large"), (128, 3, 224, 224)
    layers, launches = layers_of(stages, shape), launches_of(Network(stages, torch.float16), shape)
    found = {layer.name: traffic(launch) for layer, launch in zip(layers, launches, strict=True)}
    pixels = 128 * 49
    # Tiles of 128 pixels and 128 outputs: 49 of them down, 8 across. 16 threads ask for each bias.
    expand = found["b14.expand"]
    assert expand.requested == {"input": 8 * pixels * 160 * 2, "weight": 49 * 160 * 960 * 2, "bias": 49 * 960 * 4 * 16}
    # Programs of 16 images. 8 sums by tile and channel; the hidden layer's 240 are two tiles of 128, the gates' 960 eight.
    gate, weights = found["b14.gate"], 960 * 240 * 2
    means, hidden = 128 * 960 * 2, 128 * 240 * 2
    assert gate.unique == {
        "sums": 128 * 8 * 960 * 4, "fc1_weight": weights, "fc1_bias": 240 * 4, "fc2_weight": weights,
        "fc2_bias": 960 * 4, "means": means, "hidden": hidden,
    }  # fmt: skip
    assert gate.written == {"means": means, "hidden": hidden, "gates": 128 * 960 * 4}
    assert gate.requested == {
        "sums": 128 * 8 * 960 * 4, "fc1_weight": 8 * weights, "fc1_bias": 8 * 240 * 4 * 8, "fc2_weight": 8 * weights,
        "fc2_bias": 8 * 960 * 4 * 8, "means": 2 * means, "hidden": 8 * hidden,
    }  # fmt: skip
    # With gates a tile is of one image: 64 pixels, of which 49 are there, and 64 of 160 outputs.
    project = found["b14.project"]
    assert project.requested == {
        "input": 3 * pixels * 960 * 2, "weight": 128 * 960 * 160 * 2, "bias": 128 * 160 * 4 * 16,
        "gate": 3 * 128 * 960 * 4, "residual": pixels * 160 * 2,
    }  # fmt: skip


def test_unknown_kernels_and_levels_are_refused() -> None:
    launch = launches_of(Network(stages_of("small"), torch.float16), (1, 3, 224, 224))[0]
    with pytest.raises(
        ValueError,
        match="kernel must be one of depthwise_conv_kernel, .* got test_unknown_kernels_and_levels_are_refused",
    ):
        traffic(replace(launch, kernel=test_unknown_kernels_and_levels_are_refused))
    with pytest.raises(ValueError, match="level must be one of a, b, c, d, got 'e'"):
        kernels(layers_of(stages_of("small"), (1, 3, 224, 224))[0], "e", 2)


def test_tables_have_a_line_for_each_layer() -> None:
    lines = roofline.table("small", 1, torch.float32).splitlines()
    assert len(lines) == 2 + 46 + 1
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1].startswith("| small | 46 | 56.51 |")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_emulator_counts_the_same_bytes(dtype: torch.dtype) -> None:
    """Of every seventh launch of small on images of 64 x 64, which has each kernel among them."""
    pytest.importorskip("tests.gpu.device", reason="needs the emulator")
    from tests.gpu.device import Device

    launches = launches_of(Network(stages_of("small"), dtype), (2, 3, 64, 64))
    chosen = [*launches[::7], *(one for one in launches if one.kernel.__name__ in (KINDS["gate"], KINDS["pool"]))]
    for launch in chosen:
        moved = traffic(launch)
        tensors: dict[int, Tensor] = {}  # an argument that stands for another one stays the same tensor
        arguments = {
            name: tensors.setdefault(id(value), torch.zeros_like(value, device="cpu"))
            if isinstance(value, Tensor)
            else value
            for name, value in launch.arguments.items()
        }
        report = Device().run(replace(launch, arguments=arguments))
        for names, counted in report.traffic.items():
            mine = [
                [of.get(name, 0) for name in names.split("/")] for of in (moved.requested, moved.unique, moved.written)
            ]
            counts = counted.requested, counted.unique, counted.written
            assert counts == tuple(map(sum, mine)), (launch.kernel.__name__, names)


def test_stages_need_no_memory() -> None:
    assert all(tensor.device.type == "meta" for stage in levels.stages_of("small") for tensor in stage.tensors)
