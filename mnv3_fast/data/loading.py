"""Images of a split by the batch: decoded, resized and cropped to uint8 by processes beside the one that computes."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mnv3_fast.data.folders import Split
from mnv3_fast.data.processes import Processes
from mnv3_fast.models.preprocessing import BadImage, open_image, prepare
from mnv3_fast.models.variants import Preprocessing


class WorkerDied(RuntimeError):
    """A process that decodes images was killed or ended by itself."""


@dataclass(frozen=True)
class Batch:
    """Some images of a split: those that could be read [n, 3, crop, crop], uint8, with their places in the split, and
    the places of the others with what is wrong with them."""

    images: Tensor
    places: list[int]
    unreadable: list[tuple[int, str]]

    def pin_memory(self) -> Batch:
        """The same in page-locked memory; the DataLoader calls it in a thread of its own."""
        return replace(self, images=self.images.pin_memory())


class PreparedImages(Dataset[tuple[int, Tensor | None, str]]):
    """The place of an image, the image as :func:`prepare` makes it, or None and what is wrong with the file."""

    def __init__(self, split: Split, how: Preprocessing) -> None:
        self.paths = [path for path, _ in split.samples]
        self.how = how

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[int, Tensor | None, str]:
        path = self.paths[place]
        try:
            return place, prepare(open_image(path, plain=True), self.how), ""
        except BadImage as error:
            return place, None, str(error).removeprefix(f"{path}: ")

    def together(self, items: list[tuple[int, Tensor | None, str]]) -> Batch:
        """Items as a batch."""
        good = [image for _, image, _ in items if image is not None]
        images = torch.stack(good) if good else torch.empty(0, 3, self.how.crop, self.how.crop, dtype=torch.uint8)
        places = [place for place, image, _ in items if image is not None]
        return Batch(images, places, [(place, why) for place, image, why in items if image is None])


class Shares(Sampler[list[int]]):
    """The batches of one process: the images from ``first`` on are cut into batches, which processes take in turn.

    Each image is in exactly one batch of one process; the last batch may be smaller, and the last turn may have no
    batch for some. After every turn what is done is a beginning of the split, however many processes there are.
    """

    def __init__(self, first: int, images: int, batch: int, processes: Processes) -> None:
        self.first, self.images, self.batch, self.processes = first, images, batch, processes

    @property
    def turns(self) -> int:
        """How often every process takes a batch, if there is one."""
        return -(-(self.images - self.first) // (self.batch * self.processes.world))

    def done_after(self, turn: int) -> int:
        """How many images of the split are done after turn 0, 1, ..."""
        return min(self.images, self.first + (turn + 1) * self.batch * self.processes.world)

    def __iter__(self) -> Iterator[list[int]]:
        step = self.batch * self.processes.world
        for start in range(self.first + self.batch * self.processes.rank, self.images, step):
            yield list(range(start, min(start + self.batch, self.images)))

    def __len__(self) -> int:
        return len(range(self.first + self.batch * self.processes.rank, self.images, self.batch * self.processes.world))


def read_batches(images: PreparedImages, shares: Shares, workers: int, pin: bool) -> DataLoader[Batch]:
    """The batches of this process in order; to be read inside of :func:`watched`.

    Args:
        images: what to read.
        shares: which of them.
        workers: processes that decode, two batches ahead each; 0 decodes in this one.
        pin: into page-locked memory, from which a GPU copies without waiting.
    """
    return DataLoader(
        images,
        batch_sampler=shares,
        num_workers=workers,
        collate_fn=images.together,
        pin_memory=pin,
        worker_init_fn=leave_signals,
    )


@contextmanager
def watched() -> Iterator[None]:
    """Around what a DataLoader's workers read for; torch interrupts any of it when one of them is killed.

    Raises:
        WorkerDied: then, as systems kill processes when no memory is left.
    """
    try:
        yield
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        if not re.match(r"DataLoader worker|Unexpected bus error|unable to (open|allocate) shared memory", first):
            raise
        advice = "perhaps for want of memory, of which fewer workers and smaller batches need less"
        raise WorkerDied(f"a process that decodes images died, {advice} ({first})") from error


def leave_signals(_: int) -> None:
    """Ctrl-C reaches every process of a terminal, SIGTERM of torchrun or a scheduler every one of a job; the one that
    computes ends its workers, which also end by themselves when it is gone.

    When that is while it takes a batch from one, the worker's thread that hands out memory prints a traceback through
    this hook, and nothing else does: errors of reading travel to the process that computes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = lambda *_: None
