"""Launches of CUDA kernels: what the library is given, what becomes of its errors, and when which kernel runs."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from mnv3_fast.gpu import arena, choice, cuda_library, dispatch, first_use, launch
from mnv3_fast.gpu.cuda_library import CudaKernel
from mnv3_fast.gpu.forced_run import run_kernel
from mnv3_fast.gpu.launch import CudaLaunch
from mnv3_fast.ops.depthwise_conv import cuda_kernel
from mnv3_fast.testing import on_device
from mnv3_fast.testing.cases import Case, depthwise
from tests.gpu_dispatch.fake_library import STREAM, WORDS, FakeLibrary, install

HALF = torch.float16
CPU = torch.device("cpu")
STREAM_OF = cuda_library.stream_of
CASE = Case("depthwise_conv", "recorded", depthwise(2, 24, 9, 17, 3, activation="hardswish", return_mean=True))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary({"mnv3_cuda_depthwise_conv": cuda_kernel.Arguments})
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: True)
    return install(fake, monkeypatch)


def passed_over(each: launch.AnyLaunch) -> bool:
    """What Triton would start stays undone."""
    return not isinstance(each, CudaLaunch)


def run(
    op: str = "depthwise_conv", case: Case = CASE, dtype: torch.dtype = HALF
) -> tuple[tuple, Any, list[launch.AnyLaunch]]:
    """The arguments and output of an op, and its launches."""
    seen: list[launch.AnyLaunch] = []

    def observe(each: launch.AnyLaunch) -> bool:
        seen.append(each)
        return passed_over(each)

    args = on_device.arguments(case, dtype)
    with launch.observe(observe):
        return args, dispatch.RUN[op](*args), seen


def names(case: Case = CASE, dtype: torch.dtype = HALF) -> list[str]:
    return [each.kernel.__name__ for each in run(case=case, dtype=dtype)[2]]


def test_what_the_library_is_given(library: FakeLibrary) -> None:
    pytest.importorskip("triton")
    args, (output, _), (made, adding) = run("depthwise_conv_mean")
    assert (made.kernel.__name__, adding.kernel.__name__) == ("depthwise_conv_cuda_kernel", "channel_sums_kernel")
    (called,) = library.called
    assert (called.symbol, called.stream) == ("mnv3_cuda_depthwise_conv", STREAM)
    pointers = {name: called.fields.pop(name) for name in ("input", "weight", "bias", "output", "sums")}
    assert (pointers["input"], pointers["output"]) == (args[0].data_ptr(), output.data_ptr())
    assert pointers["sums"] == adding.arguments["input"].data_ptr()
    assert None not in pointers.values()
    wanted = {
        "height": 9, "width": 17, "out_height": 9, "out_width": 17, "channels": 24,
        "kernel": 3, "stride": 1, "pad_left": 1, "pad_top": 1, "dtype": 1, "activation": 2,
    }  # fmt: skip
    assert {name: called.fields[name] for name in wanted} == wanted
    grid = tuple(called.fields[f"grid_{axis}"] for axis in "xyz")
    assert (grid, called.fields["shared"]) == (made.grid, made.shared)
    assert grid[2] == 2  # images


def test_which_kernel_runs(library: FakeLibrary) -> None:
    pytest.importorskip("triton")
    assert names() == ["depthwise_conv_cuda_kernel"]
    assert library.called[-1].fields["sums"] is None
    assert names(dtype=torch.float32) == ["depthwise_conv_kernel"]  # nothing was counted for it
    with choice.force(depthwise_conv="cuda"):
        assert names(dtype=torch.float32) == ["depthwise_conv_cuda_kernel"]
    with choice.force(depthwise_conv="triton"):
        assert names() == ["depthwise_conv_kernel"]
    assert names(Case("depthwise_conv", "7", depthwise(1, 8, 9, 9, 7))) == ["depthwise_conv_kernel"]
    assert len(library.called) == 2


def test_a_kernel_that_is_switched_off_leaves_the_layer_to_triton(
    library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: not kernel.endswith("_cuda"))
    assert names() == ["depthwise_conv_kernel"]
    assert library.called == []


def test_an_error_of_cudas(library: FakeLibrary) -> None:
    library.status = 701
    with pytest.raises(RuntimeError) as raised:
        run()
    assert str(raised.value) == f"depthwise_conv: its CUDA kernel was not started: {WORDS.decode()}"


def test_a_library_of_another_version(library: FakeLibrary) -> None:
    library.structures.clear()
    with pytest.raises(RuntimeError) as raised:
        run()
    assert str(raised.value) == "depthwise_conv: _cuda.so is of another version: it lacks mnv3_cuda_depthwise_conv"


def test_memory_of_the_host_is_refused(library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_library, "stream_of", STREAM_OF)
    with pytest.raises(RuntimeError, match="^mnv3_fast: a CUDA kernel's tensors must be on a CUDA device, got cpu$"):
        CudaLaunch(cuda_kernel.KERNEL, (1, 1, 1), {"input": torch.zeros(1)}, 32).run()
    assert library.called == []


class Pair(ctypes.Structure):
    """Two fields, one of which the launch fills."""

    _fields_ = (("x", ctypes.c_void_p), ("threads", ctypes.c_int32))


def test_a_launch_has_the_fields_of_its_structure() -> None:
    kernel, x = CudaKernel("pair", "mnv3_cuda_pair", Pair), torch.zeros(1)
    made = CudaLaunch(kernel, (1, 1, 1), {"x": x}, 64, constants={"b": 1, "a": 2})
    assert (kernel.filled(made).x, kernel.filled(made).threads, made.warps) == (x.data_ptr(), 64, 2)
    assert made.key() == ("pair_cuda_kernel", (("a", 2), ("b", 1)))
    for arguments, got in (({}, "['threads']"), ({"x": x, "y": 1}, "['threads', 'x', 'y']")):
        with pytest.raises(TypeError) as raised:
            kernel.filled(CudaLaunch(kernel, (1, 1, 1), arguments, 64))
        assert str(raised.value) == f"pair: its structure has the fields ['threads', 'x'], got {got}"
    with pytest.raises(ValueError, match="^pair_cuda: the input is too large, it takes"):
        CudaLaunch(kernel, (1, 65536, 1), {"x": x}, 64)


def test_the_check_sees_to_it_that_what_it_asks_for_runs(library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    args = on_device.arguments(CASE, HALF)
    for kernel in ("depthwise_conv_cuda", "depthwise_conv"):
        with choice.only(kernel), launch.observe(passed_over):
            monkeypatch.setattr(launch.Launch, "run", lambda self: None)
            run_kernel("depthwise_conv", args, CPU)
    assert len(library.called) == 1
    monkeypatch.setattr(choice, "choose", lambda question, device: "triton")
    with choice.only("depthwise_conv_cuda"), pytest.raises(RuntimeError) as raised:
        run_kernel("depthwise_conv", args, CPU)
    assert str(raised.value) == "depthwise_conv: its cuda kernel is asked for, and did not run"
    monkeypatch.setattr(choice, "choose", lambda question, device: "cuda")
    with choice.only("depthwise_conv"), pytest.raises(RuntimeError, match="its triton kernel is asked for, and did"):
        run_kernel("depthwise_conv", args, CPU)


def test_a_counter_starts_at_zero_and_is_left_to_its_writers() -> None:
    memory = arena.Arena(CPU)
    for _ in range(2):
        memory.take_zeroed("arrivals", (3,), torch.int32)
        memory.take("parts", (2, 2), torch.float32)
        if not memory.buffers:
            memory.allocate()
    counter = memory.take_zeroed("arrivals", (3,), torch.int32)
    assert counter.tolist() == [0, 0, 0]
    counter[1] = 5
    assert memory.take_zeroed("arrivals", (2,), torch.int32).tolist() == [0, 5]
