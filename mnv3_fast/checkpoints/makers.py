"""The names in a pickle that stand for something: the whole list of them. Every other is an inert placeholder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from mnv3_fast.checkpoints.values import (
    DTYPES,
    Name,
    Pending,
    Placeholder,
    Refused,
    numpy_dtype,
    numpy_scalar,
    strided,
)

ENTRY_BYTES = 128
"""Of an entry of a dictionary, about."""
_PLAIN = (str, int, float, bool, bytes, type(None), Name, Placeholder)


class Machine(Protocol):
    """What is asked of the machine that runs the pickle."""

    def copied(self, size: int) -> None:
        """Counts what is copied, and refuses a pickle that blows up."""


def plain_key(key: Any) -> Any:
    """A key of a dictionary. Nested tuples are none: Python's own hash of deeply nested ones ends the process."""
    if type(key) not in _PLAIN and not (type(key) is tuple and all(type(item) in _PLAIN for item in key)):
        raise Refused(f"it has a {type(key).__name__} as a key")
    return key


def _ordered_dict(machine: Machine, pairs: Any = (), *_: Any) -> OrderedDict[Any, Any]:
    """Of a state_dict; Python 2 gives the pairs."""
    _counted(machine, pairs)
    return OrderedDict((plain_key(key), value) for key, value in pairs)


def _set(machine: Machine, items: Any = ()) -> set[Any]:
    _counted(machine, items)
    return {plain_key(item) for item in items}


def _counted(machine: Machine, items: Any) -> None:
    if type(items) not in (list, tuple):
        raise Refused(f"it makes a container of a {type(items).__name__}")
    machine.copied(ENTRY_BYTES * len(items))


def _encode(machine: Machine, text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("it encodes what is no text")
    machine.copied(len(text))
    return text.encode("latin1")


def _tensor(_: Machine, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    return strided(storage, offset, size, stride)


def _tensor_of_dtype(
    _: Machine, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> Any:
    if type(dtype) is not Name or dtype.full not in DTYPES:
        return Placeholder("torch.Tensor")
    return strided(storage, offset, size, stride, DTYPES[dtype.full])


def _of_type(machine: Machine, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, or of a subclass."""
    if type(function) is not Name or function.full not in TENSORS or type(arguments) is not tuple:
        return Placeholder("torch.Tensor")
    return TENSORS[function.full](machine, *arguments)


def _first(_: Machine, value: Any = (), *rest: Any) -> Any:
    return value


TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
}
MAKERS: dict[str, Callable[..., Any]] = TENSORS | {
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": _first,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _first,
    "collections.defaultdict": lambda machine, *_: {},
    "builtins.set": _set,
    "__builtin__.set": _set,
    "_codecs.encode": _encode,
    "numpy.dtype": lambda machine, code, *_: numpy_dtype(code),
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    MAKERS |= {
        f"{_module}._reconstruct": lambda machine, *_: Pending(),
        f"{_module}.scalar": lambda machine, dtype, data=None, *_: numpy_scalar(dtype, data),
    }
