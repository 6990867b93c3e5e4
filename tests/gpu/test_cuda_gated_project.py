"""The second launch of a block with squeeze-excite in the simulator: results, races, memory that is guarded, faults."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.fragments import pack_fragments
from mnv3_fast.ops.elements import ACTIVATIONS, GATES
from mnv3_fast.ops.inverted_residual import cuda_gated_project
from mnv3_fast.ops.inverted_residual.cuda_gated_project import Geometry, Work
from mnv3_fast.testing.layers import RealLayer, real_layers
from tests.gpu.gated_project import SLAB, Case, Simulated
from tests.gpu.requests import Request
from tests.gpu.simulator import build, verdict
from tests.gpu.simulator.run import UNKNOWN

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="the simulator is compiled with g++")
DTYPES = (torch.float16, torch.bfloat16)
SMALL = Case(2, 5, 9, 72, 24, 40, residual=True)
SLABS = Case(1, 5, 7, 72, 24, 72, residual=True)
"""Where its channels are three slabs, the last one and its 16 channels are not full."""


@pytest.fixture(scope="module")
def program() -> Path:
    return build.gated_project()


@pytest.fixture
def in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches of :data:`SLABS` are divided in every direction."""
    wanted = (2, 1, 1, 2, 3)
    found = [
        each
        for each in geometries(SLABS)
        if (each.row_warps, each.column_warps, each.groups, each.slab_warps, each.slabs) == wanted
    ]
    monkeypatch.setattr(cuda_gated_project, "geometry", lambda *_: found[0])


def geometries(case: Case) -> list[Geometry]:
    """All that there are for a case."""
    terms = -(-case.channels // SLAB)
    sizes = case.images, case.height * case.width, case.channels, case.squeeze, case.outputs, terms
    return list(cuda_gated_project._geometries(Work(*sizes)))


def blocks() -> list[RealLayer]:
    """The blocks of both networks with squeeze-excite and maps of at most 14 x 14, each once."""
    layers = [layer for net in ("large", "small") for layer in real_layers(net) if layer.op == "inverted_residual"]
    found = {str(replace(layer, name="")): layer for layer in layers if layer.squeeze and max(layer.height, 14) == 14}
    return list(found.values())


def right(case: Case, program: Path) -> Simulated:
    """A launch that ran without a fault to the right result."""
    simulated = Simulated(case)
    outcome = simulated.run(program)
    assert (outcome.status, outcome.faults) == (0, [])
    simulated.check()
    return simulated


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", blocks(), ids=lambda layer: f"{layer.out_height}x{layer.hidden}to{layer.outputs}")
def test_blocks_of_both_networks(layer: RealLayer, dtype: torch.dtype, images: int, program: Path) -> None:
    right(Case.of(layer, images, dtype), program)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("layer", blocks(), ids=lambda layer: f"{layer.out_height}x{layer.hidden}to{layer.outputs}")
def test_both_launches_of_blocks_of_both_networks(layer: RealLayer, dtype: str) -> None:
    request = Request(
        "inverted_residual", 1, layer.inputs, layer.height, layer.width, layer.outputs, layer.hidden, layer.squeeze,
        layer.kernel, layer.stride, activation=layer.activation, residual=layer.residual, dtype=dtype,
    )  # fmt: skip
    assert verdict.missing_reason(request) is None
    assert verdict.judge(request).faults == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_work_space_serves_again(dtype: torch.dtype, in_slabs: None, program: Path) -> None:
    simulated = right(replace(SLABS, dtype=dtype), program)
    first = simulated.output.clone()
    simulated.output.fill_(torch.nan)
    assert simulated.run(program).faults == []
    simulated.check()
    assert torch.equal(simulated.output, first)


SIZES = {
    "one pixel": Case(3, 1, 1, 8, 8, 8),
    "odd maps": Case(1, 3, 11, 40, 8, 24, torch.bfloat16),
    "many squeezed channels": Case(1, 2, 3, 16, 512, 16),
    "more outputs than channels": Case(1, 4, 4, 16, 8, 200),
    "more terms than are read ahead": Case(1, 1, 2, 544, 512, 8),
    "no term for a thread": Case(1, 3, 3, 1024, 8, 16),
    "tiles that overhang": Case(5, 9, 9, 88, 40, 56, residual=True),
}


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes(name: str, program: Path) -> None:
    right(SIZES[name], program)


@pytest.mark.parametrize(("gate", "slope"), [("hardsigmoid", 1 / 6), ("hardsigmoid", 0.2), ("sigmoid", 1 / 6)])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gates_and_activations(activation: str, gate: str, slope: float, program: Path) -> None:
    other = list(ACTIVATIONS)[len(ACTIVATIONS) - 1 - ACTIVATIONS[activation]]
    case = replace(SMALL, squeeze_activation=activation, gate=gate, slope=slope, activation=other)
    right(replace(case, residual=gate == "sigmoid", dtype=DTYPES[GATES[gate]]), program)


def check_geometries(step: int, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every geometry, or one in ``step``."""
    every = geometries(SLABS)
    assert {g.slabs for g in every} == {1, 2, 3, 5} and {g.groups for g in every} == {1, 2}
    assert {(g.row_warps, g.column_warps, g.slab_warps) for g in every} >= {(3, 2, 1), (1, 1, 8), (1, 5, 1), (2, 2, 2)}
    for geometry in every[::step]:
        monkeypatch.setattr(cuda_gated_project, "geometry", lambda *_, chosen=geometry: chosen)
        right(SLABS, program)


def test_some_geometries(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_geometries(17, program, monkeypatch)


@pytest.mark.slow
def test_every_geometry(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_geometries(1, program, monkeypatch)


def test_an_images_place_changes_no_bit_and_nan_stays_in_its_image(in_slabs: None, program: Path) -> None:
    simulated = Simulated(replace(SLABS, images=3))
    for tensor in (simulated.launches[0].arguments[name] for name in ("hidden", "parts", "residual")):
        tensor[2] = tensor[0]  # type: ignore[index]
        tensor[1] = torch.nan  # type: ignore[index]
    assert simulated.run(program).faults == []
    assert torch.equal(simulated.output[0], simulated.output[2])
    assert simulated.output[1].isnan().all() and not simulated.output[0].isnan().any()


def test_infinite_squeezed_channels_shut_gates_as_in_torch(program: Path) -> None:
    simulated = Simulated(replace(SMALL, channels=40))  # its last 16 channels are half there
    parts = simulated.launches[0].arguments["parts"]
    parts[:, 0, 3] = torch.inf  # type: ignore[index]
    assert simulated.run(program).faults == []
    fc2 = simulated.layers[2].to(SMALL.dtype)
    gates = (fc2[:, 3] > 0).float()  # and 1/2 nowhere: no weight is 0
    weight = simulated.weight.double()
    exact = torch.einsum("oc,nchw->nohw", weight * gates, simulated.hidden.double())
    exact = exact + simulated.bias[:, None, None] + simulated.residual
    torch.testing.assert_close(simulated.output.double(), exact, rtol=0, atol=0.02)


WRONG = {
    "dtype": 0, "squeeze_activation": 4, "activation": -1, "gate": 2, "pixels": 0, "channels": 76, "squeeze": 1032,
    "outputs": 0, "count": 0, "row_warps": 9, "column_warps": 0, "slab_warps": 9, "groups": 3, "slab": 24,
    "grid_x": 1, "grid_y": 2, "grid_z": 65536, "threads": 64, "shared": 48,
}  # fmt: skip
"""Numbers that do not fit the others, by field."""


@pytest.mark.parametrize("field", list(WRONG))
def test_a_launch_that_does_not_fit_the_kernel_is_refused(field: str, program: Path) -> None:
    assert Simulated(SMALL).run(program, {field: WRONG[field]}).status == UNKNOWN


def test_slabs_without_a_work_space_are_refused(in_slabs: None, program: Path) -> None:
    simulated = Simulated(SLABS)
    simulated.launches[0].arguments["arrivals"] = None
    assert simulated.run(program).status == UNKNOWN


FAULTS = {
    "sums": ("  wait_for_groups_of_copies<2>();\n  __syncthreads();\n", "  wait_for_groups_of_copies<2>();\n"),
    "squeezed": ("  wait_for_groups_of_copies<1>();\n  __syncthreads();\n", "  wait_for_groups_of_copies<1>();\n"),
    "products": ("  block.multiply_squeezed();\n  __syncthreads();\n", "  block.multiply_squeezed();\n"),
    "gates": ("  wait_for_groups_of_copies<0>();\n  __syncthreads();\n", "  wait_for_groups_of_copies<0>();\n"),
    "warps": ("    __syncthreads();\n    if (threadIdx.z > 0) return;\n", "    if (threadIdx.z > 0) return;\n"),
    "last": ("    __syncthreads();\n    if (*missing", "    if (*missing"),
    "copies": ("  wait_for_groups_of_copies<0>();\n", ""),
    "tile": ("tile_m * a.row_warps * 16;", "tile_m * a.row_warps * 16 + 1;"),
    "pixel": ("first_row + y < a.pixels &&", "first_row + y <= a.pixels &&"),
    "channel": ("channel + x * 8 < a.channels", "channel + x * 8 <= a.channels"),
    "slab": ("if (k / (2 * kGroups) < left)", "if (k / (2 * kGroups) + 1 < left)"),
    "output": ("pixel(h) < a.pixels && output(j)", "pixel(h) <= a.pixels && output(j)"),
    "terms": ("load_if(terms.count > 0,", "load_if(terms.count > 1,"),
}
"""Barriers and waits that are left out, and tiles off by one. The barrier in front of the atomic and the fences around it
order what blocks see of each other; here a block runs to its end before the next one starts."""


def whole(text: str) -> str:
    """The kernel's source with its header in it, so that either can be damaged."""
    name = "ops/inverted_residual/gated_project_gate.h"
    header = (build.ROOT / "csrc" / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return build.changed(text, f'#include "{name}"\n', header)


QUICK = ("sums", "warps", "copies", "slab")


@pytest.mark.parametrize(
    "fault", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_planted_faults_are_found(fault: str, in_slabs: None) -> None:
    damaged = build.gated_project({"fp16": lambda text: build.changed(whole(text), *FAULTS[fault])})
    simulated = Simulated(SLABS)
    outcome = simulated.run(damaged)
    assert outcome.status == 0
    if not outcome.faults:
        with pytest.raises(AssertionError, match="output"):
            simulated.check()


def test_a_lane_has_four_neighbouring_outputs() -> None:
    weight = torch.arange(40 * 24.0).view(40, 24)
    fragments = cuda_gated_project.pack_outputs(weight)
    assert fragments.shape == (3, 2, 32, 8)
    for tile, step, t in itertools.product(range(3), range(2), range(4)):
        # A lane 4 g + t' reads rows g and g + 8 of the factor, which are columns of the product: those of lane t are
        # 2 t, 2 t + 1 and the same of the next eight.
        for i, column in enumerate((2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9)):
            lanes = fragments[tile, step, column % 8 * 4 : column % 8 * 4 + 4, column // 8 * 4 : column // 8 * 4 + 4]
            inputs = lanes.view(4, 2, 2).transpose(0, 1).reshape(16)
            output, first = tile * 16 + t * 4 + i, step * 16
            wanted = torch.zeros(16)
            if output < 40:
                wanted[: 24 - first] = weight[output, first : first + 16]
            assert torch.equal(inputs, wanted)
    assert torch.equal(fragments.sum(), pack_fragments(weight, weight.dtype).sum())


def test_what_there_is_no_kernel_for() -> None:
    known = torch.float16, 1, 49, 960, 240, 160
    assert cuda_gated_project.is_known(*known)
    for place, value in ((0, torch.float32), (1, 65536), (2, 0), (3, 964), (4, 1032), (5, 12)):
        assert not cuda_gated_project.is_known(*(value if i == place else each for i, each in enumerate(known)))
    simulated = Simulated(SMALL)
    arguments = simulated.launches[0].arguments
    hidden, parts, output = (arguments[name] for name in ("hidden", "parts", "output"))
    packed = cuda_gated_project.pack(simulated.block)
    with pytest.raises(
        ValueError, match=r"gated_project: .* got torch.float32, \[2, 72, 5, 9\] with 24 squeezed and 40"
    ):
        cuda_gated_project.launches(packed, hidden.float(), parts, output, None, Arena(hidden.device))
    assert cuda_gated_project.launches(packed, hidden[:0], parts[:0], output[:0], None, Arena(hidden.device)) == []
