"""Checkpoints from URLs: downloaded once, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

import torch

from mnv3_fast.whole_files import replacing


def local_path(source: str | os.PathLike[str]) -> Path:
    """The file of a path or URL; one of http(s) is downloaded once, into torch's hub folder.

    Raises:
        OSError: if it cannot be downloaded, or not all of it.
        ValueError: for a URL of another kind.
    """
    return _download(source) if isinstance(source, str) and _is_url(source) else Path(source)


def _is_url(source: str) -> bool:
    if "://" not in source:
        return source.startswith("file:")
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
    request = Request(url, headers={"User-Agent": "mnv3_fast"})
    with replacing(path) as beside:
        with beside.open("wb") as file, urlopen(request) as response:
            shutil.copyfileobj(response, file)
            wanted, came = response.headers.get("Content-Length"), file.tell()
        if wanted is not None and came != int(wanted):
            raise OSError(f"{came} of {wanted} bytes came")
        beside.chmod(0o644)
