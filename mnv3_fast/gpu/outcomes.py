"""What the first-use check found, kept in the user's cache directory: one JSON file for a device and all versions.

A file is data: every field is validated, one that is not as it should be is ignored, and the check runs again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mnv3_fast.whole_files import replacing

logger = logging.getLogger("mnv3_fast")

FORMAT = 1
MOST_BYTES = 1 << 16
MOST_CHARACTERS = 1000
KEY_FIELDS = ("device", "capability", "torch", "triton", "mnv3_fast", "sources")
OUTCOME_FIELDS = ("kernel", "dtype", "passed", "error", "limit", "reason")


@dataclass(frozen=True)
class Outcome:
    """What came of one kernel in one dtype on one device.

    Attributes:
        passed: whether it may be used.
        error, limit: of the comparison that was nearest to its limit, or furthest above it; None where there was none.
        reason: why it may not be used; None if it passed.
    """

    kernel: str
    dtype: str
    passed: bool
    error: float | None = None
    limit: float | None = None
    reason: str | None = None


class Invalid(ValueError):
    """A file that is not as it should be."""


def cache_folder() -> Path | None:
    """``$XDG_CACHE_HOME/mnv3_fast`` or ``~/.cache/mnv3_fast``; None if the user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the specification has others ignored
        return Path(given) / "mnv3_fast"
    try:
        return Path.home() / ".cache" / "mnv3_fast"
    except RuntimeError:
        return None


def sources_hash() -> str:
    """Of everything that decides what a kernel computes, and what it is checked on."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted([*package.glob("gpu/*.py"), *package.glob("ops/*/triton_kernel.py")]):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def path_of(folder: Path, key: Mapping[str, str]) -> Path:
    """The file of a key."""
    return folder / f"first_use-{hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:16]}.json"


def read(path: Path, key: Mapping[str, str], kernels: tuple[str, ...], dtypes: tuple[str, ...]) -> list[Outcome]:
    """The outcomes in a file; none if there is no file, it belongs to another key (logged at DEBUG) or is corrupt.

    A corrupt file, and one that cannot be read, is a warning.
    """
    try:
        if not path.is_file():
            return []
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise Invalid(f"it has more than {MOST_BYTES} bytes")
        return _parse(content, key, kernels, dtypes, path)
    except OSError as error:
        logger.warning("%s is ignored: it cannot be read: %s", path, error.strerror or error)
    except (ValueError, RecursionError) as error:
        logger.warning("%s is ignored: %s", path, error if isinstance(error, Invalid) else "it is no JSON")
    return []


def write(path: Path, key: Mapping[str, str], outcomes: list[Outcome]) -> bool:
    """Replace a file as a whole; returns whether it could be written, and warns if not."""
    value = {"format": FORMAT, "key": dict(key), "outcomes": [asdict(outcome) for outcome in outcomes]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False)
        return True
    except OSError as error:
        logger.warning(
            "%s cannot be written, so the kernels are checked again in each process: %s", path, error.strerror or error
        )
        return False


def _parse(content: bytes, key: Mapping[str, str], kernels: tuple[str, ...], dtypes: Any, path: Path) -> list[Outcome]:
    value = json.loads(content.decode("utf-8"))
    _fields(value, ("format", "key", "outcomes"), "the file")
    if type(value["format"]) is not int:
        raise Invalid("format is no number")
    if value["format"] != FORMAT:
        logger.debug("%s is ignored: its format is %d, not %d", path, value["format"], FORMAT)
        return []
    _fields(value["key"], KEY_FIELDS, "key")
    if any(type(item) is not str for item in value["key"].values()):
        raise Invalid("key has a value that is no string")
    if value["key"] != dict(key):
        logger.debug("%s is ignored: it is of another device or version", path)
        return []
    if type(value["outcomes"]) is not list:
        raise Invalid("outcomes is no list")
    found = [_outcome(item, kernels, dtypes) for item in value["outcomes"]]
    if len({(outcome.kernel, outcome.dtype) for outcome in found}) < len(found):
        raise Invalid("a kernel has two outcomes")
    return found


def _outcome(item: Any, kernels: tuple[str, ...], dtypes: tuple[str, ...]) -> Outcome:
    _fields(item, OUTCOME_FIELDS, "an outcome")
    kernel, dtype, passed, error, limit, reason = (item[name] for name in OUTCOME_FIELDS)
    if kernel not in kernels or dtype not in dtypes:
        raise Invalid("an outcome is of no kernel or dtype that exists")
    if type(passed) is not bool:
        raise Invalid("passed is neither true nor false")
    for number in (error, limit):
        if number is not None and (type(number) not in (int, float) or not 0 <= number <= sys.float_info.max):
            raise Invalid("error and limit must be numbers that are not negative, or null")
    if passed and (error is None or limit is None or error > limit or reason is not None):
        raise Invalid("an outcome that passed has an error above its limit, or a reason")
    if not passed and not (type(reason) is str and 0 < len(reason) <= MOST_CHARACTERS and reason.isprintable()):
        raise Invalid("an outcome that did not pass has no reason")
    return Outcome(kernel, dtype, passed, error, limit, reason)


def _fields(value: Any, names: tuple[str, ...], what: str) -> None:
    if type(value) is not dict or set(value) != set(names):
        raise Invalid(f"{what} must have the fields {', '.join(names)}")


def one_line(error: BaseException) -> str:
    """An exception as a reason: its type and message on one printable line."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return "".join(c if c.isprintable() else "?" for c in words)[:MOST_CHARACTERS]


def name_of(dtype: torch.dtype) -> str:
    """ "float16" of torch.float16."""
    return str(dtype).removeprefix("torch.")
