"""Checkpoint files: torch's and safetensors; from a path or a URL."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from mnv3_fast.checkpoints.archives import read_torch_file, refuse_others
from mnv3_fast.checkpoints.downloads import local_path
from mnv3_fast.checkpoints.values import Placeholder, Refused, contents

logger = logging.getLogger("mnv3_fast")

EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict")
STATE_KEYS = ("state_dict", "model")
"""Where whole-checkpoint files keep averaged weights and the others, in the order in which they are tried."""
OURS = "mnv3_fast."
"""Before each of our keys in a safetensors file's metadata."""
AVERAGING = ("n_averaged", "steps")
"""What torch's and mmengine's averaged models keep beside the weights."""


def read_checkpoint(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint on the CPU; nothing in it is executed.

    Args:
        source: a path (``.safetensors`` or a file of ``torch.save``), or a http(s) or file URL, which is downloaded
            once into torch's hub folder.

    Returns:
        The file's dictionary: tensors, numpy's arrays, numbers, text and plain containers. What is of another kind in
        it is an inert :class:`mnv3_fast.checkpoints.values.Placeholder`. Of a safetensors file that
        ``mnv3-fast convert`` wrote: its tensors as ``state_dict``, with its metadata as ``mnv3_fast``.

    Raises:
        TypeError: if the source is no path and no URL.
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be downloaded, or not all of it.
        ValueError: if the file is no checkpoint, or is damaged, or another thing than its name says; for a URL of
            another kind.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"checkpoint: expected a path or a URL, got {type(source).__name__}")
    path = local_path(source)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {path}{', it is a folder' if path.is_dir() else ''}")
    try:
        loaded, unknown = read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
    except Refused as error:
        raise ValueError(f"checkpoint: {path} is no checkpoint, or none that can be read: {error}") from error
    except Exception as error:  # a damaged or made-up file can raise anything
        raise ValueError(f"checkpoint: {path} is no checkpoint, or is damaged: {_first_line(error)}") from error
    if unknown:
        names = ", ".join(sorted(unknown)[:20])
        logger.info("checkpoint: %s has objects of kinds that were not made, nothing of them ran: %s", path, names)
    if isinstance(loaded, Placeholder):
        raise ValueError(
            f"checkpoint: {path} holds {loaded}, which could only be made by running its code; "
            "save the model's state_dict()"
        )
    if not isinstance(loaded, dict):
        raise ValueError(f"checkpoint: {path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def read_safetensors(path: Path) -> tuple[dict[str, Any], set[str]]:
    """The tensors of a file, with metadata that ours has."""
    with path.open("rb") as file:
        refuse_others(file.read(512), "its name ends with .safetensors, but ")
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    ours = {key.removeprefix(OURS): value for key, value in metadata.items() if key.startswith(OURS)}
    return ({"state_dict": state, "mnv3_fast": ours} if ours else state), set()


def state_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state_dict of a checkpoint's dictionary: its averaged weights (EMA) where it has some, else the others.

    mmengine writes the average into ``state_dict`` and what was trained into ``ema_state_dict``, so of its files
    ``state_dict`` is taken.

    Raises:
        ValueError: if there is none.
    """
    for key in (*EMA_KEYS, *STATE_KEYS):
        if isinstance(checkpoint.get(key), Placeholder):
            raise ValueError(
                f"checkpoint: its {key!r} is {checkpoint[key]}, which could only be made by running its code; "
                "save the model's state_dict()"
            )
    mmengine = "message_hub" in checkpoint or "mmengine_version" in contents(checkpoint.get("meta"))
    keys = (*STATE_KEYS, *EMA_KEYS) if mmengine else (*EMA_KEYS, *STATE_KEYS)
    place = next((key for key in keys if isinstance(checkpoint.get(key), dict)), None)
    state: dict[str, Any] = checkpoint if place is None else checkpoint[place]
    state = {key: value for key, value in state.items() if key not in AVERAGING}
    if not state or not all(isinstance(key, str) for key in state):
        raise ValueError("checkpoint: it holds no state_dict (names with tensors)")
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint: it holds no state_dict (names with tensors), but {', '.join(list(state)[:5])}")
    if place is not None:
        logger.info("checkpoint: the weights of its %r were taken", place)
    return state


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
