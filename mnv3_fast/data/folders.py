"""A labelled set of images on disk, in ImageNet's two layouts.

Class folders, as torchvision's ImageFolder reads them: ``ROOT/SPLIT/CLASS/*.JPEG``. Or files of labels, as mmpretrain
reads them: ``ROOT/meta/SPLIT.txt`` with a line ``PATH LABEL`` an image, the path below ``ROOT/SPLIT``. Where both are
there, the file of labels is what counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

NAMED = 3  # how many files or classes an error names


@dataclass(frozen=True)
class Split:
    """Images with labels.

    Attributes:
        folder: where the images lie.
        samples: a path and a label for each image, in a fixed order: by class and name, or as the file of labels has
            them.
        classes: the classes' names in the order of their labels, which is that of the sorted names of the folders
            (ImageNet's order of WordNet ids); empty where a file of labels has another order or there are no folders.
    """

    folder: str
    samples: list[tuple[str, int]]
    classes: tuple[str, ...]

    @cached_property
    def num_classes(self) -> int:
        """How many classes there are; without their names, how many the labels tell of, which may be too few."""
        return len(self.classes) or 1 + max(label for _, label in self.samples)


def read_split(root: str | os.PathLike[str], split: str, num_classes: int | None = None) -> Split:
    """The images and labels of ``train`` or ``val`` (or another folder's name) below ``root``.

    Args:
        root: the folder of the set, ``data/imagenet``.
        split: the part, ``val``.
        num_classes: how many classes the model has; None for any number.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if there is no image, a class without one, another number of classes than ``num_classes``, or a file
            of labels that has a line of another form, a label out of range, a file twice or one that is not there; the
            message names them.
    """
    folder, meta = Path(root, split), Path(root, "meta", f"{split}.txt")
    if not folder.is_dir():
        if _class_folders(Path(root)) and not meta.exists():
            hint = f"; {root} holds folders itself: the folder above those of the splits is wanted"
        else:
            hint = ""
        raise FileNotFoundError(f"data: there is no folder {folder}{hint}")
    found = _labelled(folder, meta, num_classes) if meta.is_file() else _in_class_folders(folder)
    if num_classes is not None and found.classes and len(found.classes) != num_classes:
        raise ValueError(f"data: {folder} has {len(found.classes)} classes, the model has {num_classes}")
    return found


def _class_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


def _in_class_folders(folder: Path) -> Split:
    classes = _class_folders(folder)
    if not classes:
        wanted = f"one for each class, or {folder.parent / 'meta' / folder.name}.txt with labels"
        raise ValueError(f"data: {folder} has no folders; {wanted} is wanted")
    labels = {name: label for label, name in enumerate(classes)}
    samples = make_dataset(folder, labels, IMG_EXTENSIONS, allow_empty=True)
    filled = {label for _, label in samples}
    empty = [name for name, label in labels.items() if label not in filled]
    if empty:
        raise ValueError(f"data: {folder} has {len(empty)} classes without an image: {_some(empty)}")
    return Split(str(folder), samples, classes)


def _labelled(folder: Path, meta: Path, num_classes: int | None) -> Split:
    classes = _class_folders(folder) or _class_folders(folder.parent / "train")
    limit = num_classes or len(classes) or None
    samples: list[tuple[str, int]] = []
    seen: set[str] = set()
    for number, name, label in _lines(meta):
        if label < 0 or (limit is not None and label >= limit):
            wanted = f"0 to {limit - 1}" if limit is not None else "0 or more"
            raise ValueError(f"data: {meta}, line {number}: label {label} of {name}, {wanted} is wanted")
        plain = os.path.normpath(name)  # of names such as a.jpg and ./a.jpg
        if plain in seen:
            raise ValueError(f"data: {meta}, line {number}: {name} is there twice")
        seen.add(plain)
        samples.append((os.path.join(folder, name), label))
    if not samples:
        raise ValueError(f"data: {meta} names no image")
    missing = _missing([path for path, _ in samples])
    if missing:
        raise ValueError(f"data: {meta} names {len(missing)} files that are not there: {_some(missing)}")
    return Split(str(folder), samples, classes if _agree(samples, classes) else ())


def _agree(samples: list[tuple[str, int]], classes: tuple[str, ...]) -> bool:
    """Whether the labels of files in class folders are those folders' places in the order of names."""
    places = {name: place for place, name in enumerate(classes)}
    return all(
        places.get(folder, label) == label
        for folder, label in ((os.path.basename(os.path.dirname(path)), label) for path, label in samples)
    )


def _lines(meta: Path) -> Iterator[tuple[int, str, int]]:
    with meta.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            name, _, label = line.strip().rpartition(" ")
            if not line.strip():
                continue
            if not name or not label.removeprefix("-").isdecimal():
                raise ValueError(f"data: {meta}, line {number}: {line.strip()!r:.80}, a path and a label are wanted")
            yield number, name.strip(), int(label)


def _missing(paths: list[str]) -> list[str]:
    """Those that are no files; folders are listed, which is faster than to ask for each of a million files."""
    there: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        parent, name = os.path.split(path)
        if parent not in there:
            try:
                with os.scandir(parent) as entries:
                    there[parent] = {entry.name for entry in entries if entry.is_file()}
            except OSError:
                there[parent] = set()
        if name not in there[parent]:
            missing.append(path)
    return missing


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
