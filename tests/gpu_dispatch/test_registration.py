"""The single ops on fake CUDA tensors: shapes, dtypes and strides, and the graphs that torch makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import mnv3_fast.ops
from mnv3_fast.ops.elements import empty_nhwc
from mnv3_fast.testing.cases import Case
from mnv3_fast.testing.compare import as_list, functions_of, op_module
from mnv3_fast.testing.on_device import FIRST_USE, arguments, cast

OPS = tuple(FIRST_USE)
HALVES = [torch.float32, torch.float16]


class OpModule(nn.Module):
    """A public op; all tensors but the input are buffers."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        super().__init__()
        args, self.keywords = cast(case.make(), dtype)
        self.op, self.input, self.rest = case.op, args[0], args[1:]

    def to_fake(self, mode: FakeTensorMode) -> OpModule:
        """The same with fake CUDA tensors."""

        def fake(value: Any) -> Any:
            if isinstance(value, Tensor):
                with mode:
                    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
            if isinstance(value, (tuple, list)):
                return type(value)(fake(item) for item in value)
            return {k: fake(v) for k, v in value.items()} if isinstance(value, dict) else value

        self.input, self.rest, self.keywords = fake(self.input), fake(self.rest), fake(self.keywords)
        return self

    def forward(self, x: Tensor) -> Any:
        return getattr(mnv3_fast.ops, self.op)(x, *self.rest, **self.keywords)


def fake_module(op: str, dtype: torch.dtype, index: int = 0) -> tuple[OpModule, FakeTensorMode, list[Tensor]]:
    """An op on fake CUDA tensors, and the outputs of its reference on the CPU."""
    case = FIRST_USE[op][index]
    module = OpModule(case, dtype)
    expected = as_list(functions_of(case)[1](*arguments(case, dtype)))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return module.to_fake(mode), mode, expected


def check_like(outputs: list[Tensor], expected: list[Tensor]) -> None:
    """On the GPU, with the reference's shapes and dtypes and the strides that every op's output has."""
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.device.type == "cuda"
        assert (output.shape, output.dtype) == (wanted.shape, wanted.dtype)
        assert output.dim() == 2 or output.stride() == empty_nhwc(wanted, *wanted.shape).stride()


@pytest.mark.parametrize("op", [*OPS, "depthwise_conv_mean"])
def test_there_is_a_kernel_for_cuda(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mnv3_fast::{op}", "CUDA")


@pytest.mark.parametrize("dtype", [*HALVES, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "index"), [*[(op, 0) for op in OPS], ("stem_conv", 1), ("depthwise_conv", 1)])
def test_forward(op: str, index: int, dtype: torch.dtype) -> None:
    module, mode, expected = fake_module(op, dtype, index)
    with mode, torch.no_grad():
        check_like(as_list(module(module.input)), expected)


@pytest.mark.parametrize("op", OPS)
def test_parameters_in_float32_beside_half_an_input(op: str) -> None:
    module, mode, expected = fake_module(op, torch.float32)
    with mode, torch.no_grad():
        x = module.input.half()
        if "residual" in module.keywords:
            module.keywords["residual"] = module.keywords["residual"].half()
        check_like(as_list(module(x)), [output.half() for output in expected])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_export(op: str, dtype: torch.dtype) -> None:
    module, _, expected = fake_module(op, dtype)
    with torch.no_grad():
        exported = torch.export.export(module, (module.input,)).run_decompositions()
    nodes = [node for node in exported.graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in nodes] == [f"mnv3_fast.{op}.default"]
    check_like([nodes[0].meta["val"]], expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_make_fx(op: str, dtype: torch.dtype) -> None:
    module, mode, expected = fake_module(op, dtype)
    with mode, torch.no_grad():
        graph = make_fx(module)(module.input).graph
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in nodes] == [f"mnv3_fast.{op}.default"]
    check_like([nodes[0].meta["val"]], expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_dynamo(op: str, dtype: torch.dtype) -> None:
    module, mode, expected = fake_module(op, dtype)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function" and "mnv3" in str(n.target)])
        return graph.forward

    torch._dynamo.reset()
    with mode, torch.no_grad():
        check_like(as_list(torch.compile(module, backend=backend, fullgraph=True)(module.input)), expected)
    assert graphs == [[f"mnv3_fast.{op}"]]


@pytest.mark.parametrize("op", OPS)
def test_gradients_are_recomputed(op: str) -> None:
    """On fake CUDA tensors as far as the forward: torch's engine asks for a GPU behind it. Both on device meta."""
    module, mode, _ = fake_module(op, torch.float16)
    with mode:
        output = module(module.input.requires_grad_())
    assert type(output.grad_fn).__name__ == "RecomputedBackward"
    args = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments(FIRST_USE[op][0], torch.float32)]
    args[0] = args[0].half().requires_grad_()
    args[1] = args[1].requires_grad_()
    output = op_module(op).FUNCTION.apply(*args)
    assert output.dtype is torch.float16
    output.sum().backward()
    assert [args[0].grad.dtype, args[1].grad.dtype] == [torch.float16, torch.float32]


@pytest.mark.parametrize("op", OPS)
def test_the_reference_of_mixed_dtypes_rounds_once(op: str) -> None:
    """Values and gradients as in float32; torch's own operators refuse such arguments."""
    reference, args = op_module(op).REFERENCE, list(arguments(FIRST_USE[op][0], torch.float32))
    args[0] = args[0].half()
    residual = len(args) - 2 if op == "pointwise_conv" else None
    if residual is not None:
        args[residual] = args[residual].half()
    grads = []
    for wide in (False, True):
        mine = [a.float() if wide and isinstance(a, Tensor) else a for a in args]
        leaf = mine[1] = mine[1].detach().clone().requires_grad_()
        output = functions_of(FIRST_USE[op][0])[1](*mine) if wide else reference(*mine)
        assert output.dtype is (torch.float32 if wide else torch.float16)
        output.half().float().sum().backward()
        grads.append((output.detach().half(), leaf.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])
