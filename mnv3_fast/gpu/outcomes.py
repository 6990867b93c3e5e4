"""What the first-use check found, kept in the user's cache directory: one JSON file for a device and all versions.

Where a file is not as it should be, it is ignored and the check runs again (keyed_file.py).
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mnv3_fast.gpu.keyed_file import Invalid, KeyedFile, fields

logger = logging.getLogger("mnv3_fast")

FILE = KeyedFile("first_use", "outcomes", most_bytes=1 << 16)
MOST_CHARACTERS = 1000
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


def sources_hash() -> str:
    """Of everything that decides what a kernel computes, and what it is checked on."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    files = [*package.glob("gpu/*.py"), *package.glob("ops/*/triton_kernel.py"), *package.glob("ops/*/cuda_*.py")]
    for path in sorted(files):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def path_of(folder: Path, key: Mapping[str, str]) -> Path:
    """The file of a key."""
    return FILE.path_of(folder, key)


def read(path: Path, key: Mapping[str, str], kernels: tuple[str, ...], dtypes: tuple[str, ...]) -> list[Outcome]:
    """The outcomes in a file; none if there is no file, it belongs to another key (logged at DEBUG) or is corrupt.

    A corrupt file, and one that cannot be read, is a warning.
    """

    def parse(items: list[Any]) -> list[Outcome]:
        found = [_outcome(item, kernels, dtypes) for item in items]
        if len({(outcome.kernel, outcome.dtype) for outcome in found}) < len(found):
            raise Invalid("a kernel has two outcomes")
        return found

    return FILE.read(path, key, parse)


def write(path: Path, key: Mapping[str, str], outcomes: list[Outcome]) -> bool:
    """Replace a file as a whole; returns whether it could be written, and warns if not."""
    try:
        FILE.write(path, key, [asdict(outcome) for outcome in outcomes])
        return True
    except OSError as error:
        logger.warning(
            "%s cannot be written, so the kernels are checked again in each process: %s", path, error.strerror or error
        )
        return False


def _outcome(item: Any, kernels: tuple[str, ...], dtypes: tuple[str, ...]) -> Outcome:
    fields(item, OUTCOME_FIELDS, "an outcome")
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


def one_line(error: BaseException) -> str:
    """An exception as a reason: its type and message on one printable line."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return "".join(c if c.isprintable() else "?" for c in words)[:MOST_CHARACTERS]


def name_of(dtype: torch.dtype) -> str:
    """ "float16" of torch.float16."""
    return str(dtype).removeprefix("torch.")
