"""Row "copies": sharded and static distributed training over gloo give what torchvision's model gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mnv3_fast import testing
from tests.contract.common import accelerated, fresh


def train(rank: int, folder: str, kind: str, accelerate: bool) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group("gloo", f"file://{folder}/store{int(accelerate)}", rank=rank, world_size=2)
    model = accelerated() if accelerate else fresh()
    x = testing.parity_images(2, 64, seed=rank)
    if kind == "sharded":
        mesh = init_device_mesh("cpu", (2,))
        for block in model.features:
            fully_shard(block, mesh=mesh)
        parallel = fully_shard(model, mesh=mesh)
    else:
        parallel = DistributedDataParallel(model, static_graph=True)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
    losses = []
    for mode in ("eval", "train", "train"):
        getattr(parallel, mode)()
        torch.manual_seed(rank)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parallel(x), torch.tensor([1, 2]))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    with torch.no_grad():
        logits = parallel.eval()(x)
    torch.save((losses, logits), Path(folder) / f"{rank}{int(accelerate)}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sharded", "static graph"])
def test_losses_and_logits_are_torchvisions(kind: str, tmp_path: Path) -> None:
    for accelerate in (False, True):
        multiprocessing.spawn(train, (str(tmp_path), kind, accelerate), nprocs=2)
    for rank in (0, 1):
        ours, theirs = (torch.load(tmp_path / f"{rank}{i}.pt", weights_only=True) for i in (1, 0))
        assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
        assert testing.relative_error(ours[1], theirs[1]) <= 1e-3  # after three steps of training
