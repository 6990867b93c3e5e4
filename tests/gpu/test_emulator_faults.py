"""Each fault that the emulator is there to find is planted and found: the message says what and where."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mnv3_fast.gpu.launch import Launch
from mnv3_fast.testing.tolerance import relative_error
from tests.gpu import plant
from tests.gpu import small_kernels as kernels
from tests.gpu.device import Device, emulate, garbage
from tests.gpu.machine import EmulationError
from tests.gpu.parse import UnknownPtx


def matmul(dtype: torch.dtype, precision: str = "ieee", k: int = 96) -> tuple[Launch, Tensor, Tensor]:
    """A launch, its output and the exact result."""
    x, w = torch.randn(64, k).to(dtype), torch.randn(32, k).to(dtype)
    y = garbage(64, 32, dtype=dtype)
    constants = {"M": 64, "K": 32, "N": 32, "PRECISION": precision}
    launch = Launch(kernels.matmul, (1, 1, 1), {"x": x, "w": w, "y": y, "m": 64, "k": k, "n": 32}, constants, stages=3)
    return launch, y, x.double() @ w.double().T


def row_sums() -> Launch:
    y = garbage(8, dtype=torch.float32)
    return Launch(kernels.row_sums, (8, 1, 1), {"x": torch.randn(8, 500), "y": y, "columns": 500}, {"BLOCK": 512})


def test_deleted_barriers_are_races() -> None:
    device = emulate([row_sums()], plant.barrier)
    assert device.faults
    assert "race" in device.faults[0] and "st.shared" in device.faults[0] and "ld.shared" in device.faults[0]
    assert emulate([row_sums()]).faults == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_deleted_barriers_of_a_pipelined_product_are_races(dtype: torch.dtype) -> None:
    launch, _, _ = matmul(dtype)
    assert any("race" in fault for fault in emulate([launch], plant.barrier).faults)


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "tf32")]
)
def test_swapped_registers_of_a_fragment_are_a_wrong_result(dtype: torch.dtype, precision: str) -> None:
    launch, y, exact = matmul(dtype, precision)
    emulate([launch], plant.mma)
    assert relative_error(y, exact) > 0.1


def test_deleted_waits_for_asynchronous_copies_are_wrong_results_and_races() -> None:
    launch, y, exact = matmul(torch.float32)
    device = emulate([launch], plant.wait)
    assert not relative_error(y, exact) < 0.1
    assert any("race" in fault and "cp.async" in fault for fault in device.faults)


@pytest.mark.parametrize("size", [1025, 2000])
def test_a_size_that_is_too_large_is_out_of_bounds(size: int) -> None:
    x, y = torch.randn(1024), torch.randn(1024)
    launch = Launch(kernels.copy, (4, 1, 1), {"x": x, "y": y, "size": 1024}, {"BLOCK": 512})
    with pytest.raises(
        EmulationError, match=r"copy: .*ld.global.*small_kernels.py.*out of bounds.*of x, which has 4096 bytes"
    ):
        Device().run(launch, passed={"size": size})


def test_the_gap_in_a_window_is_out_of_bounds() -> None:
    buffer = torch.randn(16, 48)
    x, y = buffer[:, :40], garbage(640, dtype=torch.float32)
    with pytest.raises(EmulationError, match="out of bounds"):
        emulate([Launch(kernels.copy, (2, 1, 1), {"x": x, "y": y, "size": 640}, {"BLOCK": 512})])


def test_a_pointer_that_is_less_aligned_than_the_kernel_was_compiled_for_is_misaligned() -> None:
    x, y = torch.randn(1028), torch.randn(1024)
    launch = Launch(kernels.copy, (1, 1, 1), {"x": x[:1024], "y": y, "size": 1024}, {"BLOCK": 1024})
    with pytest.raises(EmulationError, match="misaligned load of 16 bytes"):
        Device().run(launch, passed={"x": x[1:1025]})


def test_an_unknown_opcode_is_an_error_that_names_it() -> None:
    with pytest.raises(UnknownPtx, match=r"row_sums: unknown opcode st.elsewhere.b32: .*PTX line \d+"):
        emulate([row_sums()], plant.unknown)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("add.f32", "add.rm.f32", "unknown opcode add.rm.f32"),
        ("add.f32", "add.sat.f32", "unknown opcode add.sat.f32"),
        ("shfl.sync.bfly.b32", "shfl.sync.bfly.b64", "unknown opcode shfl.sync.bfly.b64"),
        ("ld.global.b32", "ld.global.mystery.b32", "unknown opcode ld.global.mystery.b32"),
        ("st.global.b32", "red.global.add.f32", "atomics have no fixed order"),
        ("bar.sync \t0", "bar.sync \t1", "unknown barrier"),
        ("bar.sync \t0", "vote.sync.any.pred \t%p1, %p1, -1", "unknown opcode vote.sync.any.pred"),
    ],
)  # fmt: skip
def test_an_unknown_modifier_is_an_error_that_names_it(old: str, new: str, message: str) -> None:
    def damage(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    with pytest.raises(UnknownPtx, match=message):
        emulate([row_sums()], damage)


def test_bytes_that_are_not_written_and_bytes_that_are_written_twice_are_reported() -> None:
    x, y = torch.randn(1024), torch.randn(1024)
    launch = Launch(kernels.copy, (2, 1, 1), {"x": x, "y": y, "size": 1024}, {"BLOCK": 512})
    device = Device()
    device.run(launch, programs=[(0, 0, 0)])
    assert device.written_faults([x], [y]) == ["2048 of 4096 bytes of y were not written"]
    device = Device()
    device.run(launch, programs=[(0, 0, 0), (1, 0, 0), (1, 0, 0)])
    assert device.written_faults([x], [y]) == ["2048 of 4096 bytes of y were written twice or more"]


def test_a_byte_written_twice_by_one_instruction_is_reported() -> None:
    x, y = torch.randn(64), torch.randn(32)
    device = emulate([Launch(kernels.halve, (1, 1, 1), {"x": x, "y": y}, {"BLOCK": 64})])
    assert device.written_faults([x], [y]) == ["128 of 128 bytes of y were written twice or more"]


def test_written_inputs_and_results_that_no_launch_was_given_are_reported() -> None:
    x, y = torch.randn(64), torch.randn(64)
    device = emulate([Launch(kernels.copy, (1, 1, 1), {"x": x, "y": y, "size": 64}, {"BLOCK": 64})])
    assert device.written_faults([x, y], [torch.empty(3)]) == [
        "output 0 was given to no launch",
        "256 bytes of the input y were written",
    ]


def test_threads_that_exchange_through_global_memory_need_a_barrier_and_one_program() -> None:
    for block, grid, races in ((256, 1, []), (256, 2, []), (128, 2, ["reads"])):
        x, y, work = torch.randn(512), garbage(512, dtype=torch.float32), garbage(512, dtype=torch.float32)
        arguments = {"x": x, "work": work, "y": y, "shift": 128}
        launch = Launch(kernels.exchange, (grid, 1, 1), arguments, {"BLOCK": block, "BARRIER": True})
        found = emulate([launch]).faults
        assert [word for word in ("reads", "writes") if any(f" {word} bytes of work" in f for f in found)] == races
    launch = Launch(kernels.exchange, (1, 1, 1), arguments, {"BLOCK": 256, "BARRIER": False})
    assert (
        "reads bytes of work that other threads of the launch access in no fixed order" in emulate([launch]).faults[0]
    )


def test_writing_what_was_read_is_reported() -> None:
    x = torch.randn(64)
    same = Launch(kernels.copy, (1, 1, 1), {"x": x, "y": x, "size": 64}, {"BLOCK": 64})
    assert "writes bytes of x/y that other threads" in emulate([same]).faults[0]
