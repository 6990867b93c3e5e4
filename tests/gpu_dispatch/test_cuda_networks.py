"""Whole passes where CUDA kernels are chosen: how many launches, what the library is given, what stays Triton's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import explanation, gpu
from mnv3_fast.engine.layer_times import layers_of
from mnv3_fast.models.description import describe_net
from mnv3_fast.testing.parity import parity_model

pytest.importorskip("triton")

from mnv3_fast.gpu import candidates, choice, counts, execute, first_use, kept, launch
from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.executor import Executor
from mnv3_fast.gpu.launch import CudaLaunch
from mnv3_fast.gpu.network import Network, block_launches, convolved
from mnv3_fast.gpu.packing import Block
from mnv3_fast.ops.depthwise_conv import cuda_kernel as depthwise_conv
from mnv3_fast.ops.elements import empty_nhwc
from mnv3_fast.ops.inverted_residual import cuda_gated_project
from mnv3_fast.ops.inverted_residual import cuda_kernel as inverted_residual
from tests.gpu_dispatch.fake_library import H100, STREAM, FakeLibrary, install

HALF = torch.float16
BETTER = counts.better
KERNELS = (depthwise_conv.KERNEL, inverted_residual.KERNEL, cuda_gated_project.KERNEL)
BLOCKS = {"large": (15, 8), "small": (11, 9)}
"""Inverted residual blocks of each network, and those with squeeze-excite (Howard et al. 2019, tables 1 and 2)."""


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: True)
    monkeypatch.setattr(kept, "_kept", {})
    return install(FakeLibrary({kernel.symbol: kernel.structure for kernel in KERNELS}), monkeypatch)


@pytest.fixture(scope="module", params=["large", "small"])
def engine(request: pytest.FixtureRequest) -> nn.Module:
    engine = mnv3_fast.freeze(parity_model(request.param, size=64))
    engine.net = request.param
    return engine


def executor_of(engine: nn.Module, dtype: torch.dtype = HALF) -> Executor:
    executor = Executor(execute.plan_executor(engine.plan, dtype).network)
    executor.network.device = torch.device("meta")  # passes take no memory
    return executor


def run(executor: Executor, batch: int = 1, size: int = 224) -> list[launch.AnyLaunch]:
    """A pass whose CUDA kernels the library starts; all launches in order."""
    asked: list[launch.AnyLaunch] = []

    def observe(each: launch.AnyLaunch) -> bool:
        asked.append(each)
        return not isinstance(each, CudaLaunch)

    with launch.observe(observe):
        executor.run(torch.empty(batch, 3, size, size, dtype=executor.network.dtype, device="meta"))
    return asked


def names(launches: list[launch.AnyLaunch]) -> Counter:
    return Counter(each.kernel.__name__ for each in launches)


def test_launches_of_a_pass_of_one_image(engine: nn.Module, library: FakeLibrary) -> None:
    asked = run(executor_of(engine))
    blocks, squeezed = BLOCKS[engine.net]
    # Of every block with an expansion one, with squeeze-excite two. The first has none: depthwise, project, small's also
    # a gate. Stem, last convolution, pool and two linear layers are one each.
    first = engine.net == "small"
    assert len(asked) == (blocks - 1) + (squeezed - first) + (2 + first) + 5
    assert names(asked)["inverted_residual_cuda_kernel"] == blocks - 1
    assert names(asked)["gated_project_cuda_kernel"] == squeezed - first
    started = [each for each in asked if isinstance(each, CudaLaunch)]
    assert [each.symbol for each in library.called] == [each.kernel.symbol for each in started]
    for called, each in zip(library.called, started, strict=True):
        assert called.stream == STREAM
        grid = tuple(called.fields[f"grid_{axis}"] for axis in "xyz")
        assert (grid, called.fields["shared"]) == (each.grid, each.shared)
        assert each.shared <= 99 << 10


def test_launches_of_what_is_counted_to_be_better(engine: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an H100; without CUDA kernels they are 57 and 46."""
    monkeypatch.setattr(counts, "better", BETTER)
    assert len(run(executor_of(engine))) <= 40


def test_a_pass_is_made_anew_where_choices_are_others(engine: nn.Module) -> None:
    executor = executor_of(engine)
    whole = names(run(executor))
    with choice.force(inverted_residual="triton"):
        layers = names(run(executor))
        with choice.force(depthwise_conv="triton"):
            triton = names(run(executor))
    assert names(run(executor)) == whole
    blocks, _ = BLOCKS[engine.net]
    assert (layers["depthwise_conv_cuda_kernel"], layers["depthwise_conv_kernel"]) == (blocks, 0)
    assert (triton["depthwise_conv_cuda_kernel"], triton["depthwise_conv_kernel"]) == (0, blocks)


def test_what_stays_tritons(engine: nn.Module, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are switched off, float32 blocks, and all of it in the interpreter."""
    monkeypatch.setattr(counts, "better", lambda question, gpu: "cuda")
    wide = names(run(executor_of(engine, torch.float32), size=64))
    assert wide["inverted_residual_cuda_kernel"] == 0
    assert wide["depthwise_conv_cuda_kernel"] == BLOCKS[engine.net][0]
    executor = executor_of(engine)
    executor.upcast = True
    assert not any("cuda" in name for name in names(run(executor, size=64)))
    off = "inverted_residual_cuda"
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: kernel != off)
    executor = executor_of(engine)
    assert names(run(executor, size=64))["inverted_residual_cuda_kernel"] == 0
    assert execute.is_usable(executor)  # a CUDA kernel that is off does not take Triton's with it
    off = "depthwise_conv"
    assert not execute.is_usable(executor)


def block_of(network: Network) -> Block:
    return next(step for _, step in network.steps if isinstance(step, Block) and step.expand)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_blocks_kernels_take_aligned_maps(engine: nn.Module, shift: int) -> None:
    """Of a map that starts between two words the layers are Triton's or the depthwise kernel's."""
    block = block_of(execute.plan_executor(engine.plan, HALF).network)
    channels = block.expand.weight.shape[1]
    strides = (28 * 28 * channels, 1, 28 * channels, channels)
    input = torch.empty(28 * 28 * channels + shift, dtype=HALF, device="meta")
    input = input.as_strided((1, channels, 28, 28), strides, shift)
    size = convolved(input.shape, block.depthwise)[2:]
    output = empty_nhwc(input, 1, block.project.channels, *size)
    found = names(block_launches(block, input, output, Arena(torch.device("meta"))))
    assert found["inverted_residual_cuda_kernel"] == 1 - shift


def test_weights_are_packed_for_cuda_kernels_where_these_are(
    engine: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def packed(dtype: torch.dtype) -> Any:
        monkeypatch.setattr(kept, "_kept", {})
        return block_of(execute.plan_executor(engine.plan, dtype).network).fused

    assert packed(HALF) is not None
    assert packed(torch.float32) is None
    monkeypatch.setattr(choice, "unusable_reason", lambda device: "there are none")
    assert packed(HALF) is None
    with choice.assume(H100):
        assert packed(HALF) is not None


def test_weights_that_were_packed_without_are_an_error_where_the_kernel_is_asked_for(
    engine: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(choice, "unusable_reason", lambda device: "there are none")
        executor = executor_of(engine)
    with choice.assume(H100), pytest.raises(choice.NoKernel, match="its weights were packed without it$"):
        run(executor, size=64)


def test_what_explain_says(engine: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, _ = BLOCKS[engine.net]
    said = gpu.variants(engine.plan, HALF, (1, 3, 224, 224))
    wanted = ["Triton", "CUDA depthwise_conv: counted", *["CUDA inverted_residual: counted"] * (blocks - 1)]
    assert said == [*wanted, *["Triton"] * 4]
    monkeypatch.setattr(choice, "unusable_reason", lambda device: "there are none")
    said = gpu.variants(engine.plan, HALF, (1, 3, 224, 224))
    assert said == ["Triton", *["Triton: no CUDA kernels: there are none"] * blocks, *["Triton"] * 4]


class OnGpu(Tensor):
    """Says that it is there."""

    is_cuda = True


def test_the_rows_of_an_engine_on_a_gpu_have_it(engine: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def variants(*given: Any) -> list[str]:
        asked.append(given[1:])
        return ["CUDA inverted_residual: tuned"] * len(layers_of(given[0], None))

    monkeypatch.setattr(gpu, "variants", variants)
    monkeypatch.setitem(engine._buffers, "plan", engine.plan.as_subclass(OnGpu))
    x = torch.empty(1, 3, 64, 64)
    rows = [row for row in explanation._engine_rows("", engine, x) if row.kernel == "run_plan"]
    assert {row.instruction_set for row in rows} == {"CUDA inverted_residual: tuned"}
    assert "run_plan (CUDA inverted_residual: tuned)" in str(rows[3])
    assert asked == [(torch.float32, (1, 3, 64, 64))]
    rows = explanation._engine_rows("", engine, None)
    assert {row.instruction_set for row in rows} == {None}  # what is chosen follows from the input


def test_the_arena_of_a_pass_is_as_large_as_it_takes(engine: nn.Module) -> None:
    """What is taken before memory is allocated and after it is the same, with counters that start at zero."""
    network = executor_of(engine).network
    network.device = torch.device("cpu")
    image = torch.empty(1, 3, 64, 64, dtype=HALF)
    arena = network.arena(image)
    before = dict(arena.buffers)
    output: Tensor = torch.empty(network.output_shape(image.shape), dtype=HALF)
    made = network.launches(image, output, arena)
    assert {key: id(buffer) for key, buffer in arena.buffers.items()} == {k: id(b) for k, b in before.items()}
    counters = [buffer for (_, dtype), buffer in arena.buffers.items() if dtype is torch.int32]
    assert all(not buffer.any() for buffer in counters)
    again = network.launches(image, output, Arena(torch.device("meta")))
    assert [(each.kernel.__name__, each.grid) for each in made] == [(each.kernel.__name__, each.grid) for each in again]


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_parameters_that_start_anywhere_are_copied(dtype: torch.dtype) -> None:
    """Parts of one buffer, as optimisers and sharded training keep them; the kernels refuse what is not aligned."""
    model = parity_model("small", size=64).to(dtype)
    flat, place = torch.empty(1 + sum(each.numel() for each in model.parameters()), dtype=dtype), 1
    for each in model.parameters():
        part = flat[place : place + each.numel()].view(each.shape)
        each.data = part.copy_(each.data)
        place += each.numel()
    assert not any(launch.is_aligned(each) for each in model.parameters())
    executor = Executor(Network(describe_net(model).stages(), HALF))
    executor.network.device = torch.device("meta")
    found = [each for each in run(executor) if isinstance(each, CudaLaunch)]
    assert {each.kernel.name for each in found} == {kernel.name for kernel in KERNELS}
    tensors = [value for each in found for value in each.arguments.values() if isinstance(value, Tensor)]
    assert all(map(launch.is_aligned, tensors))


@pytest.mark.parametrize(("size", "count"), [((7, 7), 3), ((1, 3), 1)])
def test_a_wide_block_that_fits_on_small_maps_alone(size: tuple[int, int], count: int) -> None:
    inputs, hidden = 1280, 80
    window = (1, 1, 2, 2, 2, 2, 1, 1)
    question = choice.Question("inverted_residual", HALF, (1, inputs, *size), (5, 5), window, hidden=hidden, out=24)
    assert choice.is_known(question) == (count == 1)
    block = candidates._block(question)
    input, output = (torch.empty(1, channels, *size, dtype=HALF, device="meta") for channels in (inputs, 24))
    assert len(block_launches(block, input, output, Arena(torch.device("meta")))) == count
