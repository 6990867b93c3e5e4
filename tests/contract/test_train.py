"""Row "train": training is torch's own, to the bit; gradients in eval mode are right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

import mnv3_fast
from mnv3_fast import testing
from tests.contract.common import X, accelerated, fresh

TARGET = torch.tensor([1, 2])


def train(model: nn.Module, steps: int = 3) -> list[float]:
    torch.manual_seed(3)  # of dropout
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), TARGET)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def no_change(model: nn.Module) -> None:
    pass


def freeze_half(model: nn.Module) -> None:
    model.features[:6].requires_grad_(False)


def small_momentum(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3


@pytest.mark.parametrize("change", [no_change, freeze_half, small_momentum])
@pytest.mark.parametrize("ran_before", [False, True])
def test_losses_and_state_are_torchs(change: Callable[[nn.Module], None], ran_before: bool) -> None:
    ours, theirs = accelerated(), fresh()
    if ran_before:
        with torch.no_grad():
            ours(X)
    for model in (ours, theirs):
        change(model)
    assert train(ours) == train(theirs)
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert ours.features[0][1].num_batches_tracked == fresh().features[0][1].num_batches_tracked + 3
    with torch.no_grad():
        assert testing.relative_error(ours.eval()(X), theirs.eval()(X)) <= testing.NET_LIMIT


def eval_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    nn.functional.cross_entropy(model(X), TARGET).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("wanted", ["all", "norms", "features.4", "classifier", "input of the classifier"])
def test_gradients_in_eval_mode(wanted: str) -> None:
    """BatchNorm with its running statistics, as fine-tuning with frozen norms has it."""
    grads = []
    for model in (accelerated(), fresh()):
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and ".fc" not in name and "classifier" not in name
            parameter.requires_grad_(
                wanted == "all" or (wanted == "norms" and is_norm) or name.startswith(wanted.split()[-1])
            )
        grads.append(eval_gradients(model))
    assert set(grads[0]) == set(grads[1])
    assert grads[0]
    for name, grad in grads[1].items():
        assert testing.relative_error(grads[0][name], grad) <= 1e-4, name


def test_norms_in_eval_mode_while_the_rest_trains() -> None:
    """``norm_eval``: every norm kept in eval mode, dropout on."""
    losses = []
    for model in (accelerated(), fresh()):
        torch.manual_seed(3)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        loss = nn.functional.cross_entropy(model(X), TARGET)
        loss.backward()
        losses.append((loss.item(), model.features[3].block[0][0].weight.grad.clone()))
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_sequential(mode: str, use_reentrant: bool) -> None:
    grads = []
    for model in (accelerated(), fresh()):
        getattr(model, mode)()
        x = X.clone().requires_grad_()
        y = checkpoint_sequential(model.features, 3, x, use_reentrant=use_reentrant)
        y.square().mean().backward()
        grads.append([x.grad, *[p.grad for p in model.features.parameters()]])
    for a, b in zip(*grads, strict=True):
        assert testing.relative_error(a, b) <= 1e-4


def test_full_backward_hook_on_an_activation_in_place() -> None:
    """torchvision's own raises there (a view is modified in place); with no hook inside nobody sees the activations."""
    model = accelerated()
    seen: list[torch.Size] = []
    model.features[5].register_full_backward_hook(lambda m, gi, go: seen.append(go[0].shape))
    model(X).sum().backward()
    assert seen == [torch.Size([2, 40, 4, 4])]
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        stock = fresh()
        stock.features[5].block[0][2].register_full_backward_hook(lambda *_: None)
        stock.features[5].block[0].register_full_backward_hook(lambda *_: None)
        stock(X).sum().backward()


def test_one_image_of_one_pixel_says_what_torch_says() -> None:
    for model in (accelerated(), fresh()):
        model.train()
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            model(torch.randn(1, 3, 32, 32))


def test_gradient_accumulation_and_zero_grad() -> None:
    ours, theirs = accelerated(), fresh()
    for model in (ours, theirs):
        for scale in (1.0, 0.5):
            (model(X).square().mean() * scale).backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert testing.relative_error(a.grad, b.grad) <= 1e-4
    ours.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in ours.parameters())


def test_the_optimizer_of_the_old_model_trains_the_new() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    fast = mnv3_fast.accelerate(model)
    with torch.no_grad():
        before = fast(X)
    nn.functional.cross_entropy(fast(X), TARGET).backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(fast(X), before)
        assert testing.relative_error(fast(X), model(X)) <= testing.NET_LIMIT
