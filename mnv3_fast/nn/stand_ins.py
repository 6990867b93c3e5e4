"""Subclasses of classes that cannot be imported, made when an object of them is met.

They have the original's name and module, so nothing could find them by these: an object is pickled and copied by the
original class and the mixin that stands in front of it.
"""

from __future__ import annotations

import types
from typing import Any

from mnv3_fast.models.description import STOCK, stock_class

_made: dict[tuple[type, type], type] = {}


class MadeStandIn:
    """Mixin in front of an original class; ``stand_in`` makes the subclass of both."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        cls = type(self)
        return _blank, (cls.__bases__[0], stock_class(cls)), super().__reduce_ex__(protocol)[2]


def stand_in(mixin: type, original: type) -> type:
    """The subclass of a mixin (a MadeStandIn) and an original class; always the same one for the same two."""
    cls = _made.get((mixin, original))
    if cls is None:
        names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
        cls = types.new_class(original.__name__, (mixin, original), {}, lambda space: space.update(names))
        cls = _made.setdefault((mixin, original), cls)
        STOCK[cls] = original
    return cls


def _blank(mixin: type, original: type) -> Any:
    cls = stand_in(mixin, original)
    return cls.__new__(cls)
