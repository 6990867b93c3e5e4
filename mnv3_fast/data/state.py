"""How far an evaluation has come, kept in a file: whenever it ends, the next one goes on from there.

The file is replaced as a whole, and what it says of predictions is how many bytes of their file are of counted images.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.data.evaluation import Accuracy
from mnv3_fast.data.folders import Split
from mnv3_fast.whole_files import replacing

KIND = "mnv3-fast test, state 1"
PERIOD = 1.0
"""Seconds between two writes; what came after the last one is computed again."""


class State:
    """The state file of one evaluation.

    Attributes:
        path: of the file.
        about: what is evaluated, how and where; a state of anything else is refused.
        total: how many images there are.
        known: what is counted.
        written: bytes of the predictions' file that belong to it.
    """

    def __init__(self, path: Path, about: dict[str, Any], total: int) -> None:
        self.path, self.about, self.total = path, about, total
        self.known, self.written = Accuracy(), 0
        self._saved = 0.0

    def read(self) -> bool:
        """Go on from the file; False if there is none.

        Raises:
            ValueError: if it is no state, or one of something else; the message says what differs.
            OSError: if it cannot be read.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is no state of mnv3-fast test") from error
        try:
            found = json.loads(text)
            if found["kind"] != KIND:
                raise ValueError("of another kind")
            about, written = dict(found["about"]), int(found["written"])
            unreadable = tuple((str(path), str(why)) for path, why in found["known"].pop("unreadable"))
            known = Accuracy(**found["known"], unreadable=unreadable)
            _check_counts(known, self.total)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{self.path} is no state of mnv3-fast test") from error
        differ = [name for name in self.about | about if self.about.get(name) != about.get(name)]
        if differ:
            words = ", ".join(f"{name} is {about.get(name)} there, {self.about.get(name)} here" for name in differ)
            raise ValueError(f"{self.path} is the state of another run: {words}")
        self.known, self.written = known, written
        return True

    def save(self, known: Accuracy, written: int, now: bool = False) -> None:
        """Keep what is counted: in memory, and once a second in the file; ``now`` at once.

        Raises:
            OSError: if it cannot be written.
        """
        self.known, self.written = known, written
        if not now and time.monotonic() - self._saved < PERIOD:
            return
        content = {"kind": KIND, "about": self.about, "known": asdict(known), "written": written}
        with replacing(self.path) as beside, beside.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        self._saved = time.monotonic()

    def remove(self) -> None:
        """The evaluation is complete."""
        self.path.unlink(missing_ok=True)


def _check_counts(known: Accuracy, total: int) -> None:
    """A damaged file must not become an accuracy."""
    counts = [0, known.correct_top1, known.correct_top5, known.images - len(known.unreadable), known.images, total]
    if not all(type(count) is int for count in (*counts, known.not_finite)) or counts != sorted(counts):
        raise ValueError("of no evaluation")
    if not (0 <= known.not_finite <= known.images and 0 <= known.seconds < float("inf")):
        raise ValueError("of no evaluation")


def digest_of_split(split: Split) -> str:
    """The same for the same file names and labels in the same order, wherever they lie."""
    found = hashlib.sha256()
    for path, label in split.samples:
        found.update(f"{path.removeprefix(split.folder)}\0{label}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:16]


def digest_of_weights(state: dict[str, Tensor]) -> str:
    """The same for the same names and values."""
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]
