"""What ``tune`` runs and compares before it times anything, by Triton's kernels in the interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from mnv3_fast.gpu import launch, tuning
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.trial import Layer, Trial
from mnv3_fast.models.description import describe_net
from mnv3_fast.testing.parity import parity_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    """Depthwise layers: of a block with squeeze-excite, and of one with an expansion and stride 2."""
    stages = describe_net(parity_model("small", size=32)).stages()[:3]
    found = tuning.layers_of(stages, (2, 3, 32, 32), torch.float32)
    assert {layer.why for layer in found} == {"no CUDA kernels: the device is cpu"}
    return [layer for layer in found if layer.question.op == "depthwise_conv"]


def test_the_kernels_of_a_layer_are_compared(layers: list[Layer]) -> None:
    for layer in layers:
        trial = Trial(layer, CPU)
        trial.run("triton")
        trial.compare()
        assert trial.missing == {}
        names = [each.kernel.__name__ for each in trial.timed()["triton"]]
        gate = ["squeeze_excite_gate_kernel"] if layer.question.sums else []
        assert names == ["depthwise_conv_kernel", *gate]
    assert [layer.question.sums for layer in layers] == [True, False]


def lost(each: AnyLaunch) -> bool:
    if each.kernel.__name__ != "depthwise_conv_kernel":
        return False
    each.arguments["output"].zero_()  # what lies there otherwise may be what another trial computed
    return True


def test_a_launch_that_is_lost_is_found(layers: list[Layer]) -> None:
    for layer in layers:
        trial = Trial(layer, CPU)
        with launch.observe(lost):
            trial.run("triton")
        trial.compare()
        assert trial.missing["triton"].startswith("wrong: ")
        assert trial.wrong == {"triton"}
        assert trial.timed() == {}
