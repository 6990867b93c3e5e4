"""One process or many: what torchrun started, and sums over all of it.

A single process needs no torch.distributed. Numbers and Python objects travel by gloo, exact and without a GPU;
gradients of a network on GPUs by NCCL, in the same group.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one, which may have slower disks or compile kernels first."""

OF_GLOO = re.compile(r"/gloo/\S+:\d+\]")
"""In gloo's errors, which are plain RuntimeErrors: the line of its code that they come from."""


class ProcessesLost(RuntimeError):
    """Another process of the group has ended or cannot be reached."""


class Processes:
    """The processes that work together, of which this is one; a context manager that starts and ends their group.

    ``sum``, ``gather``, ``broadcast`` and ``wait`` are called by all of them in the same order, and raise ProcessesLost
    where another one has gone.

    Attributes:
        rank: the number of this one, from 0.
        world: how many there are.
        local_rank: the number of this one on its machine.
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0) -> None:
        if not (0 <= rank < world and local_rank >= 0):
            raise ValueError(f"Processes: rank {rank}, local rank {local_rank} of {world} processes cannot be")
        self.rank, self.world, self.local_rank = rank, world, local_rank
        self._started = False

    @classmethod
    def from_environment(cls) -> Processes:
        """What torchrun says in the environment; one process where nobody says anything.

        Raises:
            ValueError: if a variable is missing beside others, or is no number.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
            return cls()
        values = []
        for name in (*names, "MASTER_ADDR", "MASTER_PORT"):
            text = os.environ.get(name)
            if text is None or (name != "MASTER_ADDR" and not text.isdecimal()):
                raise ValueError(f"Processes: {name} is {text!r}; torchrun sets {', '.join(names)} to numbers")
            values.append(text)
        return cls(*(int(text) for text in values[: len(names)]))

    def __enter__(self) -> Processes:
        """Join the group.

        Raises:
            ProcessesLost: if the others cannot be reached.
        """
        if self.world > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
            with connected():
                dist.init_process_group(backend, rank=self.rank, world_size=self.world, timeout=TIMEOUT)
            self._started = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._started = False
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def device(self, name: str | torch.device) -> torch.device:
        """A device for this process: of ``cuda`` without a number, the GPU of its local rank, also for new tensors.

        Raises:
            ValueError: for a name that is no device's, or a GPU that torch does not see.
        """
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"device: {name!r} is none, cpu, cuda or cuda:N is wanted") from error
        if device.type != "cuda":
            return device
        index = self.local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ValueError(f"device {name}: torch sees {torch.cuda.device_count()} GPUs, number {index} is wanted")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the CPU, of the same shape and dtype in each."""
        if self.world == 1:
            return values
        result = values.clone()
        with _talking():
            dist.all_reduce(result)
        return result

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, in the order of their ranks, in every process."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        with _talking():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """What the first process gives, in every process."""
        if self.world == 1:
            return value
        values = [value if self.is_first else None]
        with _talking():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until all have come here."""
        self.sum(torch.zeros(1))  # a barrier of torch's would ask for a GPU where there are some


@contextmanager
def connected() -> Iterator[None]:
    """Around code of torch that talks to other processes, as DistributedDataParallel does; its other errors pass.

    Raises:
        ProcessesLost: where another one has gone.
    """
    try:
        yield
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        if not isinstance(error, dist.DistError) and not OF_GLOO.search(first):
            raise
        raise ProcessesLost(_lost(first)) from error


def _lost(reason: str) -> str:
    return f"another of the processes has ended or cannot be reached ({reason})"


@contextmanager
def _talking() -> Iterator[None]:
    """Around what waits for others: gloo's error names a line of its code."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessesLost(_lost(str(error).partition("\n")[0])) from error
