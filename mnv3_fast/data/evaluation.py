"""Top-1 and top-5 accuracy over a split, exact in one process or many, and from where an earlier run ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mnv3_fast.data.folders import Split
from mnv3_fast.data.loading import Batch, PreparedImages, Shares, read_batches, watched
from mnv3_fast.data.processes import Processes
from mnv3_fast.models.variants import Preprocessing

TOP = 5
NOT_FINITE = "the network's outputs are not finite"
TURNS = 8
"""How many batches each of several processes computes before they add up: none waits for every batch of another."""


class Outcome(NamedTuple):
    """What a network said of the image at a place of a split: its best classes with their probabilities, or what
    went wrong."""

    place: int
    labels: list[int]
    scores: list[float]
    error: str | None


@dataclass(frozen=True)
class Accuracy:
    """Counts over a split, or over its first ``images`` images.

    Attributes:
        images: how many have been looked at, those that could not be read included.
        correct_top1, correct_top5: how many of them the network was right about.
        not_finite: of how many the outputs were infinite or not a number, which is never right.
        unreadable: the files that could not be read, which count as wrong, with what is wrong with them.
        seconds: how long it took.
    """

    images: int = 0
    correct_top1: int = 0
    correct_top5: int = 0
    not_finite: int = 0
    unreadable: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0

    @property
    def top1(self) -> float:
        """Percent of the images; 0 of none."""
        return 100 * self.correct_top1 / max(self.images, 1)

    @property
    def top5(self) -> float:
        """Percent of the images with the right class among the best five (or all, of fewer classes); 0 of none."""
        return 100 * self.correct_top5 / max(self.images, 1)

    @property
    def images_per_second(self) -> float:
        """From the start of the reading to the last count."""
        return self.images / self.seconds if self.seconds else 0.0


@dataclass
class _Counts:
    """What one process found since the last sum."""

    correct_top1: int = 0
    correct_top5: int = 0
    not_finite: int = 0
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def add(self, batch: Batch, logits: Tensor, labels: Tensor, keep: bool) -> None:
        """Count a batch; ``keep`` its outcomes as well."""
        logits = logits.float()
        best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        finite = logits.isfinite().all(1)
        hits = (best == labels[:, None]) & finite[:, None]
        first, any_of, bad = torch.stack([hits[:, 0].sum(), hits.sum(), (~finite).sum()]).tolist()
        self.correct_top1 += first
        self.correct_top5 += any_of
        self.not_finite += bad
        self.unreadable += batch.unreadable
        if keep:
            scores = logits.softmax(1).gather(1, best)
            rows = zip(batch.places, best.tolist(), scores.tolist(), finite.tolist(), strict=True)
            self.outcomes += [
                Outcome(place, labels, values, None) if fine else Outcome(place, [], [], NOT_FINITE)
                for place, labels, values, fine in rows
            ]
            self.outcomes += [Outcome(place, [], [], why) for place, why in batch.unreadable]


def evaluate(
    run: Callable[[Tensor], Tensor],
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch: int = 64,
    workers: int = 2,
    processes: Processes | None = None,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    start: Accuracy | None = None,
    progress: Callable[[Accuracy, list[Outcome]], None] | None = None,
    keep: bool = False,
) -> Accuracy:
    """How often a network is right about the images of a split; without gradients.

    Files are decoded as torchvision's ImageFolder does. An image that cannot be read counts as one that the network is
    wrong about, so that it can only lower the accuracy; it is named in the result.

    Args:
        run: uint8 images [n, 3, crop, crop] on ``device`` to logits [n, classes]; normalising is its own. A module of
            it must be in eval mode.
        split: the images and labels.
        preprocessing: how files become images.
        batch: images a call, in each process.
        workers: processes that decode for each process; 0 decodes in this one.
        processes: those that share the work; each image is given to one of them, exactly once.
        device: where ``run`` takes images.
        amp: autocast's dtype; None computes in the network's own.
        start: what an earlier run had counted; the rest is added to it.
        progress: called in the first process with the counts so far, always those of a beginning of the split, and, if
            ``keep``, the outcomes since the last call, in order.
        keep: keep outcomes for ``progress``.

    Returns:
        The counts over all processes, in each of them.

    Raises:
        ValueError: if the network has another number of classes than the split; the message names both.
        WorkerDied: if a process that decodes was killed.
    """
    processes, device, known = processes or Processes(), torch.device(device), start or Accuracy()
    shares = Shares(known.images, len(split.samples), batch, processes)
    labels = torch.tensor([label for _, label in split.samples])
    every = TURNS if processes.world > 1 else 1
    began, counts = time.perf_counter() - known.seconds, _Counts()
    with watched(), torch.no_grad(), torch.autocast(device.type, amp, enabled=amp is not None):
        batches = iter(read_batches(PreparedImages(split, preprocessing), shares, workers, device.type == "cuda"))
        for turn in range(shares.turns):
            found = next(batches, None)
            if found is not None and found.places:
                logits = run(found.images.to(device, non_blocking=True))
                _check_logits(logits, len(found.places), split)
                counts.add(found, logits, labels[found.places].to(device), keep)
            elif found is not None:
                counts.add(found, torch.empty(0, 1), labels[:0], keep)
            if (turn + 1) % every == 0 or turn + 1 == shares.turns:
                known, outcomes = _added(known, counts, split, processes)
                known = replace(known, images=shares.done_after(turn), seconds=time.perf_counter() - began)
                counts = _Counts()
                if progress is not None and processes.is_first:
                    progress(known, outcomes)
    return known


def _added(known: Accuracy, counts: _Counts, split: Split, processes: Processes) -> tuple[Accuracy, list[Outcome]]:
    """The counts of all processes added, and their outcomes in the order of the split."""
    parts: list[_Counts] = processes.gather(counts)
    unreadable = sorted(item for part in parts for item in part.unreadable)
    added = replace(
        known,
        correct_top1=known.correct_top1 + sum(part.correct_top1 for part in parts),
        correct_top5=known.correct_top5 + sum(part.correct_top5 for part in parts),
        not_finite=known.not_finite + sum(part.not_finite for part in parts),
        unreadable=known.unreadable + tuple((split.samples[place][0], why) for place, why in unreadable),
    )
    return added, sorted(outcome for part in parts for outcome in part.outcomes)


def _check_logits(logits: Tensor, images: int, split: Split) -> None:
    if logits.dim() != 2 or logits.shape[0] != images:
        raise ValueError(f"evaluate: run must give [{images}, classes], got {list(logits.shape)}")
    count = logits.shape[1]
    if count != split.num_classes if split.classes else count < split.num_classes:
        raise ValueError(f"evaluate: {split.folder} has {split.num_classes} classes, the network {count}")
