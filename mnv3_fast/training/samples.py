"""Which training images come when, and their reading in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from mnv3_fast.data.loading import leave_signals
from mnv3_fast.models.preprocessing import BadImage, open_image
from mnv3_fast.training.seeds import seed_of, seeded


@dataclass(frozen=True)
class Order:
    """The order in which images come, for one of several processes.

    An epoch is a permutation of all images that depends on seed and epoch alone. Its first ``world * batch`` positions
    are the first batch of all processes together, of which each takes every ``world``-th; so two processes with a batch
    of 64 see in each iteration what one with 128 sees. What does not fill the last batch is left out.

    Attributes:
        count: how many images there are.
        batch: images a process and iteration.
        seed: the run's.
        rank: the number of this process.
        world: how many processes there are.
        repetitions: how often each image comes in a row, on different processes where there are some (repeated
            augmentation); an epoch then has that many fewer different images.

    Raises:
        ValueError: if there are fewer images than a batch of all processes has.
    """

    count: int
    batch: int
    seed: int
    rank: int = 0
    world: int = 1
    repetitions: int = 1

    def __post_init__(self) -> None:
        if self.iterations == 0:
            raise ValueError(
                f"train: a batch has {self.world} x {self.batch} images, there are {self.count} to train with"
            )

    @property
    def iterations(self) -> int:
        """Iterations an epoch."""
        return self.count // (self.batch * self.world)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """Of this process's batches from iteration ``start`` of an epoch on, each image's index and what seeds it."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator)
        order = order.repeat_interleave(self.repetitions)[: self.count].tolist()
        stride = self.batch * self.world
        for first in range(start * stride, self.iterations * stride, stride):
            places = range(first + self.rank, first + stride, self.world)
            yield [(order[place], (self.seed, epoch, place)) for place in places]


class TrainingImages(Dataset):
    """Augmented images with labels; one that cannot be read is the reason why, for the loop to tell."""

    def __init__(self, samples: list[tuple[str, int]], transform: v2.Compose) -> None:
        self.samples, self.transform = samples, transform

    def __getitem__(self, key: tuple[int, tuple[int, ...]]) -> tuple[Tensor, int] | str:
        index, place = key
        path, label = self.samples[index]
        try:
            image: Image.Image = open_image(path, plain=True)
            with seeded(seed_of(*place)):
                return self.transform(image), label
        except (BadImage, ValueError) as error:  # torchvision's, of an image smaller than a window of its pixels
            return str(error) if path in str(error) else f"{path}: {error}"


def collate(items: list[tuple[Tensor, int] | str]) -> list[Tensor] | str:
    """A batch; or what was wrong with an image of it."""
    return next((item for item in items if isinstance(item, str)), None) or default_collate(items)


def load(
    images: TrainingImages, order: Order, epoch: int, start: int, workers: int, pin: bool
) -> Iterator[list[Tensor] | str]:
    """Batches [images float32 [N, 3, H, W], labels int64 [N]] of an epoch, read ahead by workers; inside of
    :func:`watched`."""
    batches: DataLoader[list[Tensor] | str] = DataLoader(
        images,
        batch_sampler=order.batches(epoch, start),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=leave_signals,
        generator=torch.Generator(),  # else it would draw from the one that everybody shares
    )
    return iter(batches)
