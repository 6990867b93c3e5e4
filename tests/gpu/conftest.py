"""What is collected here: nothing unless this folder is asked for, and then what suits the way Triton runs.

``pytest tests`` leaves the folder out: its tests compile for minutes, and import Triton, which not every machine has.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INTERPRETED = HERE / "interpreted"


def _asked_for(config: pytest.Config) -> bool:
    """Whether an argument names this folder or something in it."""
    arguments = (Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args)
    return any(path == HERE or HERE in path.parents for path in arguments)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what was not asked for, and interpreted tests where Triton compiles, and the other way round."""
    if not _asked_for(config):
        return True
    if collection_path.suffix != ".py":
        return None
    interpreting = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    return True if (INTERPRETED in collection_path.parents) != interpreting else None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say at once what is wrong with Triton, instead of in every test."""
    if not _asked_for(session.config) or os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return
    from tests.gpu.compile import WrongTriton, require_triton

    try:
        require_triton()
    except WrongTriton as error:
        raise pytest.UsageError(str(error)) from None
