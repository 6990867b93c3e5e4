"""Files that are replaced once they are whole: whatever happens on the way, the old one or the new one is there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BESIDE = ".mnv3-fast-"
"""How the names of files begin that are not whole yet; a kill leaves them."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file in the folder of another one, for its owner only, that takes its place in the end.

    After an exception it is gone, and the old one is as it was.

    Raises:
        OSError: if it cannot be made or put in place.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=BESIDE, suffix=path.suffix)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        os.replace(beside, path)
    except BaseException:
        beside.unlink()
        raise
