"""What every op's test file does, in the same order: forward, gradients, registration, edges."""

from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

import mnv3_fast.ops
from mnv3_fast import _library
from mnv3_fast.engine import cache
from mnv3_fast.ops import registration
from mnv3_fast.testing.cases import Case, op_cases
from mnv3_fast.testing.compare import as_list, op_module, outputs_of, prepared, reference_of, take_variant
from mnv3_fast.testing.tolerance import assert_close_enough

needs_kernels = pytest.mark.skipif(not _library.EXTENSION, reason="needs the compiled kernels")


def cases(op: str, scope: str = "quick") -> Any:
    """A parametrize mark over the op's cases."""
    return pytest.mark.parametrize("case", op_cases(op, scope), ids=str)


def nhwc_strides(shape: torch.Size) -> tuple[int, ...]:
    """The strides that every output map has."""
    _, c, h, w = shape
    return h * w * c, 1, w * c, c


def check_forward(case: Case, instruction_set: str) -> None:
    """Equal to fp64 within the rule, dense NHWC, and by the code of the instruction set that was asked for."""
    if instruction_set != "reference":
        take_variant(case.op)
    ours, theirs, exact = outputs_of(case)
    for i, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_close_enough(a, b, c, name=f"{case.op} output {i}")
        if a.dim() == 4 and case.op != "fold_batch_norm":
            assert a.stride() == nhwc_strides(a.shape)
    if instruction_set != "reference" and ours[0].numel() > 0:
        assert take_variant(case.op) == instruction_set


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    return []


def _leaves(value: Any) -> list[Tensor]:
    """Float tensors that may require grad: running statistics may not."""
    if isinstance(value, tuple) and len(value) == 5 and isinstance(value[4], float):
        value = value[:2]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _leaves(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _leaves(item)]
    return [value] if isinstance(value, Tensor) and value.is_floating_point() else []


def _backward(outputs: Any) -> None:
    loss = sum((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in as_list(outputs))
    loss.backward()


def _with_doubles(value: Any, doubles: dict[int, Tensor]) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_with_doubles(item, doubles) for item in value)
    if isinstance(value, Tensor):
        return doubles.setdefault(id(value), value.detach().double())
    return value


def check_gradients(case: Case) -> None:
    """Gradients of every float input against fp64, within three times torch's own error."""
    reference, prepare = reference_of(case.op), op_module(case.op).prepare
    grads: list[list[Tensor | None]] = []
    for function in (getattr(mnv3_fast.ops, case.op), lambda *a, **k: reference(*prepare(*a, **k))):
        args, keywords = case.make()
        leaves = _leaves((args, keywords))
        for leaf in leaves:
            leaf.requires_grad_()
        _backward(function(*args, **keywords))
        grads.append([leaf.grad for leaf in leaves])
    doubles: dict[int, Tensor] = {}
    raw = _with_doubles(prepare(*args, **keywords), doubles)
    exact = [doubles[id(leaf)].requires_grad_() for leaf in leaves]
    _backward(reference(*raw))
    assert len(exact) >= 2
    for mine, theirs, leaf in zip(*grads, exact, strict=True):
        assert mine is not None
        assert theirs is not None
        assert_close_enough(mine, theirs, leaf.grad, gradient=True, name=f"{case.op} gradient")


def check_transforms(case: Case) -> None:
    """torch.func's grad, vmap, jvp and second derivatives, in each of the float arguments, as of the reference."""
    module = op_module(case.op)
    args, keywords = case.make()
    raw = module.prepare(*args, **keywords)
    maps = case.op != "fold_batch_norm"
    for i in [i for i, arg in enumerate(raw) if isinstance(arg, Tensor) and arg.is_floating_point()][:3]:

        def loss(function: Any, x: Tensor, i: int = i) -> Tensor:
            return sum(output.sin().sum() for output in as_list(function((*raw[:i], x, *raw[i + 1 :]))))

        def ours(x: Tensor, loss: Any = loss) -> Tensor:
            reference = reference_of(case.op)
            return loss(lambda a: registration.call(module.OP, reference, module.FUNCTION, a, maps), x)

        def theirs(x: Tensor, loss: Any = loss) -> Tensor:
            return loss(lambda a: reference_of(case.op)(*a), x)

        several, tangent = torch.stack([raw[i], raw[i] * 0.5]), torch.linspace(-1, 1, raw[i].numel()).view(raw[i].shape)
        results = []
        for f in (ours, theirs):
            slope = torch.func.grad(f)
            second = torch.func.grad(lambda x, slope=slope: (slope(x) * tangent).sum())
            outside = several.clone().requires_grad_()
            torch.func.vmap(f)(outside).sum().backward()
            results.append(
                (
                    torch.func.vmap(slope)(several),
                    torch.func.jvp(f, (raw[i],), (tangent,))[1],
                    second(raw[i]),
                    outside.grad,
                )
            )
        for a, b in zip(*results, strict=True):
            assert b.abs().max() > 0
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


def check_reference_backend(case: Case) -> None:
    """Switched off, no kernel runs, with or without gradients; the strides and the dtype stay, also under autocast."""
    args, keywords = case.make()
    function = getattr(mnv3_fast.ops, case.op)
    expected = as_list(function(*args, **keywords))
    with _library.force_backend("reference"), torch.autocast("cpu", torch.bfloat16):
        if _library.EXTENSION:
            take_variant(case.op)
        off = as_list(function(*args, **keywords))
        _leaves((args, keywords))[0].requires_grad_()
        _backward(function(*args, **keywords))
        assert not _library.EXTENSION or take_variant(case.op) is None
    for a, b in zip(off, expected, strict=True):
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def check_opcheck(case: Case) -> None:
    """Schema, fake (shapes and strides), autograd registration, AOT dispatch with dynamic shapes."""
    result = opcheck(op_module(case.op).OP.default, prepared(case))
    assert set(result.values()) == {"SUCCESS"}, result


class OpModule(nn.Module):
    """An op as a module: the first argument is the input, the rest is fixed."""

    def __init__(self, op: str, args: tuple, keywords: dict[str, Any]) -> None:
        super().__init__()
        self.op, self.args, self.keywords = op, args, keywords

    def forward(self, x: Tensor) -> Any:
        return getattr(mnv3_fast.ops, self.op)(x, *self.args, **self.keywords)


def as_module(case: Case) -> tuple[OpModule, Tensor]:
    """The module of a case and its input."""
    args, keywords = case.make()
    return OpModule(case.op, args[1:], keywords), args[0]


def check_compiled(case: Case) -> None:
    """torch.compile without graph breaks gives the eager result."""
    torch._dynamo.reset()  # every case compiles the same forward
    module, x = as_module(case)
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True)
        for a, b in zip(as_list(compiled(x)), as_list(module(x)), strict=True):
            assert torch.equal(a, b)


def check_compiled_gradients(case: Case) -> None:
    """Forward and backward traced into graphs, without breaks, give the eager gradients."""
    torch._dynamo.reset()
    module, x = as_module(case)
    grads = []
    for function in (torch.compile(module, fullgraph=True, backend="aot_eager"), module):
        leaf = x.clone().requires_grad_()
        _backward(function(leaf))
        grads.append(leaf.grad)
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-5)


def check_exported(case: Case, dims: tuple[int, ...] = (0, 2, 3)) -> None:
    """torch.export with these dimensions dynamic; the graph holds our op and runs at another size."""
    module, x = as_module(case)
    with torch.no_grad():
        exported = torch.export.export(module, (x,), dynamic_shapes=(dict.fromkeys(dims, torch.export.Dim.AUTO),))
        targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
        assert sum(target == f"mnv3_fast.{case.op}.default" for target in targets) == 1, targets
        larger = torch.randn([size + 2 if d in dims else size for d, size in enumerate(x.shape)])
        for a, b in zip(as_list(exported.module()(larger)), as_list(module(larger)), strict=True):
            assert torch.equal(a, b)


def check_traced_and_copied(case: Case) -> None:
    """torch.jit.trace and deepcopy give the same result."""
    module, x = as_module(case)
    with torch.no_grad():
        expected = as_list(module(x))
        for other in (torch.jit.trace(module, x), copy.deepcopy(module)):
            for a, b in zip(as_list(other(x)), expected, strict=True):
                assert torch.equal(a, b)


def check_threads(case: Case) -> None:
    """Bitwise the same for 1, 2 and 3 intra-op threads, and from four Python threads at once."""
    args = prepared(case)
    op = op_module(case.op).OP
    torch.set_num_threads(1)
    expected = as_list(op(*args))
    for count in (2, 3):
        torch.set_num_threads(count)
        for a, b in zip(as_list(op(*args)), expected, strict=True):
            assert torch.equal(a, b)
    failures: list[int] = []

    def work(index: int) -> None:
        for _ in range(10):
            if not all(torch.equal(a, b) for a, b in zip(as_list(op(*args)), expected, strict=True)):
                failures.append(index)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def check_cache_goes(case: Case) -> None:
    """A plan goes with the tensors that it was packed from."""
    gc.collect()  # what other tests left, so that it does not go in between
    before = cache.size()
    args = prepared(case)
    args[1][0].add_(0.01)  # equal tensors of another test may have a plan already
    op_module(case.op).OP(*args)
    assert cache.size() == before + 1
    del args
    gc.collect()
    assert cache.size() == before


def check_writes(case: Case) -> None:
    """A write to any tensor takes effect, whether it counts a version or goes past torch."""
    op, reference = op_module(case.op).OP, reference_of(case.op)
    for i in range(len(prepared(case)[1])):
        args = prepared(case)
        tensor = args[1][i]
        for write in (lambda t: t.mul_(1.5), lambda t: t.data.mul_(1.5), lambda t: t.numpy().__imul__(1.5)):
            before = op(*args)
            write(tensor)
            after, exact = op(*args), reference(*args)
            assert not torch.equal(before, after), f"tensor {i}"
            assert torch.allclose(after, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


def check_refuses_grad(case: Case) -> None:
    """The raw op with an input that requires grad raises; under no_grad it runs."""
    args = prepared(case)
    next(t for t in _tensors(args) if t.is_floating_point()).requires_grad_()
    op = op_module(case.op).OP
    with pytest.raises(RuntimeError, match=f"{case.op}: torch.ops.mnv3_fast.{case.op} is not differentiable"):
        op(*args)
    with torch.no_grad():
        op(*args)
