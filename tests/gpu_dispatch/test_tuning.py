"""Measuring which kernel of a layer is faster, on a GPU and with a clock that tests made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from mnv3_fast.gpu import choice, counts, first_use, graphs, trial, tuned, tuning
from mnv3_fast.gpu.tuned import Choices
from mnv3_fast.gpu.tuning import Result, decide
from mnv3_fast.models.description import describe_net
from mnv3_fast.ops.network.layout import Stage
from mnv3_fast.testing.measure import Timing
from mnv3_fast.testing.parity import parity_model
from tests.gpu_dispatch import fake_gpu
from tests.gpu_dispatch.common import KIND, one_channel_wrong
from tests.gpu_dispatch.fake_gpu import FakeGpu
from tests.gpu_dispatch.graph_recorder import Recorder

CPU = torch.device("cpu", 0)
HALF = torch.float16
SHAPE = (2, 3, 40, 40)


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    """The stem, a block with squeeze-excite and no expansion, one with stride 2, and one with a residual."""
    return describe_net(parity_model("small", size=40)).stages()[:4]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    """The CPU as a GPU whose CUDA kernels passed their check; by counting Triton's are better."""
    return fake_gpu.install(monkeypatch, tmp_path)


@pytest.fixture
def choices(gpu: FakeGpu) -> Choices:
    """What is kept, which the library asks."""
    return tuned.choices()


def tune(gpu: FakeGpu, stages: list[Stage], dtype: torch.dtype = HALF) -> list[Result]:
    return list(tuning.tune(tuning.layers_of(stages, SHAPE, dtype), CPU, gpu))


@pytest.mark.usefixtures("gpu")
def test_the_layers_of_a_network(stages: list[Stage]) -> None:
    found = tuning.layers_of(stages, SHAPE, HALF)
    assert [(layer.name, layer.question.op, layer.question.shape) for layer in found] == [
        ("block 1", "inverted_residual", (2, 16, 20, 20)),
        ("block 1", "depthwise_conv", (2, 16, 20, 20)),
        ("block 2", "inverted_residual", (2, 16, 10, 10)),
        ("block 2", "depthwise_conv", (2, 72, 10, 10)),
        ("block 3", "inverted_residual", (2, 24, 5, 5)),
        ("block 3", "depthwise_conv", (2, 88, 5, 5)),
    ]
    assert [layer.question.sums for layer in found] == [False, True, False, False, False, False]
    assert [layer.is_open for layer in found] == [False, True, True, True, True, True]
    assert found[0].why.startswith("no kernel for inverted_residual 3x3 in float16 of (2, 16, 20, 20)")
    assert not any(layer.is_open for layer in tuning.layers_of(stages, SHAPE, torch.float32)[::2])


def test_the_faster_kernel_is_kept_and_chosen(gpu: FakeGpu, stages: list[Stage], choices: Choices) -> None:
    gpu.seconds["inverted_residual"] = 2e-6
    found = tune(gpu, stages)
    assert [(result.layers, result.question.op) for result in found] == [
        (("block 1",), "depthwise_conv"),
        (("block 2",), "depthwise_conv"),
        (("block 3",), "depthwise_conv"),
        (("block 2",), "inverted_residual"),
        (("block 3",), "inverted_residual"),
    ]
    assert [result.measured for result in found] == ["cuda"] * 5
    assert [result.used for result in found] == ["cuda"] * 5
    assert found[1].seconds == pytest.approx({"triton": 2e-6, "cuda": 1e-6})
    assert found[1].faster_by == pytest.approx(2)
    assert found[1].rounds == tuning.ROUNDS
    assert found[3].seconds == pytest.approx({"triton": 3e-6, "cuda": 2e-6})  # with the depthwise kernel that won
    for result in found:
        assert choice.reason(result.question, CPU) == ("cuda", "tuned")
        other = replace(result.question, shape=(1, *result.question.shape[1:]))
        assert choice.reason(other, CPU) == ("triton", "counted")
    again = Choices(lambda device: first_use.key_of(*KIND), choices._folder)  # another process
    assert [again.lookup(result.question, CPU) for result in found] == ["cuda"] * 5


@pytest.mark.parametrize("counted", choice.VARIANTS)
def test_what_is_timed(counted: str, gpu: FakeGpu, stages: list[Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a depthwise layer its kernel, and the gate that reads its sums; of a block all of its kernels.

    Whichever is better by counting: a depthwise layer is measured outside of a fused block.
    """
    monkeypatch.setattr(counts, "better", lambda question, gpu: counted)
    tune(gpu, stages)
    triton, cuda, gate = "depthwise_conv_kernel", "depthwise_conv_cuda_kernel", "squeeze_excite_gate_kernel"
    layers = ["pointwise_conv_kernel", cuda, "pointwise_conv_kernel"]  # faster by itself, so it is in the block
    fused = ["inverted_residual_cuda_kernel"]
    assert gpu.timed == [[triton, gate], [cuda, gate], [triton], [cuda], [triton], [cuda], *[layers, fused] * 2]


def test_what_is_no_faster_is_left_to_counting(gpu: FakeGpu, stages: list[Stage], choices: Choices) -> None:
    first = tune(gpu, stages)
    assert {choice.reason(result.question, CPU)[1] for result in first} == {"tuned"}
    gpu.seconds |= {"depthwise_conv_cuda": 2e-6, "inverted_residual": 4e-6}  # as fast as the others
    for result in tune(gpu, stages):
        assert (result.measured, result.used) == (None, "triton")
        assert choice.reason(result.question, CPU) == ("triton", "counted")  # what was kept is forgotten
    assert choices.lookup(first[0].question, CPU) is None


def test_layers_that_ask_the_same_are_measured_once(gpu: FakeGpu, stages: list[Stage]) -> None:
    found = tune(gpu, [*stages, stages[3], stages[3]])
    assert [result.layers for result in found] == [
        ("block 1",), ("block 2",), ("block 3", "block 4", "block 5"), ("block 2",), ("block 3", "block 4", "block 5"),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, HALF, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("wrong", "right"), [("cuda", "triton"), ("triton", "cuda")])
def test_a_wrong_kernel_is_not_timed_and_not_chosen(
    wrong: str, right: str, dtype: torch.dtype, gpu: FakeGpu, stages: list[Stage]
) -> None:
    gpu.damage[wrong] = one_channel_wrong if dtype is torch.float32 else lambda x: 3 * one_channel_wrong(x) - 2 * x
    for result in tune(gpu, stages[:2], dtype):
        assert result.wrong == (wrong,)
        assert list(result.seconds) == [right]
        assert result.missing[wrong].startswith("wrong: max_error 0.0") or "relative_error" in result.missing[wrong]
        assert result.faster_by is None
        assert result.measured == result.used == right
        assert choice.reason(result.question, CPU) == (right, "tuned")
    assert not any("depthwise_conv_cuda_kernel" in names for names in gpu.timed) or wrong == "triton"


def test_every_image_is_compared(gpu: FakeGpu, stages: list[Stage]) -> None:
    def last_image_wrong(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:-1], one_channel_wrong(x[-1:]) * 1.1])

    gpu.damage["cuda"] = last_image_wrong
    layers = tuning.layers_of(stages[:2], (trial.CHUNK + 1, 3, 16, 16), HALF)
    (result,) = tuning.tune(layers, CPU, gpu)
    assert result.wrong == ("cuda",)


def test_what_is_not_written_is_wrong(gpu: FakeGpu, stages: list[Stage]) -> None:
    def nothing(launches: list[Any]) -> None:
        if not any("cuda" in each.kernel.__name__ for each in launches):
            gpu.run(launches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial.launch, "run", nothing)
        (result,) = tune(gpu, stages[:2])
    assert result.missing == {"cuda": "wrong: output: NaN in other places than torch has them"}


def raises(error: Exception) -> Any:
    def damage(x: torch.Tensor) -> torch.Tensor:
        raise error

    return damage


def test_a_kernel_that_raises_is_not_chosen(gpu: FakeGpu, stages: list[Stage], choices: Choices) -> None:
    gpu.damage["cuda"] = raises(RuntimeError("depthwise_conv: its CUDA kernel\nwas not started"))
    (result,) = tune(gpu, stages[:2])
    assert result.missing == {"cuda": "RuntimeError: depthwise_conv: its CUDA kernel was not started"}
    assert (result.wrong, result.measured) == (("cuda",), "triton")
    gpu.damage["triton"] = gpu.damage["cuda"]
    (result,) = tune(gpu, stages[:2])
    assert (result.wrong, result.measured, result.used, result.seconds) == (("cuda", "triton"), None, "triton", {})
    assert choices.lookup(result.question, CPU) is None


def test_too_little_memory_says_nothing_of_a_kernel(gpu: FakeGpu, stages: list[Stage], choices: Choices) -> None:
    gpu.damage["cuda"] = raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    (result,) = tune(gpu, stages[:2])
    assert result.missing == {"cuda": "out of memory"}
    assert (result.wrong, result.measured, result.used) == ((), None, "triton")
    assert choices.lookup(result.question, CPU) is None


def test_a_kernel_that_fails_while_it_is_timed(gpu: FakeGpu, stages: list[Stage]) -> None:
    def dies(turn: int) -> float:
        if turn > 5:
            raise RuntimeError("unspecified launch failure")
        return 1e-9

    gpu.seconds["depthwise_conv_cuda"] = dies
    (result,) = tune(gpu, stages[:2])
    assert result.missing == {"cuda": "RuntimeError: unspecified launch failure"}
    assert result.measured == "triton"


@pytest.mark.parametrize("error", [torch.AcceleratorError("CUDA error: an illegal memory access"), KeyboardInterrupt()])
def test_what_was_measured_until_the_end_is_kept(
    error: BaseException, gpu: FakeGpu, stages: list[Stage], choices: Choices
) -> None:
    results = tuning.tune(tuning.layers_of(stages, SHAPE, HALF), CPU, gpu)
    first = next(results)
    gpu.damage["cuda"] = raises(error)  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        next(results)
    assert choice.reason(first.question, CPU) == ("cuda", "tuned")
    assert choices.path_of(CPU).exists()


def test_settings_are_left_as_they_were(gpu: FakeGpu, stages: list[Stage]) -> None:
    """Products without TF32 while kernels are compared, and only then."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before, seen = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark), []
    gpu.damage["cuda"] = lambda x: seen.append((cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)) or x
    for _ in tuning.tune(tuning.layers_of(stages[:2], SHAPE, torch.float32), CPU, gpu):
        assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == before
        assert not torch.is_inference_mode_enabled()
    assert seen == [(False, False, False)]
    assert choice.forced("depthwise_conv") is None


def timings(triton: list[float], cuda: list[float]) -> dict[str, Timing]:
    return {"triton": Timing(tuple(triton), tuple(triton)), "cuda": Timing(tuple(cuda), tuple(cuda))}


EVEN = [1.0] * tuning.ROUNDS


@pytest.mark.parametrize(
    ("cuda", "variant", "gain", "rounds", "is_clear"),
    [
        ([0.9] * 11, "cuda", 1 / 0.9, 11, True),
        ([1.1] * 11, "triton", 1.1, 11, True),
        ([0.99] * 11, "cuda", 1 / 0.99, 11, False),  # always, and by less than 2%
        ([1.01] * 11, "triton", 1.01, 11, False),
        ([0.9] * 10 + [1.5], "cuda", 1 / 0.9, 10, True),
        ([0.9] * 9 + [1.01] * 2, "cuda", 1 / 0.9, 9, False),  # by much, and not often enough
        ([0.5] * 5 + [1.03] * 6, "triton", 1.03, 6, False),
        ([1.0] * 11, "triton", 1.0, 0, False),
        ([0.01] + [1.05] * 10, "triton", 1.05, 10, True),  # one round that went wrong moves no median
    ],
)
def test_a_winner_wins_by_more_than_noise(
    cuda: list[float], variant: str, gain: float, rounds: int, is_clear: bool
) -> None:
    found = decide(timings(EVEN, cuda))
    assert found == (variant, pytest.approx(gain), rounds, is_clear)
    drift = [1.0 + i for i in range(tuning.ROUNDS)]  # a clock that sinks meets both alike
    assert decide(timings(drift, [d * c for d, c in zip(drift, cuda, strict=True)])) == (
        variant, pytest.approx(gain), rounds, is_clear,
    )  # fmt: skip


def test_a_graph_holds_the_repetitions(recorder: Recorder) -> None:
    ran: list[str] = []
    launches: list[Any] = [SimpleNamespace(run=lambda name=name: ran.append(name)) for name in ("expand", "depthwise")]
    clock = object.__new__(tuning.GraphClock)
    clock.device = CPU
    replay = clock.repeated(launches, 3)
    assert ran == ["expand", "depthwise"] * 3
    assert recorder.words() == ["capture", "end"]
    replay()
    assert recorder.words() == ["replay"]
    with graphs.turn() as is_ours, pytest.raises(RuntimeError, match="another CUDA graph is being captured"):
        assert is_ours
        clock.repeated(launches, 3)
    assert recorder.graphs == 1
