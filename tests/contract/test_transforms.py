"""Row "transforms": graphs of torch.compile and torch.export hold our ops; script and FX give the stock graph."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.testing.compare import op_module
from tests.models.common import cached_parity_model, count_ops

X = testing.parity_images(2, 64, seed=1)
DYNAMIC = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
ELSEWHERE = """
import sys, torch, mnv3_fast
x, y = torch.load(sys.argv[2])
module = torch.export.load(sys.argv[1]).module() if sys.argv[1].endswith("pt2") else torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    out = module(x)
sys.exit(0 if (out - y).norm() <= 2e-5 * y.norm() else 1)
"""


def run_elsewhere(path: Path, x: torch.Tensor, y: torch.Tensor, **environment: str) -> None:
    """Load in a new process and compare."""
    import os

    values = path.with_suffix(".values")
    torch.save((x, y), values)
    command = [sys.executable, "-c", ELSEWHERE, str(path), str(values)]
    root = str(Path(mnv3_fast.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def graph_ops(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@torch.no_grad()
def test_export_accelerated(tmp_path: Path) -> None:
    model = cached_parity_model("small")
    program = torch.export.export(mnv3_fast.accelerate(model), (X,), dynamic_shapes=DYNAMIC)
    targets = graph_ops(program)
    assert targets == ["mnv3_fast.network.default"]
    larger = testing.parity_images(3, 96, 130)
    assert testing.relative_error(program.module()(larger), model(larger)) <= testing.NET_LIMIT
    torch.export.save(program, tmp_path / "model.pt2")
    run_elsewhere(tmp_path / "model.pt2", larger, model(larger))


@pytest.mark.slow
@torch.no_grad()
def test_export_frozen_also_for_another_instruction_set(tmp_path: Path) -> None:
    model = cached_parity_model("small")
    engine = mnv3_fast.freeze(model)
    program = torch.export.export(engine, (X,), dynamic_shapes=DYNAMIC)
    assert graph_ops(program) == ["mnv3_fast.run_plan.default"]
    larger = testing.parity_images(3, 96, 130)
    torch.export.save(program, tmp_path / "engine.pt2")
    torch.save(engine, tmp_path / "engine.pt")
    for name in ("engine.pt2", "engine.pt"):
        run_elsewhere(tmp_path / name, larger, model(larger), MNV3_FAST_ISA=(mnv3_fast.instruction_sets() or [""])[0])


@torch.no_grad()
def test_jit_trace() -> None:
    """With the checks of torch.jit.trace."""
    model = cached_parity_model("small")
    for convert, count in ((mnv3_fast.accelerate, 13), (mnv3_fast.freeze, 1)):
        traced = torch.jit.trace(convert(model), X)
        assert str(traced.inlined_graph).count("mnv3_fast::") == count
        other = testing.parity_images(1, 64, seed=2)
        assert testing.relative_error(traced(other), model(other)) <= testing.NET_LIMIT


@pytest.mark.slow
def test_jit_trace_with_gradients_is_the_stock_graph() -> None:
    """Also where a trace without gradients came before, and in the repetition by which torch checks it."""
    accelerated = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")).requires_grad_())
    for grad, count in ((True, 0), (False, 13), (True, 0)):
        with torch.set_grad_enabled(grad):
            assert str(torch.jit.trace(accelerated, X).inlined_graph).count("mnv3_fast::") == count


@torch.no_grad()
def test_jit_script_gives_the_stock_graph() -> None:
    model = cached_parity_model("small")
    accelerated = mnv3_fast.accelerate(model)
    classes = [type(module) for module in accelerated.modules()]
    scripted = torch.jit.script(accelerated)
    assert testing.relative_error(scripted(X), model(X)) <= testing.NET_LIMIT
    assert "mnv3_fast" not in str(scripted.inlined_graph)
    assert [type(module) for module in accelerated.modules()] == classes, "scripting changed the model itself"
    assert not mnv3_fast.explain(accelerated, X).fallbacks


@torch.no_grad()
def test_fx_gives_the_stock_graph() -> None:
    model = cached_parity_model("small")
    accelerated = mnv3_fast.accelerate(model)
    assert get_graph_node_names(accelerated) == get_graph_node_names(model)
    assert fx.symbolic_trace(accelerated).code == fx.symbolic_trace(model).code
    extractor = create_feature_extractor(accelerated, {"features.4": "low", "features.12": "high"})
    expected = create_feature_extractor(model, {"features.4": "low", "features.12": "high"})(X)
    for key, value in extractor(X).items():
        assert testing.relative_error(value, expected[key]) <= testing.NET_LIMIT


@torch.no_grad()
def test_functional_call_and_vmap() -> None:
    model = cached_parity_model("small")
    accelerated = mnv3_fast.accelerate(model)
    doubled = {name: p * 1.01 for name, p in model.named_parameters()}
    ours, theirs = (torch.func.functional_call(m, doubled, (X,)) for m in (accelerated, model))
    assert testing.relative_error(ours, theirs) <= testing.NET_LIMIT
    ours, theirs = (torch.func.vmap(m)(X[:, None]) for m in (accelerated, model))
    assert testing.relative_error(ours, theirs) <= testing.NET_LIMIT


def test_own_net_of_fused_modules() -> None:
    """The fused modules are usable in a net of one's own."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    config = InvertedResidualConfig(16, 5, 40, 16, True, "HS", 1, 1, 1.0)
    net = nn.Sequential(
        mnv3_fast.nn.Conv2dNormActivation(3, 16, 3, 2, activation_layer=nn.Hardswish),
        mnv3_fast.nn.InvertedResidual(config, nn.BatchNorm2d),
        mnv3_fast.nn.SqueezeExcitation(16, 8),
    )
    testing.randomize_(net, 0, 32)
    stock = mnv3_fast.restore(copy.deepcopy(net))
    assert not any(type(m).__module__.startswith("mnv3_fast") for m in stock.modules())
    with torch.no_grad():
        assert testing.relative_error(net(X), stock(X)) <= testing.NET_LIMIT
    assert mnv3_fast.explain(net, X).fused == 3
    grads = []
    for m in (net, stock):
        m.zero_grad()
        m(X).square().sum().backward()
        grads.append([p.grad.clone() for p in m.parameters()])
    for a, b in zip(*grads, strict=True):
        assert testing.relative_error(a, b) <= 1e-4


SLOW = pytest.mark.slow
COMPILE_OPTIONS = [
    {},
    pytest.param({"dynamic": True}, marks=SLOW),
    pytest.param({"mode": "reduce-overhead"}, marks=SLOW),
    pytest.param({"mode": "max-autotune"}, marks=SLOW),
    pytest.param({"mode": "max-autotune-no-cudagraphs"}, marks=SLOW),
]


@torch.no_grad()
@pytest.mark.parametrize("options", COMPILE_OPTIONS, ids=str)
def test_compiled_graphs_hold_our_ops(options: dict) -> None:
    """Counted as they run: one op, no convolution, norm or classifier of torch's."""
    model = copy.deepcopy(cached_parity_model("small"))
    torch._dynamo.reset()
    compiled = torch.compile(mnv3_fast.accelerate(model), fullgraph=True, **options)
    for x in (X, testing.parity_images(3, 96)):
        assert testing.relative_error(compiled(x), model(x)) <= testing.NET_LIMIT
        counts = count_ops(lambda x=x: compiled(x))
        assert counts["mnv3_fast::network"] == counts["mnv3_fast::run_plan"] == 1
        assert not [name for name in counts if "convolution" in name or "batch_norm" in name or "addmm" in name]
    for step in range(2):
        model.features[3].block[0][0].weight.mul_(1.3)
        model.features[5].block[1][1].running_mean.add_(0.2)
        model.features[0][0].weight.data.mul_(1.1)
        model.classifier[3].bias.add_(step + 1)
        assert testing.relative_error(compiled(X), model(X)) <= testing.NET_LIMIT


@torch.no_grad()
def test_a_hook_inside_divides_the_captured_network() -> None:
    model = copy.deepcopy(cached_parity_model("small"))
    accelerated = mnv3_fast.accelerate(model)
    for m in (model, accelerated):
        m.features[5].block[0][0].register_forward_hook(lambda m, args, output: output * 2)
    program = torch.export.export(accelerated, (X,))
    assert graph_ops(program).count("mnv3_fast.inverted_residual.default") == 10
    assert testing.relative_error(program.module()(X), model(X)) <= testing.NET_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_a_program_exported_with_gradients_on_is_one_op_too(strict: bool) -> None:
    """Also where Dynamo traces for the export; run with gradients it refuses rather than lose them."""
    model = copy.deepcopy(cached_parity_model("small")).requires_grad_()
    accelerated = mnv3_fast.accelerate(model)
    program = torch.export.export(accelerated, (X,), strict=strict)
    assert graph_ops(program) == ["mnv3_fast.network.default"]
    with torch.no_grad():
        assert testing.relative_error(program.module()(X), model(X)) <= testing.NET_LIMIT
    with pytest.raises(RuntimeError, match="network is not differentiable and an input requires grad"):
        program.module()(X)
    accelerated.features[5].block[0][0].register_forward_hook(lambda m, args, output: output * 1)
    counts = Counter(graph_ops(torch.export.export(accelerated, (X,), strict=strict)))
    assert counts["mnv3_fast.inverted_residual.default"] == 10
    assert counts["mnv3_fast.stem_conv.default"] == counts["mnv3_fast.pointwise_conv.default"] == 1


@pytest.mark.slow
def test_a_compiled_network_gives_gradients() -> None:
    """Block by block, as in eager mode."""
    model = copy.deepcopy(cached_parity_model("small"))
    torch._dynamo.reset()
    compiled = torch.compile(mnv3_fast.accelerate(model), fullgraph=True, backend="aot_eager")
    grads = []
    for m in (model, compiled):
        model.zero_grad()
        m(X).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert testing.relative_error(b, a) <= 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_compiled_functional_call_takes_the_tensors_it_is_given() -> None:
    model = cached_parity_model("small")
    accelerated = mnv3_fast.accelerate(model)
    doubled = {"classifier.3.weight": model.classifier[3].weight * 2}
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: torch.func.functional_call(accelerated, doubled, (x,)), backend="aot_eager")
    expected = torch.func.functional_call(model, doubled, (X,))
    assert testing.relative_error(compiled(X), expected) <= testing.NET_LIMIT


@pytest.mark.slow
@torch.no_grad()
def test_aot_inductor_packs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that it generates gives new tensors for short vectors on each call."""
    model = cached_parity_model("small")
    program = torch.export.export(mnv3_fast.accelerate(model), (X,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    run = torch._inductor.aoti_load_package(path)
    module = op_module("network")
    packed, pack = [], module.pack_stages
    monkeypatch.setattr(module, "pack_stages", lambda stages: packed.append(1) or pack(stages))
    for _ in range(4):
        assert testing.relative_error(run(X), model(X)) <= testing.NET_LIMIT
    assert len(packed) == 1


@torch.no_grad()
def test_an_exported_program_takes_an_update() -> None:
    """A new state loaded into the program's module takes effect, as its graph holds the original tensors."""
    model = cached_parity_model("small")
    module = torch.export.export(mnv3_fast.accelerate(model), (X,)).module()
    before = module(X)
    other = cached_parity_model("small", 9)
    module.load_state_dict(other.state_dict())
    assert not torch.equal(module(X), before)
    assert testing.relative_error(module(X), other(X)) <= testing.NET_LIMIT


@torch.no_grad()
def test_scripted_models_can_be_saved_and_frozen(tmp_path: Path) -> None:
    model = cached_parity_model("small")
    scripted = torch.jit.script(mnv3_fast.accelerate(model))
    torch.jit.save(scripted, tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    assert testing.relative_error(loaded(X), model(X)) <= testing.NET_LIMIT
    frozen = torch.jit.optimize_for_inference(torch.jit.freeze(scripted.eval()))
    assert testing.relative_error(frozen(X), model(X)) <= testing.NET_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("net", ["large", "small"])
def test_feature_extractors_and_node_names_are_torchvisions(net: str) -> None:
    model = cached_parity_model(net)
    accelerated = mnv3_fast.accelerate(model)
    names = get_graph_node_names(model)
    assert get_graph_node_names(accelerated) == names
    assert len(names[1]) == (71 if net == "large" else 56)
    nodes = ["features.1", "features.4.block.1", "features.12", "flatten", "classifier.0"]
    ours, theirs = (create_feature_extractor(m, nodes)(X) for m in (accelerated, model))
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        assert testing.relative_error(value, theirs[key]) <= testing.NET_LIMIT, key
