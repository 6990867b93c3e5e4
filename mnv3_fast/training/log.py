"""The log: a line of JSON a record, with the keys of mmpretrain 1.x's scalars.json, so that its tools read it.

Of training: lr, data_time, loss, time (seconds an iteration, means since the last line), epoch, iter, memory (MB, on
GPUs only), step. Of validation: accuracy/top1, accuracy/top5 (%), step (the epoch). Source: mmengine's LoggerHook.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mnv3_fast.training.work_dir import writing


class Log:
    """Appends to a file, a whole line at a time; ``size`` tells how long it is."""

    def __init__(self, path: Path, size: int) -> None:
        """Go on behind the first ``size`` bytes; what follows them is cut off, a run that ended wrote it too far on."""
        self.path = path
        with writing(path), path.open("ab") as file:
            if file.tell() < size:
                raise ValueError(f"train: {path} has {file.tell()} bytes, its run had written {size}")
            os.truncate(path, size)
        self.size = size

    def write(self, record: dict[str, Any]) -> None:
        """One record."""
        line = (json.dumps(record) + "\n").encode("utf-8")
        with writing(self.path), self.path.open("ab") as file:
            file.write(line)
        self.size += len(line)
