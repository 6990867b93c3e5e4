"""What every kernel of both networks is compiled to: no spills, wide accesses, tensor cores, occupancy, instructions."""

from __future__ import annotations

import functools
import re

import pytest
import torch

from tests.gpu import artefacts
from tests.gpu.artefacts import AMD, ARCHITECTURES, DTYPES, IN_FLIGHT, MATRIX_KERNELS, NARROW, Specialisation
from tests.gpu.compile import compile_launch
from tests.gpu.sass import Artefact, inspect, occupancy

FEWEST_COMPILATIONS = 20
LEAST_OCCUPANCY = 0.125
ISSUE_BOUND = {(5, 1): 69}
"""Windows whose budget no kernel meets, by size and stride, with what the best one known issues instead."""
FIRST = (80, 90)


def cases() -> list:
    """Architectures and dtypes: two for all, the others for one dtype, the rest if slow tests are asked for."""
    found = []
    for dtype in DTYPES:
        for architecture in ARCHITECTURES:
            slow = architecture not in FIRST and dtype != "fp16"
            found.append(pytest.param(dtype, architecture, marks=[pytest.mark.slow] if slow else []))
    return found


@functools.cache
def made(dtype: str, architecture: int) -> list[tuple[Specialisation, Artefact]]:
    return [(special, artefacts.artefact(special, architecture)) for special in artefacts.specialisations(dtype)]


@pytest.mark.parametrize(("dtype", "architecture"), cases())
def test_kernels_keep_their_values_in_registers(dtype: str, architecture: int) -> None:
    for special, artefact in made(dtype, architecture):
        assert (artefact.stack, artefact.local, artefact.spills) == (0, 0, 0), special.label()


@pytest.mark.parametrize(("dtype", "architecture"), cases())
def test_maps_are_read_and_written_in_128_bits(dtype: str, architecture: int) -> None:
    for special, artefact in made(dtype, architecture):
        constants = special.launch.constants
        if special.kernel == "depthwise_conv_kernel":
            assert (artefact.narrow_loads, artefact.narrow_stores) == (0, 0), special.label()
        if special.kernel in ("pointwise_conv_kernel", "stem_conv_kernel"):
            assert artefact.wide_stores > 0 and artefact.narrow_stores == 0, special.label()
        if special.kernel == "pointwise_conv_kernel":
            # Tiles of both factors and of the residual; what is narrower are biases and gates.
            m, n, k = (constants[f"TILE_{letter}"] for letter in "MNK")
            size = special.launch.arguments["output"].element_size()
            assert artefact.wide_loads * artefact.threads * 16 >= (m * k + n * k + m * n) * size, special.label()
            narrow_copies = artefact.count(r"LDGSTS") - artefact.count(r"LDGSTS\.\S*128$")
            assert narrow_copies == 0 or constants["GATE"], special.label()
        assert artefact.wide_loads > 0 or special.kernel in NARROW, special.label()


@pytest.mark.parametrize(("dtype", "architecture"), cases())
def test_matrix_products_run_on_tensor_cores_in_16_bits_and_in_no_other(dtype: str, architecture: int) -> None:
    for special, artefact in made(dtype, architecture):
        wanted = special.kernel in MATRIX_KERNELS and dtype != "fp32"
        assert (artefact.matrix_products > 0) == wanted, special.label()


@pytest.mark.parametrize(("dtype", "architecture"), cases())
def test_enough_programs_fit_on_a_multiprocessor(dtype: str, architecture: int) -> None:
    for special, artefact in made(dtype, architecture):
        assert artefact.occupancy >= LEAST_OCCUPANCY, special.label()
        if architecture == 90 and special.kernel in ("depthwise_conv_kernel", "pointwise_conv_kernel"):
            assert artefact.in_flight >= IN_FLIGHT, special.label()


@pytest.mark.parametrize(("dtype", "architecture"), cases())
def test_depthwise_convolutions_issue_few_enough_instructions(dtype: str, architecture: int) -> None:
    for special, artefact in made(dtype, architecture):
        most = artefacts.budget(special)
        if most is None:
            continue
        constants = special.launch.constants
        most = ISSUE_BOUND.get((constants["KERNEL_H"], constants["STEP_W"]), most)
        # The budget is what memory takes for an output of two bytes.
        scale = 2 if dtype == "fp32" else 1
        assert artefacts.instructions_per_output(special, artefact) <= most * scale, special.label()


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_a_network_needs_few_compilations(dtype: str) -> None:
    of_large = [special for special in artefacts.specialisations(dtype) if "large" in special.uses]
    assert len(of_large) <= FEWEST_COMPILATIONS


@pytest.mark.parametrize("dtype", ["fp16", *[pytest.param(d, marks=pytest.mark.slow) for d in ("bf16", "fp32")]])
@pytest.mark.parametrize("architecture", AMD)
def test_kernels_compile_for_amd(dtype: str, architecture: str) -> None:
    for special in artefacts.specialisations(dtype):
        compiled = compile_launch(special.launch, architecture)
        assert compiled.asm["hsaco"][:4] == b"\x7fELF"
        assert re.search(rf'amdgcn_target ".*{architecture}"', compiled.asm["amdgcn"])


def test_the_launches_of_a_pass_are_few() -> None:
    assert len(artefacts.network_launches("large", torch.float16, 1)) <= 62
    assert len(artefacts.network_launches("small", torch.float16, 1)) <= 48


def test_occupancy_follows_the_rules_of_the_programming_guide() -> None:
    # 65,536 registers: 79 a thread are 2,560 a warp, so 25 warps fit, which are 6 programs of 4.
    assert occupancy(90, 79, 512, 128) == (6, 0.375, "registers")
    assert occupancy(80, 32, 0, 1024) == (2, 1.0, "registers")
    assert occupancy(120, 32, 57 << 10, 128) == (1, 128 / 1536, "shared memory")
    assert occupancy(86, 16, 0, 64) == (16, 16 * 64 / 1536, "programs")


def test_the_table_has_a_line_for_each_kernel_and_architecture() -> None:
    lines = artefacts.table("fp16", FIRST).splitlines()
    assert len(lines) == 2 + 2 * len(artefacts.specialisations("fp16"))
    assert len({line.count("|") for line in lines}) == 1
    assert any(re.match(r"\| depthwise_conv 3x3 step 1 .* \| 90 \|", line) for line in lines)


def test_damage_shows() -> None:
    """A kernel that is told nothing of its channels' divisor reads them one by one, and the count of accesses says so."""
    special = next(s for s in artefacts.specialisations("fp16") if s.kernel == "depthwise_conv_kernel")
    launch = special.launch
    constants = {**launch.constants, "UNIT": 1}
    arguments = {**launch.arguments, "channels": launch.arguments["channels"] * launch.constants["UNIT"]}
    blind = type(launch)(launch.kernel, launch.grid, arguments, constants, launch.warps, launch.stages)
    artefact = inspect(compile_launch(blind, 80), 80)
    assert artefact.wide_loads < artefact.narrow_loads
    assert artefact.narrow_stores > 0
