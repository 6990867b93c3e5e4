"""Gradients in eval mode, and train mode, which is torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import cached_parity_model, count_ops

X = testing.parity_images(2, 64, seed=1)


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    output = model(x)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    return grads | {"input": x.grad}


def test_gradients_in_eval_mode() -> None:
    """Against fp64, within what torchvision's own fp32 gradients miss it by."""
    model = copy.deepcopy(cached_parity_model("small"))
    theirs, ours = gradients(model, X), gradients(mnv3_fast.accelerate(model), X)
    exact = gradients(copy.deepcopy(model).double(), X.double())
    assert set(ours) == set(theirs)
    ratios = []
    for name, grad in ours.items():
        error, torch_error = (testing.relative_error(g, exact[name]) for g in (grad, theirs[name]))
        assert error <= 1e-4, name
        ratios.append((error + 1e-9) / (torch_error + 1e-9))
    assert testing.geometric_mean(ratios) <= testing.GRADIENT_FACTOR


def test_the_forward_with_grad_is_fused() -> None:
    accelerated = mnv3_fast.accelerate(cached_parity_model("small"))
    counts = count_ops(lambda: accelerated(X))
    assert counts["mnv3_fast::inverted_residual"] == 11
    assert counts["inverted_residual_recomputed"] == 11
    assert not [name for name in counts if name.startswith("aten") and ("conv" in name or "batch_norm" in name)]


def test_a_frozen_backbone_runs_without_autograd() -> None:
    accelerated = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")), inplace=True)
    accelerated.features.requires_grad_(False)
    counts = count_ops(lambda: accelerated(X).sum().backward())
    assert counts["mnv3_fast::run_plan"] == 13
    assert "inverted_residual_recomputed" not in counts
    assert accelerated.classifier[3].weight.grad is not None


@pytest.mark.parametrize("layers", [["features.3.block.0.0.weight"], ["features.0.0.weight"]])
def test_partly_frozen(layers: list[str]) -> None:
    model = copy.deepcopy(cached_parity_model("small"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in layers)
    accelerated = mnv3_fast.accelerate(model)
    grads = []
    for m in (model, accelerated):
        m.zero_grad()
        m(X).square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None})
    assert set(grads[0]) == set(grads[1]) == set(layers)
    assert testing.relative_error(grads[1][layers[0]], grads[0][layers[0]]) <= 1e-4
