"""Several processes over gloo: the loss curve is that of one process with their batches together."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from mnv3_fast import testing
from mnv3_fast.checkpoints import read_checkpoint
from mnv3_fast.data.processes import Processes
from mnv3_fast.training import train
from mnv3_fast.training.batch_norm import CPUSyncBatchNorm
from tests.data.test_processes import torchrun_environment
from tests.training.photos import write_photos
from tests.training.runs import log_of, settings_of, started, wait_for, write_parity, write_recipe

# Dropout and mixing draw for each process, so that one process with all images cannot draw the same.
SYNC = """
epochs = 1
batch = 4
base_batch = 4
dropout = 0.0
sync_batch_norm = true

[optimizer]
name = "sgd"
lr = 0.01
momentum = 0.9

[augmentation]
size = 64
auto_augment = "imagenet"

[moving_average]
decay = 0.9
"""


def join(rank: int, port: int) -> None:
    """Be one of two processes, as torchrun starts them."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def train_one_of_two(rank: int, port: int, root: str, checkpoint: str) -> None:
    join(rank, port)
    with Processes.from_environment() as processes:
        recipe, data, work_dir = (Path(root, name) for name in ("recipe.toml", "data", "pair"))
        train(settings_of(recipe, data, work_dir, checkpoint=checkpoint), processes)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """The same images in every iteration, statistics over all of them: the same losses, but for rounding."""
    torch.set_num_threads(1)
    data, checkpoint = write_photos(tmp_path / "data", train=14, val=4, classes=3), write_parity(tmp_path)
    recipe = write_recipe(tmp_path, SYNC)
    multiprocessing.spawn(train_one_of_two, (free_port(), str(tmp_path), checkpoint), nprocs=2)
    recipe.write_text(SYNC.replace("\nbatch = 4", "\nbatch = 8"))
    train(settings_of(recipe, data, tmp_path / "alone", checkpoint=checkpoint))
    pair, one = log_of(tmp_path / "pair"), log_of(tmp_path / "alone")
    assert [record["step"] for record in pair] == [record["step"] for record in one] == [1, 2, 3, 4, 5, 1]
    losses = [[record["loss"] for record in log if "loss" in record] for log in (pair, one)]
    assert max(losses[1]) - min(losses[1]) > 0.05  # a hundred times what may differ
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name in ("state_dict", "ema_state_dict"):
        weights = [all_of(read_checkpoint(tmp_path / work_dir / "last.pth")[name]) for work_dir in ("pair", "alone")]
        assert testing.relative_error(*weights) <= 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_ends_the_other(lost: int, tmp_path: Path) -> None:
    """With the reason, wherever in torch's code it waits for the first one."""
    data, recipe = write_photos(tmp_path / "data", train=14, val=4, classes=3), write_recipe(tmp_path)
    port, work_dir = free_port(), tmp_path / "work"
    both = [started(recipe, data, work_dir, "--epochs", "50", **torchrun_environment(rank, 2, port)) for rank in (0, 1)]
    wait_for(both[lost], work_dir, 2)
    both[lost].kill()
    said = both[1 - lost].communicate(timeout=300)[1]
    both[lost].communicate(timeout=300)
    assert both[1 - lost].returncode == 2
    assert "mnv3-fast: another of the processes has ended or cannot be reached" in said
    assert "Traceback" not in said


def all_of(state: dict[str, Tensor]) -> Tensor:
    """Every weight and statistic; one by one, biases in front of norms are rounding noise and nothing else."""
    return torch.cat([value.flatten().double() for value in state.values() if value.is_floating_point()])


def norm_one_of_two(rank: int, port: int, root: str) -> None:
    join(rank, port)
    with Processes.from_environment():
        norm = CPUSyncBatchNorm(5, eps=1e-3, momentum=0.1)
        images, weights, grads = torch.load(Path(root, "in.pt"), weights_only=True)
        norm.load_state_dict(weights)
        half = slice(3 * rank, 3 * rank + 3)
        mine = images[half].requires_grad_()
        output = norm(mine)
        output.backward(grads[half])
        found = output.detach(), mine.grad, norm.weight.grad, norm.bias.grad, norm.state_dict()
        torch.save(found, Path(root, f"out{rank}.pt"))


@pytest.mark.slow
def test_the_norm_of_two_processes_is_batch_norm(tmp_path: Path) -> None:
    """Outputs, all gradients and running statistics are BatchNorm2d's of the whole batch."""
    torch.manual_seed(0)
    images, grads = torch.randn(2, 6, 5, 7, 4) * 3 + 2
    norm = nn.BatchNorm2d(5, eps=1e-3, momentum=0.1)
    nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias)
    torch.save((images, norm.state_dict(), grads), tmp_path / "in.pt")
    whole = images.clone().requires_grad_()
    output = norm(whole)
    output.backward(grads)
    multiprocessing.spawn(norm_one_of_two, (free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"out{rank}.pt", weights_only=True) for rank in (0, 1))
    assert testing.relative_error(torch.cat([first[0], second[0]]), output.detach()) <= 1e-6
    assert testing.relative_error(torch.cat([first[1], second[1]]), whole.grad) <= 1e-6
    assert testing.relative_error(first[2] + second[2], norm.weight.grad) <= 1e-6
    assert testing.relative_error(first[3] + second[3], norm.bias.grad) <= 1e-6
    for state in (first[4], second[4]):
        for key, value in norm.state_dict().items():
            assert testing.relative_error(state[key].double(), value.double()) <= 1e-6, key


def test_the_norm_in_eval_mode_is_batch_norm() -> None:
    norm = CPUSyncBatchNorm(5).eval()
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(norm(x), nn.BatchNorm2d(5).eval()(x))
