"""The folder of a run: one run at a time, and files that are whole or not there.

last.pth is what --resume goes on from; best_epoch_N.pth are those of the last epochs that raised the accuracy, the
weights alone; averaged.pth is their mean; scalars.json is the log.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mnv3_fast.checkpoints import read_checkpoint
from mnv3_fast.whole_files import BESIDE, replacing

BEST = re.compile(r"best_epoch_([1-9]\d*)\.pth")
"""How the names of files begin that become another one when they are whole."""


class NotWritten(OSError):
    """A file or folder of a run cannot be written: a full disk, one that may not be written, and the like."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes, to tell it from what cannot be read.

    Raises:
        NotWritten: naming the path.
    """
    try:
        yield
    except OSError as error:
        raise NotWritten(f"train: {path} cannot be written: {error.strerror or error}") from error


class WorkDir:
    """A folder that one run writes. The system frees its lock however the run ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.pth"
        self.averaged = path / "averaged.pth"
        self.log = path / "scalars.json"
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / ".lock")

    def __enter__(self) -> WorkDir:
        """Take the folder, and remove what a run that was killed had not written whole.

        Raises:
            ValueError: if another run has it.
            NotWritten: if it cannot be written.
        """
        with writing(self.path):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:  # an OSError
                raise ValueError(f"train: {self.path} is in use by another run") from None
            for path in self.path.glob(f"{BESIDE}*"):
                path.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def best(self, epoch: int) -> Path:
        """The file of an epoch that raised the accuracy."""
        return self.path / f"best_epoch_{epoch}.pth"

    def keep_best(self, epochs: list[int]) -> None:
        """Remove the files of all other epochs."""
        for epoch in self._best_epochs():
            if epoch not in epochs:
                with writing(self.best(epoch)):
                    self.best(epoch).unlink()

    def _best_epochs(self) -> list[int]:
        """Those that there are files of."""
        found = (BEST.fullmatch(path.name) for path in self.path.iterdir())
        return [int(match[1]) for match in found if match]

    def begin(self, resume: bool) -> dict[str, Any] | None:
        """What to go on from; None to begin, also with ``resume`` where there is no run yet.

        Raises:
            ValueError: if there is a run and ``resume`` is False, or its checkpoint is damaged, or gone while weights
                of an epoch are there, which to begin anew would remove.
        """
        best, last = self._best_epochs(), self.last.exists()
        if not (last or self.log.exists() or best or self.averaged.exists()):
            return None
        if not resume:
            raise ValueError(
                f"train: {self.path} holds a run: go on with it (--resume), or choose another folder (--work-dir)"
            )
        if not last and (max(best, default=1) > 1 or self.averaged.exists()):  # a kill may leave those of epoch 1
            raise ValueError(f"train: {self.path} has a run's weights, but no {self.last.name}; choose another folder")
        return read_checkpoint(self.last) if last else None


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a file; whatever happens on the way, the old one stays until the new one is whole.

    Raises:
        NotWritten: if it cannot be written.
    """
    contents = io.BytesIO()  # torch's own writer makes a RuntimeError of a full disk
    torch.save(checkpoint, contents)
    with writing(path), replacing(path) as beside:
        with beside.open("wb") as file:
            file.write(contents.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(0o644)
