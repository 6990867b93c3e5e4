"""The folder of a run: one run at a time, and files that are whole or not there.

last.pth is what --resume goes on from; best_epoch_N.pth are those of the last epochs that raised the accuracy, the
weights alone; averaged.pth is their mean; scalars.json is the log.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mnv3_fast.checkpoints import read_checkpoint


class WorkDir:
    """A folder that one run writes. The system frees its lock however the run ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.pth"
        self.averaged = path / "averaged.pth"
        self.log = path / "scalars.json"
        path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / ".lock")

    def __enter__(self) -> WorkDir:
        """Take the folder.

        Raises:
            ValueError: if another run has it.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"train: {self.path} is in use by another run") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def best(self, epoch: int) -> Path:
        """The file of an epoch that raised the accuracy."""
        return self.path / f"best_epoch_{epoch}.pth"

    def keep_best(self, epochs: list[int]) -> None:
        """Remove the files of all other epochs."""
        kept = {self.best(epoch) for epoch in epochs}
        for path in self.path.glob("best_epoch_*.pth"):
            if path not in kept:
                path.unlink()

    def begin(self, resume: bool) -> dict[str, Any] | None:
        """What to go on from; None to begin, also with ``resume`` where there is no run yet.

        Raises:
            ValueError: if there is a run and ``resume`` is False, or its checkpoint is damaged.
        """
        if not self.last.exists() and not self.log.exists():
            return None
        if not resume:
            raise ValueError(f"train: {self.path} holds a run: resume it, or choose another folder")
        return read_checkpoint(self.last) if self.last.exists() else None


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a file; whatever happens on the way, the old one stays until the new one is whole."""
    contents = io.BytesIO()  # torch's own writer makes a RuntimeError of a full disk
    torch.save(checkpoint, contents)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".mnv3-fast-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(contents.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
