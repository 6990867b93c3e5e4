"""Row "copies": deepcopy, pickle, files, devices, processes; each copy is right and has a life of its own."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import mnv3_fast
from mnv3_fast import testing
from tests.contract.common import X, accelerated, assert_same_as_stock, fallbacks, fresh, stock_of


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_file(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "torch.save": through_file,
    "deepcopy twice": lambda m: copy.deepcopy(copy.deepcopy(m)),
}


@torch.no_grad()
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("how", COPIES)
def test_copies(how: str, ran_before: bool) -> None:
    model = accelerated()
    if ran_before:
        model(X)
    other = COPIES[how](model)
    expected = model(X)
    assert torch.equal(other(X), expected)
    assert fallbacks(other) == []
    other.features[3].block[0][0].weight.mul_(2)
    assert not torch.equal(other(X), expected)
    assert_same_as_stock(other)
    assert torch.equal(model(X), expected)
    assert all(a is not b for a, b in zip(model.parameters(), other.parameters(), strict=True))


@torch.no_grad()
def test_a_shallow_copy_shares_its_children() -> None:
    model = accelerated()
    model(X)
    block = copy.copy(model.features[5])
    x = torch.randn(1, 40, 8, 8)
    assert torch.equal(block(x), model.features[5](x))
    block.use_res_connect = not block.use_res_connect
    assert not torch.equal(block(x), model.features[5](x))
    model.features[5].block[0][0].weight.mul_(1.5)
    assert testing.relative_error(block(x), stock_of(block)(x)) <= testing.NET_LIMIT


def test_meta_device_and_to_empty() -> None:
    with torch.device("meta"):
        model = mnv3_fast.mobilenet_v3_small().eval()
    assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)
    model.to_empty(device="cpu")
    model.load_state_dict(fresh().state_dict())
    assert_same_as_stock(model)
    moved = accelerated()
    with torch.no_grad():
        moved(X)
        assert moved.to("meta")(X.to("meta")).is_meta
    moved.to_empty(device="cpu").load_state_dict(fresh().state_dict())
    assert_same_as_stock(moved)
    assert fallbacks(moved) == []


def test_assign_to_a_meta_model() -> None:
    with torch.device("meta"):
        model = mnv3_fast.mobilenet_v3_small().eval()
    model.load_state_dict(fresh().state_dict(), assign=True)
    assert_same_as_stock(model)


@torch.no_grad()
def test_functional_call_swaps_the_weights_for_one_call() -> None:
    model = accelerated()
    expected = model(X)
    other = {name: p * 1.01 for name, p in model.named_parameters()}
    ours, theirs = (torch.func.functional_call(m, other, (X,)) for m in (model, fresh()))
    assert not torch.equal(ours, expected)
    assert testing.relative_error(ours, theirs) <= testing.NET_LIMIT
    assert torch.equal(model(X), expected)


@torch.no_grad()
def test_ensemble_by_stack_module_state_and_vmap() -> None:
    models = [accelerated() for _ in range(2)]
    models[1].features[3].block[0][0].weight.mul_(1.2)
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    run = torch.func.vmap(lambda p, b, x: torch.func.functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))
    for ours, model in zip(run(parameters, buffers, X), models, strict=True):
        assert testing.relative_error(ours, model(X)) <= testing.NET_LIMIT


def test_per_sample_gradients() -> None:
    """vmap over grad, as differential privacy has it."""
    found = []
    for model in (accelerated(), fresh()):
        parameters = dict(model.named_parameters())
        buffers = dict(model.named_buffers())

        def loss(
            p: dict, x: torch.Tensor, t: torch.Tensor, model: nn.Module = model, b: dict = buffers
        ) -> torch.Tensor:
            return nn.functional.cross_entropy(torch.func.functional_call(model, (p, b), (x[None],)), t[None])

        found.append(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, X, torch.tensor([1, 2])))
    for name, grad in found[1].items():
        assert found[0][name].shape[0] == 2
        assert testing.relative_error(found[0][name], grad) <= 1e-4, name


def child_of_fork(model: nn.Module, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)  # the pool's threads did not come along
    with torch.no_grad():
        queue.put(model(X).numpy().copy())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["accelerated", "frozen"])
def test_fork_after_use(kind: str) -> None:
    torch.set_num_threads(1)
    model = accelerated() if kind == "accelerated" else mnv3_fast.freeze(fresh())
    expected = model(X)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=child_of_fork, args=(model, queue))
    child.start()
    found = torch.from_numpy(queue.get(timeout=60))
    child.join(60)
    assert child.exitcode == 0
    assert torch.equal(found, expected)


def child_that_writes(model: nn.Module, done: multiprocessing.Event) -> None:
    with torch.no_grad():
        model.features[3].block[0][0].weight.mul_(1.5)
    done.set()


@torch.no_grad()
def test_share_memory() -> None:
    """A write of another process to shared weights is seen by its values."""
    model = accelerated()
    model(X)
    assert model.share_memory() is model
    before = model(X)
    context = multiprocessing.get_context("fork")
    done = context.Event()
    child = context.Process(target=child_that_writes, args=(model, done))
    child.start()
    child.join(60)
    assert done.is_set()
    assert not torch.equal(model(X), before)
    assert_same_as_stock(model)


@torch.no_grad()
def test_data_parallel_on_the_cpu() -> None:
    model = accelerated()
    assert torch.equal(DataParallel(model)(X), model(X))  # without GPUs it calls the module
    replicas = [copy.copy(model) for _ in range(2)]
    outputs = parallel_apply_on_cpu(replicas, [(X,), (X + 1,)])
    assert torch.equal(outputs[0], model(X))
    assert torch.equal(outputs[1], model(X + 1))


def parallel_apply_on_cpu(replicas: list[nn.Module], inputs: list[tuple]) -> list[torch.Tensor]:
    """As ``parallel_apply``, which wants GPUs: each replica in a Python thread of its own."""

    def run(replica: nn.Module, args: tuple) -> torch.Tensor:
        with torch.no_grad():
            return replica(*args)

    with ThreadPoolExecutor(len(replicas)) as pool:
        return list(pool.map(run, replicas, inputs))


@torch.no_grad()
def test_replicas_as_data_parallel_makes_them() -> None:
    """``_replicate_for_data_parallel``: a replica's tensors are plain attributes, not parameters."""
    model = accelerated()
    expected = model(X)
    modules = list(model.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            if child is not None:
                setattr(replica, name, copies[child])
        for name, value in module._parameters.items():
            if value is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, value.detach().clone())
        for name, value in module._buffers.items():
            if value is not None:
                replica._buffers[name] = value.clone()
    replica = copies[model]
    assert testing.relative_error(replica(X), expected) <= testing.NET_LIMIT
    copies[model.features[5].block[0][0]].weight.mul_(1.5)
    assert not torch.equal(replica(X), expected)
    assert torch.equal(model(X), expected)


def train_distributed(rank: int, folder: str, accelerate: bool) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group("gloo", f"file://{folder}/store{int(accelerate)}", rank=rank, world_size=2)
    model = accelerated() if accelerate else fresh()
    torch.manual_seed(rank)
    losses, grads = [], {}
    for mode in ("train", "eval"):
        parallel = DistributedDataParallel(getattr(model, mode)(), find_unused_parameters=mode == "eval")
        optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
        for _ in range(2):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(parallel(testing.parity_images(2, 64, seed=rank)), torch.tensor([1, 2]))
            loss.backward()
            losses.append(loss.item())
            grads |= {f"{mode}.{n}": p.grad.clone() for n, p in model.named_parameters()}
            optimizer.step()
    torch.save((losses, grads), Path(folder) / f"{rank}{int(accelerate)}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path: Path) -> None:
    for accelerate in (False, True):
        multiprocessing.spawn(train_distributed, (str(tmp_path), accelerate), nprocs=2)
    for rank in (0, 1):
        (ours, our_grads), (theirs, their_grads) = (
            torch.load(tmp_path / f"{rank}{kind}.pt", weights_only=True) for kind in (1, 0)
        )
        assert ours[:2] == theirs[:2]  # training is torch's own
        assert ours == pytest.approx(theirs, rel=1e-5)
        for name, grad in their_grads.items():
            assert testing.relative_error(our_grads[name], grad) <= 1e-4, name
