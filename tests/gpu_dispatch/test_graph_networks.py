"""Which lists of launches are captured in a CUDA graph, of Triton's kernels and of CUDA ones."""

from __future__ import annotations

import pytest
import torch

from mnv3_fast.testing.parity import parity_model
from tests.gpu_dispatch.graph_recorder import install

pytest.importorskip("triton")

from mnv3_fast.gpu import executor, first_use, graphs, launch
from mnv3_fast.gpu.executor import Executor
from mnv3_fast.gpu.network import Network
from mnv3_fast.models.description import describe_net
from mnv3_fast.ops.depthwise_conv import cuda_kernel as depthwise_conv
from mnv3_fast.ops.inverted_residual import cuda_gated_project
from mnv3_fast.ops.inverted_residual import cuda_kernel as inverted_residual
from tests.gpu_dispatch import fake_library


def launches_of(network: Network, channels: int) -> executor.Pass:
    network.device = torch.device("meta")
    x = torch.empty(1, channels, 32, 32, device="meta").contiguous(memory_format=torch.channels_last)
    runner = Executor(network)
    return runner._new_pass(x, runner._output(x))


@pytest.mark.parametrize("name", ["large", "small"])
def test_networks_are_captured_and_blocks_are_not(name: str) -> None:
    """Of a network all but the stem and the last layer is; of a block, which adds its input last, there is no use."""
    stages = describe_net(parity_model(name, size=32)).stages()
    whole = launches_of(Network(stages, torch.float32), 3)
    assert whole.inner == slice(1, len(whole.launches) - 1)
    blocks = [Network([stage], torch.float32) for stage in stages[1:] if stage.kind == stages[1].kind]
    counts = set()
    for block in blocks:
        one = launches_of(block, block.input_channels)
        inner = one.inner
        counts.add(len(one.launches[inner]))
        assert inner.start <= inner.stop <= len(one.launches)
    assert max(counts) < graphs.LEAST_LAUNCHES <= len(whole.launches) - 2


def test_cuda_kernels_are_captured_as_tritons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network whose layers take both, between the stem and the last layer."""
    kernels = (depthwise_conv.KERNEL, inverted_residual.KERNEL, cuda_gated_project.KERNEL)
    library = fake_library.install(
        fake_library.FakeLibrary({kernel.symbol: kernel.structure for kernel in kernels}), monkeypatch
    )
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: True)
    monkeypatch.setattr(fake_library.counts, "better", lambda question, gpu: "cuda")
    monkeypatch.setattr(launch.Launch, "run", lambda each: None)
    recorder = install(monkeypatch)
    monkeypatch.setattr(executor, "COPIED_BYTES", 0)
    network = Network(describe_net(parity_model("small", size=32)).stages(), torch.float16)
    network.device = torch.device("meta")
    runner, x = Executor(network), torch.empty(1, 3, 64, 64, dtype=torch.float16, device="meta")
    called = []
    for _ in range(3):
        runner.run(x)
        called.append([each.symbol for each in library.called])
        library.called.clear()
    assert called[0] == called[1] == called[2]
    assert {kernel.symbol for kernel in kernels} == set(called[0])
    words = recorder.words()
    plain = words[: words.index("capture")]
    recorded = [f"run {word.removeprefix('record ')}" for word in words if word.startswith("record")]
    plain = plain[: len(plain) // 2]  # of two calls
    assert recorded == plain[1:-1]
    assert words[-3:] == [plain[0], "replay", plain[-1]]
