"""The emulator runs what Triton compiled: small kernels of each kind, against fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mnv3_fast.gpu.launch import Launch
from mnv3_fast.testing.tolerance import relative_error
from tests.gpu import small_kernels as kernels
from tests.gpu.device import Device, Report, emulate, garbage

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def check(launch: Launch, output: Tensor, exact: Tensor, limit: float) -> Report:
    """Run a launch; the result is right and nothing is wrong with the run."""
    device = emulate([launch])
    inputs = [t for t in launch.arguments.values() if isinstance(t, Tensor) and t is not output]
    assert device.faults == []
    assert device.written_faults(inputs, [output]) == []
    assert relative_error(output, exact) <= limit
    assert device.reports[0].traffic["y"].written == output.numel() * output.element_size()
    return device.reports[0]


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 511, 1024])
def test_copy(dtype: torch.dtype, size: int) -> None:
    x, y = torch.randn(size).to(dtype), garbage(size, dtype=dtype)
    report = check(Launch(kernels.copy, (3, 1, 1), {"x": x, "y": y, "size": size}, {"BLOCK": 512}), y, x.double(), 0)
    assert report.traffic["x"].requested == report.traffic["x"].unique == x.numel() * x.element_size()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("warps", [1, 4, 8])
def test_a_reduction_through_shared_memory(dtype: torch.dtype, warps: int) -> None:
    x, y = torch.randn(37, 500).to(dtype), garbage(37, dtype=torch.float32)
    arguments = {"x": x, "y": y, "columns": 500}
    report = check(Launch(kernels.row_sums, (37, 1, 1), arguments, {"BLOCK": 512}, warps), y, x.double().sum(1), 3e-7)
    assert (report.instructions.get("barrier", 0) > 0) == (warps > 1)
    assert report.instructions["shuffle"] > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_strided_load_reads_every_other_row_only(dtype: torch.dtype) -> None:
    x, y = torch.randn(40, 40).to(dtype), garbage(20, 40, dtype=dtype)
    arguments = {"x": x, "y": y, "rows": 20, "columns": 40, "stride": 2}
    launch = Launch(kernels.strided, (2, 1, 1), arguments, {"ROWS": 16, "COLUMNS": 64})
    report = check(launch, y, x[::2].double(), 0)
    assert report.traffic["x"].unique == y.numel() * y.element_size()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(100, 72, 40), (16, 16, 8), (1, 9, 7)], ids=str)
@pytest.mark.parametrize("stages", [1, 3])
def test_a_matrix_product(dtype: torch.dtype, shape: tuple[int, int, int], stages: int) -> None:
    m, k, n = shape
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    y = garbage(m, n, dtype=dtype)
    constants = {"M": 64, "K": 32, "N": 32, "PRECISION": "ieee"}
    launch = Launch(kernels.matmul, (-(-m // 64), -(-n // 32), 1), {"x": x, "w": w, "y": y, "m": m, "k": k, "n": n}, constants, stages=stages)  # fmt: skip
    report = check(launch, y, x.double() @ w.double().T, 4 * eps(dtype))
    assert ("tensor core" in report.instructions) == (dtype != torch.float32)


def test_tf32_products_use_tensor_cores_and_lose_what_tf32_loses() -> None:
    x, w, y = torch.randn(64, 64), torch.randn(32, 64), garbage(64, 32, dtype=torch.float32)
    constants = {"M": 64, "K": 32, "N": 32, "PRECISION": "tf32"}
    launch = Launch(kernels.matmul, (1, 1, 1), {"x": x, "w": w, "y": y, "m": 64, "k": 64, "n": 32}, constants, stages=3)
    exact = x.double() @ w.double().T
    report = check(launch, y, exact, 2**-10)
    assert relative_error(y, exact) > 2**-14
    assert report.instructions["tensor core"] > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_element_math(dtype: torch.dtype) -> None:
    x, y = (3 * torch.randn(1000)).to(dtype), garbage(1000, dtype=dtype)
    v, at = x.double(), torch.arange(1000)
    exact = torch.exp(-v.abs()) + v.sigmoid() + v.abs().sqrt() + (v.abs() + 1).rsqrt() + v / (2 + v * v)
    exact += at // 7 + at % 5 + v.clamp(-1, 1)
    check(Launch(kernels.elementwise, (2, 1, 1), {"x": x, "y": y, "size": 1000}, {"BLOCK": 512}), y, exact, eps(dtype))


@pytest.mark.parametrize("lanes", [128, 4096])
def test_programs_whose_loops_differ_in_length(lanes: int) -> None:
    x, counts = torch.randn(512), torch.randint(0, 9, (40,), dtype=torch.int32)
    y = garbage(40, 512, dtype=torch.float32)
    device = Device(lanes=lanes)
    device.run(Launch(kernels.repeat, (40, 1, 1), {"x": x, "y": y, "counts": counts}, {"BLOCK": 512}))
    signs = torch.tensor([-1.0, 1.0]).repeat(20)
    assert relative_error(y, x.double() * (signs * counts)[:, None]) < 1e-6
    assert device.faults + device.written_faults([x, counts], [y]) == []


def test_the_number_of_threads_side_by_side_changes_nothing() -> None:
    x, outputs = torch.randn(33, 500), []
    for lanes in (128, 1024, 8192):
        y = garbage(33, dtype=torch.float32)
        Device(lanes=lanes).run(Launch(kernels.row_sums, (33, 1, 1), {"x": x, "y": y, "columns": 500}, {"BLOCK": 512}))
        outputs.append(y)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_some_programs_of_a_grid() -> None:
    x, y = torch.arange(1024.0), torch.full((1024,), -1.0)
    device = Device()
    launch = Launch(kernels.copy, (4, 1, 1), {"x": x, "y": y, "size": 1024}, {"BLOCK": 256})
    report = device.run(launch, programs=[(1, 0, 0), (3, 0, 0)])
    assert report.programs == 2
    expected = torch.where((torch.arange(1024) // 256) % 2 == 1, x, torch.tensor(-1.0))
    assert torch.equal(y, expected)


def test_a_window_of_a_larger_tensor_is_read_and_written_in_place() -> None:
    buffer = torch.full((64,), 7.0)
    x, y = torch.randn(20), buffer[8:28]
    device = emulate([Launch(kernels.copy, (1, 1, 1), {"x": x, "y": y, "size": 20}, {"BLOCK": 64})])
    assert torch.equal(y, x)
    assert (buffer[:8] == 7).all() and (buffer[28:] == 7).all()
    assert device.written_faults([x], [y]) == []
