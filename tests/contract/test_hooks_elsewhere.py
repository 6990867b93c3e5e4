"""Row "hooks": those of tensors, of all modules, of autograd's saved tensors, and of the oldest kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mnv3_fast import testing
from tests.contract.common import X, accelerated, fallbacks, fresh

WEIGHT = "features.5.block.0.0.weight"


def gradient_hook(model: nn.Module, seen: list[Any]) -> Any:
    return model.get_parameter(WEIGHT).register_hook(lambda grad: seen.append("called") or grad * 3)


def accumulated_hook(model: nn.Module, seen: list[Any]) -> Any:
    def optimizer_in_backward(parameter: Tensor) -> None:
        seen.append("called")
        parameter.grad *= 3

    return model.get_parameter(WEIGHT).register_post_accumulate_grad_hook(optimizer_in_backward)


@pytest.mark.parametrize("hook", [gradient_hook, accumulated_hook])
def test_hooks_of_parameters(hook: Callable[[nn.Module, list[Any]], Any]) -> None:
    """They see the gradients that autograd gives, so nothing falls back."""
    grads = []
    for model in (accelerated(), fresh()):
        seen: list[Any] = []
        hook(model, seen)
        model(X).square().mean().backward()
        assert seen == ["called"]
        grads.append(model.get_parameter(WEIGHT).grad)
    assert testing.relative_error(grads[0], grads[1]) <= 1e-4
    model = accelerated()
    hook(model, [])
    assert fallbacks(model) == []


# Not those of the backward pass: in front of an activation in place torch refuses them.
GLOBAL: dict[str, Callable[[Callable[..., None]], Any]] = {
    "forward pre": torch_module.register_module_forward_pre_hook,
    "forward": torch_module.register_module_forward_hook,
}


@pytest.mark.parametrize("kind", GLOBAL)
def test_hooks_of_all_modules_see_what_they_see_in_torchvisions(kind: str) -> None:
    counts = []
    for model in (accelerated(), fresh()):
        model(X)
        seen: list[str] = []
        handle = GLOBAL[kind](lambda module, *_, seen=seen: seen.append(type(module).__name__))
        try:
            model(X).sum().backward()
        finally:
            handle.remove()
        counts.append(seen)
    assert counts[0] == counts[1]
    assert "BatchNorm2d" in counts[0]


def test_the_oldest_kind_of_backward_hook() -> None:
    for place in ("features.5", "features.5.block.0.0"):
        counts = []
        for model in (accelerated(), fresh()):
            seen: list[str] = []
            model.get_submodule(place).register_backward_hook(lambda *_, seen=seen: seen.append("called"))
            model(X).sum().backward()
            counts.append(seen)
        assert counts[0] == counts[1] == ["called"]


def test_saved_tensors_go_through_their_hooks() -> None:
    """As offloading activations does it."""
    packed: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.numel())
        return tensor.clone()

    grads = []
    for model in (accelerated(), fresh()):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(X).square().mean()
        loss.backward()
        grads.append(model.get_parameter(WEIGHT).grad)
    assert packed
    assert testing.relative_error(grads[0], grads[1]) <= 1e-4
