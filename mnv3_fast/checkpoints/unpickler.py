"""Reads pickles without executing anything in them.

A pickle is a program for a stack machine that may call any function it names. This machine knows the instructions that
build plain values, never imports or calls what a pickle names, and gives values of its own for the few names that
checkpoints need (makers.py). Every other name is an inert :class:`Placeholder`. ``pickletools`` takes the instructions
apart, which executes nothing either.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mnv3_fast.checkpoints.makers import MAKERS, plain_key
from mnv3_fast.checkpoints.values import STORAGES, Name, Pending, Placeholder, Refused

MOST_OPCODES = 4_000_000
"""A checkpoint has some ten thousand; an opcode of one byte may take 200 bytes of memory."""
MOST_COPIED = 1 << 28
"""Bytes that a pickle may have copied, again and again, from what it memoized."""


class Unpickler:
    """The machine.

    Args:
        storage: gives the storage (a flat tensor) of a dtype, key, number of elements and view.
    """

    def __init__(self, storage: Callable[[torch.dtype, str, int, Any], Tensor] | None = None) -> None:
        self.unknown: set[str] = set()
        self._storage = storage
        self._copied = 0

    def load(self, file: BinaryIO) -> Any:
        """The value of the pickle at the file's position, and leave the position behind it.

        Raises:
            Refused, or whatever a damaged pickle provokes.
        """
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST_OPCODES:
                raise Refused(f"it has more than {MOST_OPCODES} instructions")
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _LITERALS:
                self._stack.append(argument)
            elif opcode.name in _MACHINE:
                _MACHINE[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise Refused(f"it has the instruction {opcode.name}, which no checkpoint needs")
        raise Refused("it ends early")

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _mark(self, _: None) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _new(self, kind: type) -> None:
        self._stack.append(kind())

    def _tuple(self, count: int | None) -> None:
        if count is None:
            items = self._marked()
            self._stack.append(tuple(items))
        else:
            items = [self._stack.pop() for _ in range(count)]
            self._stack.append(tuple(reversed(items)))

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Placeholder):
            target = target.elements
        if type(target) is not list:
            raise Refused(f"it appends to {_kind(target)}")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Placeholder):
            target = target.entries
        if type(target) not in (dict, OrderedDict):
            raise Refused(f"it sets items of {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    def _add(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not set:
            raise Refused(f"it adds members to {_kind(target)}")
        target.update(plain_key(item) for item in items)

    def _put(self, index: int | None) -> None:
        index = len(self._memo) if index is None else index
        self._memo[index] = self._stack[-1]
        if isinstance(self._stack[-1], Pending):
            self._stack[-1].places.append(index)

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _name(self, argument: str | None) -> None:
        if argument is None:
            name, module = self._stack.pop(), self._stack.pop()
            if type(name) is not str or type(module) is not str:
                raise Refused("it names something by what is no text")
        else:
            module, _, name = argument.partition(" ")
        self._stack.append(Name(f"{module}.{name}"))

    def _persistent(self, _: None) -> None:
        match self._stack.pop():
            case ("storage" | b"storage", Name(kind), key, _, int(numel), *view) if self._storage is not None:
                name = kind.rpartition(".")[2].removesuffix("Storage")
                if name in STORAGES:
                    self._stack.append(self._storage(STORAGES[name], str(key), numel, view[0] if view else None))
                else:
                    self._stack.append(self._placeholder(kind, ()))
            case _:
                raise Refused("it refers to something outside of the file that is no storage of a tensor")

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise Refused(f"it calls {_kind(function)}")
        maker = MAKERS.get(function.full)
        made = self._placeholder(function.full, arguments) if maker is None else maker(self, *arguments)
        self._stack.append(made)

    def _new_object_with_keywords(self, _: None) -> None:
        self._stack.pop()
        self._reduce(None)

    def _placeholder(self, name: str, arguments: tuple[Any, ...]) -> Placeholder:
        self.unknown.add(name)
        return Placeholder(name, arguments)

    def _build(self, _: None) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Placeholder):
            target.state = state
        elif isinstance(target, Pending):
            self._stack[-1] = target.built(state)
            for place in target.places:
                self._memo[place] = self._stack[-1]
        elif type(target) is OrderedDict and type(state) is dict and set(state) <= {"_metadata"}:
            target.__dict__.update(state)  # a state_dict's versions of modules
        else:
            raise Refused(f"it sets the state of {_kind(target)}")

    def copied(self, size: int) -> None:
        """Counts what is copied."""
        self._copied += size
        if self._copied > MOST_COPIED:
            raise Refused("it blows up far beyond its size")


def _kind(value: Any) -> str:
    return f"the name {value.full}" if isinstance(value, Name) else f"a {type(value).__name__}"


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = (
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING",
)  # fmt: skip
_MACHINE: dict[str, Callable[[Unpickler, Any], None]] = {
    "MARK": Unpickler._mark,
    "EMPTY_LIST": lambda machine, _: machine._new(list),
    "EMPTY_DICT": lambda machine, _: machine._new(dict),
    "EMPTY_SET": lambda machine, _: machine._new(set),
    "TUPLE": lambda machine, _: machine._tuple(None),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "APPEND": lambda machine, _: machine._extend([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._marked()),
    "SETITEM": lambda machine, _: machine._update([machine._stack.pop(), machine._stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine._update(machine._marked()),
    "ADDITEMS": lambda machine, _: machine._add(machine._marked()),
    "MEMOIZE": Unpickler._put,
    "BINPUT": Unpickler._put,
    "LONG_BINPUT": Unpickler._put,
    "BINGET": Unpickler._get,
    "LONG_BINGET": Unpickler._get,
    "GLOBAL": Unpickler._name,
    "STACK_GLOBAL": Unpickler._name,
    "BINPERSID": Unpickler._persistent,
    "REDUCE": Unpickler._reduce,
    "NEWOBJ": Unpickler._reduce,
    "NEWOBJ_EX": Unpickler._new_object_with_keywords,
    "BUILD": Unpickler._build,
}
