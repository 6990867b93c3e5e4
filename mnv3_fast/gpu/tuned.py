"""Which kernel of a layer was measured to be faster on this device: what ``mnv3-fast tune`` stored, read once.

One JSON file for a device and all versions in the user's cache directory, beside the first-use check's (keyed_file.py).
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from mnv3_fast.gpu import DTYPES, first_use, keyed_file, launch
from mnv3_fast.gpu.keyed_file import Invalid, KeyedFile, fields
from mnv3_fast.gpu.outcomes import name_of

if TYPE_CHECKING:
    from mnv3_fast.gpu.choice import Question

FILE = KeyedFile("tuned", "choices", most_bytes=1 << 20, foreign=logging.WARNING)
MOST_CHOICES = 1000
"""That a file keeps; of more the oldest go."""
NAMES = {name_of(dtype): dtype for dtype in DTYPES}
LENGTHS = {"shape": 4, "kernel": 2, "window": 8}
NUMBERS = ("activation", "hidden", "squeeze", "out")
FIELDS = ("op", "dtype", *LENGTHS, *NUMBERS, "sums", "variant")
MOST = 2**31 - 1


def describe(device: torch.device) -> dict[str, str]:
    """The key of a device: its kind, all versions, and the text of the kernels."""
    return first_use.key_of(*first_use.describe(device))


class Choices:
    """What was measured, and the file that it is kept in.

    Args:
        describe: gives the key of a device.
        folder: of the files; None for nowhere.
    """

    def __init__(
        self, describe: Callable[[torch.device], dict[str, str]] = describe, folder: Path | None = None
    ) -> None:
        self._describe, self._folder = describe, folder
        self._by_device: dict[torch.device, dict[Question, str]] = {}
        self._by_kind: dict[tuple[str, ...], dict[Question, str]] = {}
        self._lock = threading.Lock()

    def lookup(self, question: Question, device: torch.device) -> str | None:
        """As the function of this name."""
        device = launch.with_index(device)
        found = self._by_device.get(device)
        if found is None:
            with self._lock:
                found = self._read(device)
        return found.get(question)

    def path_of(self, device: torch.device) -> Path:
        """The file of a device.

        Raises:
            OSError: where nothing can be kept.
        """
        key = self._describe(device)
        if self._folder is None:
            raise OSError("the user has no home directory")
        if not keyed_file.is_lasting(key):
            raise OSError("an installation without Triton or without sources keeps nothing")
        return FILE.path_of(self._folder, key)

    def store(self, device: torch.device, variants: Mapping[Question, str | None]) -> Path:
        """Keep what was measured, beside what this file keeps of other questions; returns the file.

        Networks whose launches were made before keep them.

        Args:
            device: that was measured.
            variants: "triton" or "cuda"; None where neither was faster, which forgets what was kept.

        Raises:
            OSError: if the file cannot be written; what it said is used in this process all the same.
        """
        device = launch.with_index(device)
        with self._lock:
            known = self._read(device)  # which tells of a file that cannot be used
            _merge(known, variants)
        path, key = self.path_of(device), self._describe(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".tuned.lock"):  # another process may measure another network
            try:
                kept = dict(FILE.load(path, key, _parse))
            except Invalid:
                kept = {}
            _merge(kept, variants)
            items = [_item(question, variant) for question, variant in kept.items()]
            FILE.write(path, key, items[-MOST_CHOICES:])
        return path

    def forget(self, device: torch.device) -> Path:
        """Remove the file of a device, which need not be there; returns its path.

        Raises:
            OSError: if it cannot be removed.
        """
        device = launch.with_index(device)
        path = self.path_of(device)
        path.unlink(missing_ok=True)
        with self._lock:
            self._read(device).clear()
        return path

    def _read(self, device: torch.device) -> dict[Question, str]:
        """What is known of a device; all devices of a kind have it in common, and its file is read once."""
        if device not in self._by_device:
            key = self._describe(device)
            kind = tuple(key.values())
            if kind not in self._by_kind:
                keeps = self._folder is not None and keyed_file.is_lasting(key)
                self._by_kind[kind] = dict(FILE.read(self.path_of(device), key, _parse)) if keeps else {}
            self._by_device[device] = self._by_kind[kind]
        return self._by_device[device]


@functools.cache
def choices() -> Choices:
    """Those that the library asks."""
    return Choices(folder=keyed_file.cache_folder())


def lookup(question: Question, device: torch.device) -> str | None:
    """ "triton" or "cuda"; None where nothing was measured, or neither was faster.

    A file that is corrupt or of another device is ignored with one warning.
    """
    return choices().lookup(question, device)


def _merge(known: dict[Question, str], variants: Mapping[Question, str | None]) -> None:
    for question, variant in variants.items():
        known.pop(question, None)  # the newest go to the end
        if variant is not None:
            known[question] = variant


def _item(question: Question, variant: str) -> dict[str, Any]:
    """A choice as the file has it."""
    return {**vars(question), "dtype": name_of(question.dtype), "variant": variant}


def _parse(items: list[Any]) -> list[tuple[Question, str]]:
    if len(items) > MOST_CHOICES:
        raise Invalid(f"there are more than {MOST_CHOICES} choices")
    found = [_choice(item) for item in items]
    if len(dict(found)) < len(found):
        raise Invalid("a question has two answers")
    return found


def _choice(item: Any) -> tuple[Question, str]:
    from mnv3_fast.gpu.choice import OPS, VARIANTS, Question  # which asks this module

    fields(item, FIELDS, "a choice")
    for name, known in (("op", OPS), ("dtype", tuple(NAMES)), ("variant", VARIANTS)):
        if item[name] not in known:
            raise Invalid(f"{name} must be one of {', '.join(known)}")
    for name, length in LENGTHS.items():
        if type(item[name]) is not list or len(item[name]) != length or not all(map(_is_size, item[name])):
            raise Invalid(f"{name} must have {length} whole numbers that are not negative")
    for name in NUMBERS:
        if not _is_size(item[name]):
            raise Invalid(f"{name} must be a whole number that is not negative")
    if type(item["sums"]) is not bool:
        raise Invalid("sums is neither true nor false")
    values = {name: tuple(value) if name in LENGTHS else value for name, value in item.items() if name != "variant"}
    return Question(**{**values, "dtype": NAMES[item["dtype"]]}), item["variant"]


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST
