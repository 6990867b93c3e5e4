"""Classifying files by the thousand: decoding beside the engine, one bad file skipped, memory flat."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mnv3_fast.models.preprocessing import DEEP_MODES, BadImage, open_image, prepare
from mnv3_fast.models.variants import Preprocessing

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ENLARGED = 4  # an image enlarged more than this has little in it to see
CUT_AWAY = 4  # of a longer image than this the central crop shows less than a quarter


@dataclass(frozen=True)
class Guess:
    """One class of an image with its probability."""

    label: int
    name: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The best classes of one file, best first; or the error that kept it from being read."""

    path: str
    guesses: list[Guess] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Classifier:
    """What it takes to classify files: an engine for uint8 images, how they are prepared, the classes' names; and what
    is to stand among the warnings of every image."""

    engine: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def find_images(sources: Iterable[str]) -> Iterator[str]:
    """The files that paths, folders (with all below them, images only) and globs stand for, each once, in order.

    A path that does not exist is given back as it is, so that the reader reports it.
    """
    seen: set[str] = set()
    for source in sources:
        for path in _expand(source):
            if path not in seen:
                seen.add(path)
                yield path


def _expand(source: str) -> Iterator[str]:
    if os.path.isdir(source):
        for folder, folders, files in os.walk(source):
            folders.sort()
            paths = (os.path.join(folder, name) for name in sorted(files) if Path(name).suffix.lower() in EXTENSIONS)
            yield from (path for path in paths if os.path.isfile(path) or not os.path.exists(path))
    elif os.path.exists(source) or not glob.has_magic(source):
        yield source
    else:
        yield from sorted(path for path in glob.iglob(source, recursive=True) if not os.path.isdir(path))


def read_image(path: str, how: Preprocessing) -> tuple[Tensor | None, list[str], str | None]:
    """A file as the network's input with what looks wrong about it; or None and the error."""
    try:
        image = open_image(path)
        found = prepare(image, how)
    except (BadImage, MemoryError) as error:
        return None, [], str(error).removeprefix(f"{path}: ") or type(error).__name__
    return found, suspicions(image.size, image.info.get("mode_before"), found, how), None


def suspicions(size: tuple[int, int], mode: str | None, prepared: Tensor, how: Preprocessing) -> list[str]:
    """What about an image is unlike the photos that networks are trained on."""
    short, long = min(size), max(size)
    found = []
    if mode in DEEP_MODES:
        found.append(f"mode {mode}: scaled to 8 bits")
    if short * ENLARGED < how.resize:
        found.append(f"{size[0]} x {size[1]} pixels: enlarged {how.resize / short:.0f} times")
    if long > CUT_AWAY * short:
        found.append(
            f"{size[0]} x {size[1]} pixels: the central crop shows {100 * short * how.crop / how.resize / long:.0f}%"
        )
    low, high = int(prepared.min()), int(prepared.max())
    mean = float(prepared.float().mean())
    if high - low < 8:
        found.append(f"all values lie between {low} and {high}")
    elif not 8 <= mean <= 247:
        found.append(f"the mean of 0 to 255 is {mean:.1f}: nearly {'black' if mean < 8 else 'white'}")
    return found


def predict_files(
    classifier: Classifier, paths: Iterable[str], top: int = 5, batch: int = 8, workers: int = 2
) -> Iterator[Prediction]:
    """Classify files in order, in batches; ``workers`` threads decode ahead, at most two batches.

    Args:
        classifier: what classifies.
        paths: files; one that cannot be read gives a Prediction with ``error``.
        top: how many classes each gets.
        batch: images a call of the engine.
        workers: threads that decode.

    Yields:
        A Prediction for each path, in order.
    """
    waiting: deque[tuple[str, Future]] = deque()
    source = iter(paths)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mnv3-fast-decode")
    try:
        exhausted = False
        while True:
            while not exhausted and len(waiting) < 2 * batch + workers:
                path = next(source, None)
                exhausted = path is None
                if path is not None:
                    waiting.append((path, pool.submit(read_image, path, classifier.preprocessing)))
            if not waiting:
                return
            taken = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
            yield from _classify(classifier, [(path, *future.result()) for path, future in taken], top)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@torch.inference_mode()
def _classify(
    classifier: Classifier, images: list[tuple[str, Tensor | None, list[str], str | None]], top: int
) -> list[Prediction]:
    good = [image for _, image, _, _ in images if image is not None]
    scores = classifier.engine(torch.stack(good)).softmax(1) if good else torch.empty(0, len(classifier.classes))
    best = scores.topk(min(top, scores.shape[1]), dim=1)
    rows = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    found = []
    for path, image, warnings, error in images:
        if image is None:
            found.append(Prediction(path, error=error))
            continue
        labels, values = next(rows)
        guesses = [Guess(i, classifier.classes[i], value) for i, value in zip(labels, values, strict=True)]
        found.append(Prediction(path, guesses, [*classifier.warnings, *warnings]))
    return found
