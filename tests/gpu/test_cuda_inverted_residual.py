"""Inverted residual blocks by their CUDA kernels in the simulator: results, races, memory that is guarded, faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from mnv3_fast.ops.inverted_residual import cuda_kernel, reference
from mnv3_fast.ops.inverted_residual.cuda_geometry import Geometry, Work, geometries, geometry
from mnv3_fast.ops.inverted_residual.layout import HAS_BIAS
from mnv3_fast.testing.cases import Case, op_cases
from mnv3_fast.testing.compare import prepared
from mnv3_fast.testing.edges import EDGES
from mnv3_fast.testing.layers import RealLayer, real_layers
from tests.gpu.interpreted.harness import cast, check
from tests.gpu.inverted_residual import Outcome, is_known, launches_of, simulated
from tests.gpu.simulator import build
from tests.gpu.simulator.run import UNKNOWN

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="the simulator is compiled with g++")
DTYPES = (torch.float16, torch.bfloat16)
CASES = op_cases("inverted_residual")
KNOWN = [case for case in CASES if is_known(*prepared(case))]
NAMES = {name for name, _ in EDGES["inverted_residual"]}


def case_of(name: str) -> Case:
    """The case of a name."""
    return next(case for case in CASES if case.name == name)


def arguments(name: str, dtype: torch.dtype = torch.float16) -> Any:
    """Of the raw op, of a case."""
    return cast(prepared(case_of(name)), dtype)


def compute(*args: Any) -> torch.Tensor:
    """The raw op by its kernels."""
    launches, output = launches_of(*args)
    assert len(launches) == (0 if args[0].shape[0] == 0 else 2 if args[2][13] else 1)
    outcome = simulated(launches, output)
    assert (outcome.statuses, outcome.faults) == ([0] * len(launches), [])
    return output


@pytest.mark.parametrize(("place", "case"), list(enumerate(c for c in KNOWN if c.name in NAMES)), ids=str)
def test_edges_equal_the_reference(place: int, case: Case) -> None:
    check(case, DTYPES[place % 2], compute)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in KNOWN if case.name not in NAMES], ids=str)
def test_blocks_of_both_networks_equal_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, compute)


def blocks() -> Iterator[tuple[RealLayer, Work]]:
    """The blocks of both networks with an expansion, and what their first launch computes."""
    for layer in (layer for net in ("large", "small") for layer in real_layers(net)):
        if layer.op == "inverted_residual" and layer.expanded:
            sizes = layer.height, layer.width, layer.out_height, layer.out_width, layer.inputs, layer.hidden
            yield layer, Work(*sizes, 0 if layer.squeeze else layer.outputs, layer.kernel, layer.stride)


def test_every_block_with_an_expansion_is_known_and_fits() -> None:
    found = list(blocks())
    assert len(found) == 14 + 10
    for layer, work in found:
        window = (layer.stride, layer.stride, *[layer.kernel // 2] * 4, 1, 1)
        shape, kernel = (1, layer.inputs, layer.height, layer.width), (layer.kernel, layer.kernel)
        sizes = layer.hidden, layer.squeeze, layer.outputs
        assert cuda_kernel.is_known(torch.bfloat16, shape, kernel, window, *sizes), layer
        assert not cuda_kernel.is_known(torch.float32, shape, kernel, window, *sizes)
        for images in (1, 8, 128):
            assert geometry(work, images).shared <= 99 << 10


def test_other_blocks_are_left_to_other_kernels() -> None:
    left = {case.name for case in CASES} - {case.name for case in KNOWN}
    assert {
        "no_expand",
        "no_expand_stride2",
        "dilated",
        "kernel7",
        "hidden9",
        "outputs9",
        "inputs9",
        "large.b0",
    } <= left
    window = (1, 1, 1, 1, 1, 1, 1, 1)
    known = [
        cuda_kernel.is_known(torch.float16, (1, 16, 7, 7), (3, 3), window, 64, squeeze, outputs)
        for squeeze, outputs in ((0, 80), (0, 88), (16, 88))
    ]
    assert known == [True, False, True]  # a block without squeeze-excite keeps its outputs in registers
    x, *rest = arguments("plain")
    with pytest.raises(ValueError, match="inverted_residual: there are CUDA kernels for float16"):
        launches_of(x.float(), *cast(tuple(rest), torch.float32))


def divided(monkeypatch: pytest.MonkeyPatch, choose: Callable[[Geometry], bool], *args: Any) -> Outcome:
    """The first launch of a block by the first division of its work that fits a condition."""

    def chosen(work: Work, images: int) -> Geometry:
        return next(each for each in geometries(work) if choose(each))

    monkeypatch.setattr(cuda_kernel, "geometry", chosen)
    launches, output = launches_of(*args)
    return simulated(launches, output)


DIVISIONS = {
    "a warp for all": ("plain", lambda g: g.splits == 1 and g.chunk == 48),
    "eight splits of three steps": ("plain", lambda g: g.splits == 8 and g.chunk == 48),
    "chunks with a rest": ("plain", lambda g: g.splits == 2 and g.chunk == 32),
    "tiles that overhang": ("relu6", lambda g: (g.tile_h, g.tile_w, g.splits) == (5, 14, 1)),
    "one tile": ("bias", lambda g: (g.tile_h, g.chunk) == (5, 48)),
    "slabs with a rest": ("no_norm", lambda g: (g.tile_h, g.chunk) == (3, 32)),
}


@pytest.mark.parametrize("name", list(DIVISIONS))
def test_every_division_of_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, choose = DIVISIONS[name]

    def run(*args: Any) -> torch.Tensor:
        outcome = divided(monkeypatch, choose, *args)
        assert outcome.faults == [] and not any(outcome.statuses)
        return outcome.output

    check(case_of(case), torch.float16, run)


def test_an_image_is_the_same_in_any_place_of_a_batch() -> None:
    x, *rest = arguments("bias")
    x = torch.cat([x, x[:1] * 2])
    assert torch.equal(compute(x.flip(0), *rest).flip(0), compute(x, *rest))


def test_nan_stays_where_torch_has_it() -> None:
    def computed(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        x[0, 3, 2, 2] = torch.nan
        return compute(x, *rest)

    check(replace(case_of("relu6")), torch.float16, computed)


@pytest.mark.parametrize("hidden", [16, 24, 40])
@pytest.mark.parametrize("sign", [-1, 1])
def test_infinity_is_what_torch_makes_of_it(sign: int, hidden: int) -> None:
    """Hidden channels are filled up to multiples of 16 with weights of 0, and an infinite input times 0 is NaN."""
    x = torch.randn(1, 8, 7, 7)
    x[0, 0, 3, 3] = torch.inf
    weights = [sign * torch.rand(hidden, 8, 1, 1), torch.rand(hidden, 1, 3, 3), torch.rand(8, hidden, 1, 1)]
    tensors = [each.half() for weight in weights for each in (weight, torch.zeros(len(weight)))]
    spec = [1, HAS_BIAS, 1, HAS_BIAS, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, HAS_BIAS, 0, 0]
    args = x.half().contiguous(memory_format=torch.channels_last), tensors, spec, [0.0, 0.0, 0.0, 1 / 6]
    ours, theirs = compute(*args), reference.inverted_residual(*args)
    assert theirs.isinf().any() == (sign > 0)
    assert torch.equal(ours.isinf(), theirs.isinf())
    assert torch.equal(ours.isnan(), theirs.isnan())


FIELDS = ("tile_h", "tile_w", "tiles_w", "slab", "chunk", "splits", "grid_x", "grid_y", "threads", "shared")


@pytest.mark.parametrize("case", ["plain", "bias"])
def test_a_geometry_that_does_not_fit_is_refused(case: str) -> None:
    for name in FIELDS:
        launches, output = launches_of(*arguments(case))
        value = getattr(launches[0].kernel.filled(launches[0]), name)
        assert simulated(launches, output, wrong={name: value + 8}).statuses == [UNKNOWN], name


@pytest.mark.parametrize("name", ["height", "width", "squeeze"])
def test_a_size_one_too_large_is_found(name: str) -> None:
    launches, output = launches_of(*arguments("bias"))
    value = launches[0].arguments[name]
    faults = simulated(launches, output, wrong={name: value + (8 if name == "squeeze" else 1)}).faults
    assert any("out of bounds" in fault for fault in faults), faults


FAULTS = {
    "barrier behind the copies": ("wait_for_copies();\n    __syncthreads();", "wait_for_copies();", "bias"),
    "barrier behind the expansion": ("__syncthreads();\n    hidden.depthwise", "hidden.depthwise", "bias"),
    "barrier behind the projection": ("__syncthreads();\n      hidden.copy_project", "hidden.copy_project", "inputs24"),
    "wait for the weights": ("wait_for_groups_of_copies<1>();  // all but the weights of this", "// this", "inputs24"),
    "tile": ("hidden.out_row, hidden.out_col", "hidden.out_row, hidden.out_col + 1", "inputs24"),
    "last step": ("hidden.count(first) / 16", "hidden.count(first) / 16 - 1", "inputs24"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(FAULTS))
def test_planted_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, case = FAULTS[fault]
    several = divided(monkeypatch, lambda g: g.chunk == 32, *arguments(case))
    assert several.faults == []
    damage = {"fp16": lambda text: build.changed(text, old, new)}

    def run(*args: Any) -> torch.Tensor:
        launches, output = launches_of(*args)
        outcome = simulated(launches, output, damage)
        assert outcome.faults == [], "output"
        return outcome.output

    with pytest.raises(AssertionError, match="output|NaN"):
        check(case_of(case), torch.float16, run)
