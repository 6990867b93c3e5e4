"""depthwise_conv's CUDA kernel in the simulator: every case of the op's suite, in memory that is guarded, races, faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.gpu.packing import pack_depthwise
from mnv3_fast.ops.depthwise_conv import cuda_kernel, reference
from mnv3_fast.ops.elements import ACTIVATIONS, convolved_size, resolve_window
from mnv3_fast.testing.cases import Case, op_cases
from mnv3_fast.testing.compare import prepared
from mnv3_fast.testing.tolerance import assert_close_enough
from tests.gpu.interpreted.harness import check, folded
from tests.gpu.simulator import build
from tests.gpu.simulator.run import UNKNOWN, Outcome, run

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="the simulator is compiled with g++")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NO_NORM = (None, None, None, None, 0.0)


def is_known(case: Case) -> bool:
    """Whether the kernel is there for a case: 3x3 and 5x5, a stride of 1 or 2 both ways, no dilation."""
    (_, weight, *_), options = case.make()
    stride = options.get("stride", 1)
    stride = (stride, stride) if isinstance(stride, int) else stride
    return tuple(weight.shape[2:]) in ((3, 3), (5, 5)) and stride in ((1, 1), (2, 2)) and "dilation" not in options


CASES = op_cases("depthwise_conv")
KNOWN = [case for case in CASES if is_known(case)]


@pytest.fixture(scope="module")
def program() -> Path:
    return build.depthwise_conv()


@dataclass
class Results:
    """What the kernel gave: its output, and with sums their means; a refused launch leaves NaN."""

    status: int
    faults: list[str]
    output: Tensor
    sums: Tensor | None

    @property
    def mean(self) -> Tensor:
        """Parts of the map added up in order, as squeeze_excite_gate's kernel reads them."""
        assert self.sums is not None
        return (self.sums.sum(1) / (self.output.shape[2] * self.output.shape[3])).to(self.output.dtype)


def simulated(
    program: Path, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, mean: bool = False, shift: int = 0,
    wrong: Mapping[str, int] | None = None,
) -> Results:  # fmt: skip
    """The raw op by its kernel; ``shift``: elements by which maps start behind an address of 16 bytes."""
    norm, eps, activation = rest[:4], rest[4], rest[13]
    kernel, window = weight.shape[2:], resolve_window(x.shape[2:], weight.shape[2:], rest[5:13])
    folded_weight, folded_bias = folded(weight, bias, norm, eps)
    packed = pack_depthwise(folded_weight, x.dtype)
    output = shifted((*x.shape[:2], *convolved_size(x.shape[2:], kernel, window)), x.dtype, shift)
    sums = torch.empty(cuda_kernel.sums_shape(output, kernel, window)) if mean else None
    given = shifted(x.shape, x.dtype, shift).copy_(x)
    found = cuda_kernel.launches(given, packed, folded_bias, output, kernel, window, activation, sums)
    assert bool(found) == (x.shape[0] > 0)
    outcomes = [run(program, launch, ("output", "sums"), wrong) for launch in found] or [Outcome()]
    return Results(outcomes[0].status, outcomes[0].faults, output, sums)


def shifted(shape: Sequence[int], dtype: torch.dtype, shift: int) -> Tensor:
    """An NHWC map of NaN in memory that starts some elements behind an address of 16 bytes."""
    n, c, h, w = shape
    memory = torch.full((n * h * w * c + shift + 64,), torch.nan, dtype=dtype)
    first = -(memory.data_ptr() // dtype.itemsize) % 16 + shift
    return memory.as_strided((n, c, h, w), (h * w * c, 1, w * c, c), first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", KNOWN, ids=str)
def test_equals_the_reference(case: Case, dtype: torch.dtype, program: Path) -> None:
    mean = bool(case.make()[1].get("return_mean"))

    def compute(*args: Any) -> Any:
        outcome = simulated(program, *args, mean=mean)
        assert (outcome.status, outcome.faults) == (0, [])
        return (outcome.output, outcome.mean) if mean else outcome.output

    check(case, dtype, compute)


def test_other_windows_are_left_to_other_kernels() -> None:
    left = [case for case in CASES if case not in KNOWN]
    assert {"kernel1", "kernel7", "kernel3x5", "stride3", "stride1x2", "dilated"} <= {case.name for case in left}
    for case in CASES:
        x, weight, *rest = prepared(case)
        window = resolve_window(x.shape[2:], weight.shape[2:], rest[6:14])
        assert cuda_kernel.is_known(x.shape, weight.shape[2:], window) == (case in KNOWN), case


WRONG = {
    "kernel": 7, "stride": 3, "dtype": 3, "activation": 4, "pad_left": -1, "channels": 0, "tiles_h": 4, "tiles_w": 2,
    "across": 33, "down": 10, "grid_x": 2, "grid_y": 2, "grid_z": 65536, "shared": 124,
}  # fmt: skip
"""Numbers that do not fit the others, by field."""


@pytest.mark.parametrize("field", list(WRONG))
def test_a_launch_that_does_not_fit_the_kernel_is_refused(field: str, program: Path) -> None:
    args = arguments(1, 8, 9, 21, 3, 1, 0, torch.float16)
    right = simulated(program, *args, mean=True)
    assert right.status == 0 and not right.output.isnan().any()
    assert simulated(program, *args, mean=True, wrong={field: WRONG[field]}).status == UNKNOWN


def arguments(
    n: int, c: int, h: int, w: int, kernel: int, stride: int, activation: int, dtype: torch.dtype
) -> Sequence[Any]:
    """Of the raw op, without BatchNorm."""
    generator = torch.Generator().manual_seed(n + c + h + w + kernel)
    x = torch.randn(n, c, h, w, generator=generator).to(dtype)
    weight = (torch.randn(c, 1, kernel, kernel, generator=generator) / kernel).to(dtype)
    bias = torch.randn(c, generator=generator).to(dtype)
    around = kernel // 2
    return x, weight, bias, *NO_NORM, stride, stride, *[around] * 4, 1, 1, activation


def assert_right(outcome: Results, args: Sequence[Any]) -> None:
    """Output and means within the rule."""
    assert (outcome.status, outcome.faults) == (0, [])
    double = [a.double() if isinstance(a, Tensor) else a for a in args]
    theirs, exact = reference.depthwise_conv_mean(*args), reference.depthwise_conv_mean(*double)
    for ours, their, right in zip((outcome.output, outcome.mean), theirs, exact, strict=True):
        assert_close_enough(ours, their, right, dtype=args[0].dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_blocks_of_many_tiles_and_channels(kernel: int, stride: int, dtype: torch.dtype, program: Path) -> None:
    args = arguments(2, 8 * 35, 15, 23, kernel, stride, 2, dtype)  # two blocks of channels, tiles that overhang
    outcome = simulated(program, *args, mean=True)
    assert outcome.sums is not None and outcome.sums.shape[1] > 1
    assert_right(outcome, args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_maps_at_any_address(dtype: torch.dtype, program: Path) -> None:
    args = arguments(2, 16, 9, 10, 3, 1, 1, dtype)
    assert_right(simulated(program, *args, mean=True, shift=1), args)


def test_more_images_than_a_grid_has_layers_are_left_to_other_kernels() -> None:
    shape, window = (8, 1, 1), (1, 1, 1, 1, 1, 1, 1, 1)
    assert cuda_kernel.is_known((65535, *shape), (3, 3), window)
    assert not cuda_kernel.is_known((65536, *shape), (3, 3), window)


def test_means_do_not_depend_on_an_images_place(program: Path) -> None:
    x, *rest = arguments(1, 24, 14, 14, 5, 1, 2, torch.float32)
    alone = simulated(program, x, *rest, mean=True)
    among = simulated(program, torch.cat([torch.randn_like(x), x, x * 2]), *rest, mean=True)
    assert torch.equal(among.output[1:2], alone.output) and torch.equal(among.mean[1:2], alone.mean)


@pytest.mark.parametrize("activation", list(ACTIVATIONS.values()), ids=list(ACTIVATIONS))
def test_nan_and_infinity_pass_as_in_torch(activation: int, program: Path) -> None:
    x, weight, *rest = arguments(1, 8, 12, 12, 3, 1, activation, torch.float32)
    x[0, 0, 2, 2], x[0, 1, 2, 2], x[0, 2, 2, 2] = torch.nan, torch.inf, -torch.inf
    for channels in (8, 7):  # words, and channel by channel
        args = (x[:, :channels], weight[:channels].abs(), rest[0][:channels], *rest[1:])
        assert_right(simulated(program, *args, mean=True), args)


FAULTS = {
    "barrier before the taps are read": ("channel);\n  __syncthreads();\n", "channel);\n", "race"),
    "barrier before sums replace them": ("  __syncthreads();  // the taps there have been read\n", "", "race"),
    "barrier before sums are read": ("  __syncthreads();\n  float* part", "  float* part", "race"),
    "tile": ("tile_row = tile / a.tiles_w", "tile_row = tile / (a.tiles_w + 1)", ""),
    "column": ("within(in_col + q, a.width)", "within(in_col + q, a.width + 1)", ""),
    "row": ("within(in_row + r + 1, a.height)", "within(in_row + r + 1, a.height + 1)", "out of bounds"),
    "taps": ("(j - o * kSize) * kTapStep", "(j + 1 - o * kSize) * kTapStep", ""),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_planted_faults_are_found(fault: str) -> None:
    old, new, words = FAULTS[fault]
    damaged = build.depthwise_conv({"fp32": lambda text: build.changed(text, old, new)})
    args = arguments(1, 128, 13, 22, 3, 1, 0, torch.float32)  # 32 words: a warp stages one row of the taps
    outcome = simulated(damaged, *args, mean=True)
    if outcome.faults:
        assert any(words in found for found in outcome.faults)
        return
    assert words == ""
    with pytest.raises(AssertionError, match="output"):
        assert_right(outcome, args)
