"""JSON files in the user's cache directory, one for each key: device, versions and text of the kernels.

A file is data: every field is validated by whoever asks for it, one that is not as it should be is ignored with a
warning, and a new one takes its place as a whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mnv3_fast.whole_files import replacing

logger = logging.getLogger("mnv3_fast")

FORMAT = 1
KEY_FIELDS = ("device", "capability", "torch", "triton", "mnv3_fast", "sources", "library")
Content = TypeVar("Content")


class Invalid(ValueError):
    """A file that is not as it should be; the message says why."""


class Foreign(Invalid):
    """A file of another key or format."""


def cache_folder() -> Path | None:
    """``$XDG_CACHE_HOME/mnv3_fast`` or ``~/.cache/mnv3_fast``; None if the user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the specification has others ignored
        return Path(given) / "mnv3_fast"
    try:
        return Path.home() / ".cache" / "mnv3_fast"
    except RuntimeError:
        return None


def is_lasting(key: Mapping[str, str]) -> bool:
    """Whether anything can be kept for a key: not by an installation without Triton, or without sources."""
    return bool(key["triton"]) and bool(key["sources"])


def fields(value: Any, names: tuple[str, ...], what: str) -> None:
    """Raises Invalid unless ``value`` is an object with just these fields."""
    if type(value) is not dict or set(value) != set(names):
        raise Invalid(f"{what} must have the fields {', '.join(names)}")


@dataclass(frozen=True)
class KeyedFile:
    """A kind of file.

    Attributes:
        name: how the names of the files begin.
        items: the field that has what they keep, a list.
        most_bytes: what a file may have.
        foreign: level of the message where a file of another key or format lies under the name of the one asked for.
    """

    name: str
    items: str
    most_bytes: int
    foreign: int = logging.DEBUG

    def path_of(self, folder: Path, key: Mapping[str, str]) -> Path:
        """The file of a key."""
        digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        return folder / f"{self.name}-{digest[:16]}.json"

    def read(self, path: Path, key: Mapping[str, str], parse: Callable[[list[Any]], list[Content]]) -> list[Content]:
        """As :meth:`load`; what cannot be used is a message, and nothing is kept of it."""
        try:
            return self.load(path, key, parse)
        except Invalid as error:
            level = self.foreign if isinstance(error, Foreign) else logging.WARNING
            logger.log(level, "%s is ignored: %s", path, error)
        return []

    def load(self, path: Path, key: Mapping[str, str], parse: Callable[[list[Any]], list[Content]]) -> list[Content]:
        """What a file keeps; nothing if there is no file.

        Args:
            path: of the file.
            key: what it must be of.
            parse: makes the contents of the list in it; raises Invalid where it is not as it should be.

        Raises:
            Foreign: if it belongs to another key or format.
            Invalid: if it is corrupt, or cannot be read.
        """
        try:
            if not path.exists():
                return []
            if not path.is_file():
                raise Invalid("it is no file")
            with path.open("rb") as file:
                content = file.read(self.most_bytes + 1)
            if len(content) > self.most_bytes:
                raise Invalid(f"it has more than {self.most_bytes} bytes")
            value = json.loads(content.decode("utf-8"))
        except OSError as error:
            raise Invalid(f"it cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise error if isinstance(error, Invalid) else Invalid("it is no JSON") from error
        return parse(self._items(value, key))

    def write(self, path: Path, key: Mapping[str, str], items: list[dict[str, Any]]) -> None:
        """Replace a file as a whole, making its folder.

        Raises:
            OSError: if it cannot be written.
        """
        value = {"format": FORMAT, "key": dict(key), self.items: items}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False)

    def _items(self, value: Any, key: Mapping[str, str]) -> list[Any]:
        fields(value, ("format", "key", self.items), "the file")
        if type(value["format"]) is not int:
            raise Invalid("format is no number")
        if value["format"] != FORMAT:
            raise Foreign(f"its format is {value['format']}, not {FORMAT}")
        fields(value["key"], tuple(key), "key")
        if any(type(item) is not str for item in value["key"].values()):
            raise Invalid("key has a value that is no string")
        if value["key"] != dict(key):
            raise Foreign("it is of another device or version")
        if type(value[self.items]) is not list:
            raise Invalid(f"{self.items} is no list")
        return value[self.items]
