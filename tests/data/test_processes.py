"""Processes: one alone, two over gloo as torchrun would start them, and an environment that makes no sense."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from mnv3_fast.data.processes import Processes, ProcessesLost, connected


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def torchrun_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    numbers = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", **{name: str(n) for name, n in numbers.items()}}


def test_one_process_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with Processes.from_environment() as alone:
        assert not torch.distributed.is_initialized()
        assert (alone.rank, alone.world, alone.is_first) == (0, 1, True)
        assert alone.sum(torch.tensor([3])).item() == 3
        assert alone.gather("a") == ["a"]
        assert alone.broadcast("b") == "b"
        alone.wait()
        assert alone.device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "RANK is None; torchrun sets"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'; torchrun sets"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is None"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'; torchrun sets"),
        ({"RANK": "2"}, "rank 2, local rank 0 of 2 processes cannot be"),
    ],
)
def test_an_environment_that_makes_no_sense(
    changes: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (torchrun_environment(0, 2, 1) | changes).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        Processes.from_environment()


def test_a_gpu_that_is_not_there() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"device cuda:{count}: torch sees {count} GPUs, number {count} is wanted"):
        Processes().device(f"cuda:{count}")


@pytest.mark.parametrize("name", ["cuda:x", "cuda:", "cpu:x", ""])
def test_a_name_that_is_no_devices(name: str) -> None:
    with pytest.raises(ValueError, match=f"device: '{name}' is none, cpu, cuda or cuda:N is wanted"):
        Processes().device(name)


def test_what_torch_says_of_lost_processes() -> None:
    """gloo's errors are plain RuntimeErrors; all others stay what they are."""
    gloo = "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer.\n"
    for error in (RuntimeError(gloo), torch.distributed.DistNetworkError("refused")):
        with pytest.raises(ProcessesLost, match="another of the processes has ended or cannot be reached"), connected():
            raise error
    with pytest.raises(RuntimeError, match="^mat1 and mat2") as found, connected():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert found.type is RuntimeError


def talk(rank: int, folder: str, port: int) -> None:
    os.environ |= torchrun_environment(rank, 2, port)
    with Processes.from_environment() as processes:
        large = torch.tensor([2**53, 1 + rank])  # exact beyond what a double holds
        total = processes.sum(large + rank)
        found = (total.tolist(), processes.gather({"rank": rank}), processes.broadcast(f"from {rank}"))
        processes.wait()
    assert not torch.distributed.is_initialized()
    Path(folder, str(rank)).write_text(repr((found, large.tolist())))


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(talk, (str(tmp_path), free_port()), nprocs=2)
    for rank in (0, 1):
        expected = ([2**54 + 1, 4], [{"rank": 0}, {"rank": 1}], "from 0"), [2**53, 1 + rank]
        assert Path(tmp_path, str(rank)).read_text() == repr(expected)
