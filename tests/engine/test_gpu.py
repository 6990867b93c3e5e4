"""Freezing and accelerating on a GPU that is not there: what is decided before anything is launched."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import mnv3_fast
from mnv3_fast.engine.op import OP
from mnv3_fast.nn import base, conditions
from mnv3_fast.testing.parity import parity_model


@pytest.fixture(scope="module")
def engine() -> torch.nn.Module:
    return mnv3_fast.freeze(parity_model("small"))


def on_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on a GPU that is not there."""
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.mark.parametrize(("place", "dtype"), [(0, torch.float32), (1, torch.float16), (2, torch.bfloat16)])
def test_the_output_has_the_engines_dtype(engine: torch.nn.Module, place: int, dtype: torch.dtype) -> None:
    geometry = [engine.geometry[0] + 2 * place, *engine.geometry[1:]]
    with FakeTensorMode() as mode:
        plan = mode.from_tensor(engine.plan).to("cuda")
        for given in (dtype, torch.uint8):
            image = torch.empty(2, 3, 224, 224, dtype=given, device="cuda")
            output = OP(image, plan, geometry)
            assert (output.shape, output.dtype, output.device.type) == ((2, 1000), dtype, "cuda")


def test_a_geometry_of_no_dtype(engine: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="run_plan: geometry must start with a number from 0 to 5, got 6"):
        OP(torch.zeros(1, 3, 32, 32, device="meta"), engine.plan.to("meta"), [6, *engine.geometry[1:]])


def test_an_engine_stays_on_its_device(engine: torch.nn.Module) -> None:
    with pytest.raises(
        RuntimeError, match="cannot be moved from cpu to meta; freeze the model there: mnv3_fast.freeze"
    ):
        engine.to("meta")
    assert engine.half() is engine
    assert engine.plan.device.type == "cpu"


def test_an_engine_of_half_precision_loaded_on_the_cpu(engine: torch.nn.Module) -> None:
    """As ``torch.load(..., map_location="cpu")`` makes one; bytes would run, and come out as float32."""
    half = copy.deepcopy(engine)
    half.geometry[0] += 2
    for image in (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32).half(), torch.zeros(1, 3, 32, 32).byte()):
        with pytest.raises(RuntimeError, match=r"^Engine: this one is float16, for a GPU, and was loaded on the CPU, "):
            half(image)


def test_weights_that_are_buffers() -> None:
    model, image = parity_model("small"), torch.randn(1, 3, 32, 32)
    expected = mnv3_fast.freeze(model)(image)
    for module in model.modules():
        for name in list(module._parameters):
            tensor = module._parameters.pop(name)
            module.register_buffer(name, None if tensor is None else tensor.detach())
    assert torch.equal(mnv3_fast.freeze(model)(image), expected)


def test_other_dtypes_are_for_gpus() -> None:
    model = parity_model("small")
    with pytest.raises(ValueError, match="freeze: dtype torch.float16 does not exist yet on cpu, only torch.float32"):
        mnv3_fast.freeze(model, torch.float16)
    with pytest.raises(ValueError, match=r"torch.bfloat16 on cpu, engines are float32 on the CPU, also float16 and"):
        mnv3_fast.freeze(model.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inputs_on_a_gpu_run_fused(dtype: torch.dtype) -> None:
    assert conditions.input_reason(on_gpu((1, 16, 8, 8), dtype)) is None
    assert not conditions.plan_may_run(on_gpu((1, 16, 8, 8), dtype))  # op by op


def test_what_does_not_run_fused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x = on_gpu((1, 16, 8, 8), torch.float64)
    assert conditions.input_reason(x) == "the input is torch.float64, the kernels are float32"
    monkeypatch.setattr(mnv3_fast.gpu, "TRITON", False)
    reason = conditions.input_reason(on_gpu((1, 16, 8, 8), torch.float16))
    assert reason == "Triton is not installed, which torch brings on Linux with a GPU"


def test_autocast_says_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    x = on_gpu((1, 16, 8, 8), torch.float32)
    assert conditions.as_autocast(x) is x
    # torch.autocast("cuda") switches itself off without a GPU.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert conditions.as_autocast(x).dtype is torch.bfloat16
    assert conditions.as_autocast(torch.zeros(1)).dtype is torch.float32


def export_on_gpu(weights: torch.dtype, image: torch.dtype) -> torch.export.ExportedProgram:
    """An accelerated network of a dtype on a GPU that is not there, captured on an image of a dtype."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), torch.no_grad():
        torch.set_default_dtype(weights)
        try:
            model = torchvision.models.mobilenet_v3_small().eval()
        finally:
            torch.set_default_dtype(torch.float32)
        mnv3_fast.accelerate(model, inplace=True)
        return torch.export.export(model, (torch.empty(2, 3, 224, 224, dtype=image),), strict=True)


def test_blocks_ask_whether_weights_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = mnv3_fast.accelerate(parity_model("small").features[:4].eval())[2], torch.randn(1, 16, 8, 8)
    monkeypatch.setattr(base, "weights_fit", lambda x, tensors: False)
    monkeypatch.setattr(base, "run_entry", lambda x, entry: pytest.fail("ran fused"))
    with torch.no_grad():
        block(x)
        monkeypatch.setattr(base, "weights_fit", lambda x, tensors: True)
        with pytest.raises(pytest.fail.Exception, match="ran fused"):
            block(x)


def test_weights_beside_an_input_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single, brain = (on_gpu((8,), dtype) for dtype in (torch.float16, torch.float32, torch.bfloat16))
    assert conditions.weights_fit(half, [half, single])  # BatchNorm in float32, which torch takes, too
    assert not conditions.weights_fit(half, [single])
    assert not conditions.weights_fit(single, [single, half])
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    assert conditions.weights_fit(half, [single])
    assert not conditions.weights_fit(half, [brain])
    assert conditions.weights_fit(torch.ones(1), [half])  # on the CPU others look


def test_a_captured_network_is_one_op() -> None:
    """torch.compile and torch.export of an accelerated model on a GPU hold the network's op, in the input's dtype."""
    program = export_on_gpu(torch.float16, torch.float16)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert str(calls[0].target) == "mnv3_fast.network.default"
    value = calls[-1].meta["val"]
    assert (value.shape, value.dtype, value.device.type) == ((2, 1000), torch.float16, "cuda")


@pytest.mark.parametrize("first", [torch.uint8, torch.bfloat16])
def test_blocks_and_networks_take_sixteen_bits_on_a_gpu(first: torch.dtype) -> None:
    """Shapes and dtypes only: of images the stem makes its own dtype, weights may be the input's or float32."""
    with FakeTensorMode(), torch.device("cuda"):
        half = {"dtype": torch.bfloat16}
        image = torch.empty(2, 3, 9, 9, dtype=first)
        block = ((torch.empty(8, 1, 3, 3, **half), None, None), (torch.empty(4, 8, 1, 1), None, None))
        stages = [
            ("stem_conv", (torch.empty(8, 3, 3, 3, **half),)),
            ("inverted_residual", block, {"padding": 1}),
            ("pool",),
            ("linear", (torch.empty(5, 4, **half), torch.empty(5))),
        ]
        output = mnv3_fast.ops.network(image, stages)
        assert (output.shape, output.dtype) == ((2, 5), torch.bfloat16)
        map = mnv3_fast.ops.inverted_residual(torch.empty(2, 8, 5, 5, **half), *block, padding=1)
        assert (map.shape, map.dtype) == ((2, 4, 5, 5), torch.bfloat16)
        with pytest.raises(TypeError, match="network: linear: weight must be bfloat16 or float32, got float16"):
            mnv3_fast.ops.network(image, [*stages[:3], ("linear", (torch.empty(5, 4, dtype=torch.float16),))])
