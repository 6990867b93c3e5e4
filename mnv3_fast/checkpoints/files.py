"""Checkpoint files: torch's (with ``weights_only``) and safetensors; from a path or a URL."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import pickle
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

import torch
from safetensors.torch import load_file
from torch import Tensor

logger = logging.getLogger("mnv3_fast")

EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict")
STATE_KEYS = ("state_dict", "model")
"""Where whole-checkpoint files keep averaged weights and the others, in the order in which they are tried."""
AVERAGING = ("n_averaged", "steps")
"""What torch's and mmengine's averaged models keep beside the weights."""


def read_checkpoint(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint on the CPU; only tensors and plain containers are accepted, nothing is executed.

    Args:
        source: a path (``.safetensors`` or a file of ``torch.save``), or a http(s) or file URL, which is downloaded
            once into torch's hub folder.

    Returns:
        The file's dictionary.

    Raises:
        TypeError: if the source is no path and no URL.
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be downloaded, or not all of it.
        ValueError: if the file is no checkpoint, is truncated, or holds what would have to be executed; for a URL of
            another kind.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"checkpoint: expected a path or a URL, got {type(source).__name__}")
    path = _download(source) if _is_url(source) else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint: {path} is no checkpoint, or holds more than tensors, numbers, text and plain containers; "
            "nothing in it was executed"
        ) from error
    except Exception as error:  # a damaged or made-up pickle can raise anything
        raise ValueError(f"checkpoint: {path} is no checkpoint, or is damaged: {_first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"checkpoint: {path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    return loaded


def state_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state_dict of a checkpoint's dictionary: its averaged weights (EMA) where it has some, else the others.

    mmengine writes the average into ``state_dict`` and what was trained into ``ema_state_dict``, so of its files
    ``state_dict`` is taken.

    Raises:
        ValueError: if there is none.
    """
    keys = (*STATE_KEYS, *EMA_KEYS) if "message_hub" in checkpoint else (*EMA_KEYS, *STATE_KEYS)
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


def classes_of(checkpoint: dict[str, Any], count: int) -> tuple[str, ...] | None:
    """The names of the classes that mmpretrain keeps in a checkpoint's meta, if they are as many as the model has."""
    meta = checkpoint.get("meta")
    if not isinstance(meta, dict):
        return None
    dataset = meta.get("dataset_meta")
    names = meta.get("CLASSES")
    if not isinstance(names, (list, tuple)) and isinstance(dataset, dict):
        names = dataset.get("classes")
    return tuple(str(name) for name in names) if isinstance(names, (list, tuple)) and len(names) == count else None


def _is_url(source: str | os.PathLike[str]) -> bool:
    if not isinstance(source, str) or "://" not in source:
        return isinstance(source, str) and source.startswith("file:")
    scheme = urlparse(source).scheme
    if scheme not in ("http", "https", "file"):
        raise ValueError(f"checkpoint: {source} is no http, https or file URL")
    return True


def _download(url: str) -> Path:
    parts = urlparse(url)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = Path(parts.path).name
    if not re.search(r"-[0-9a-f]{8,}\.", name):  # without a hash in its name, two URLs may mean two files
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    path = folder / name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(url, path)
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"checkpoint: {url} could not be downloaded: {error}") from error
    return path


def _fetch(url: str, path: Path) -> None:
    """All of a URL's file or none of it; torch's download keeps what came before a connection was lost."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".mnv3-fast-")
    try:
        with os.fdopen(handle, "wb") as file, urlopen(Request(url, headers={"User-Agent": "mnv3_fast"})) as response:
            shutil.copyfileobj(response, file)
            wanted, came = response.headers.get("Content-Length"), file.tell()
        if wanted is not None and came != int(wanted):
            raise OSError(f"{came} of {wanted} bytes came")
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
