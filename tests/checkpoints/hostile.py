"""Pickles that do something when they are unpickled: each makes a folder, the trace.

The bytes of each are made by hand or by pickle itself. ``poke`` and the classes are what a pickle may name here, as it
may name anything that can be imported.
"""

from __future__ import annotations

import builtins
import collections
import copyreg
import functools
import importlib
import io
import operator
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def poke(path: str | None = None) -> None:
    if path is not None:
        os.mkdir(path)


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced

    def __call__(self) -> None:
        raise AssertionError("pickle wants it to look like a function")


class SetsState:
    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def __getstate__(self) -> Any:
        return {"path": self.path}

    def __setstate__(self, state: Any) -> None:
        os.mkdir(state["path"])


class Inits:
    def __init__(self, path: str) -> None:
        os.mkdir(path)

    def __reduce__(self) -> Any:
        return Inits, ("",)


class News:
    def __new__(cls, path: str) -> Any:
        if path:
            os.mkdir(path)
        return super().__new__(cls)


class Appends(list):
    def append(self, path: str) -> None:
        os.mkdir(path)

    def extend(self, paths: list[str]) -> None:
        os.mkdir(paths[0])


class SetsItems(dict):
    def __setitem__(self, key: str, path: str) -> None:
        os.mkdir(path)


class HashedKey:
    def __hash__(self) -> int:
        path = self.__dict__.get("path")
        if path and not os.path.exists(path):
            os.mkdir(path)
        return 1


class Meta(type):
    def __setattr__(cls, name: str, value: Any) -> None:
        os.mkdir(value)


class WithMeta(metaclass=Meta):
    pass


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(function: Any, called: str | None = None) -> bytes:
    return f"c{function.__module__}\n{called or function.__qualname__}\n".encode()


def dumped(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def import_hook(trace: Path) -> bytes:
    """A module whose import is enough."""
    (trace.parent / f"module_{trace.name}.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass A: pass\n")
    return b"\x80\x02" + f"cmodule_{trace.name}\nA\n".encode() + b"."


def inner(trace: Path) -> bytes:
    return dumped(Call(os.mkdir, str(trace)))


def second_file(trace: Path) -> str:
    path = trace.parent / "second.pth"
    torch.save(Call(os.mkdir, str(trace)), path)
    return str(path)


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda trace: dumped(Call(os.system, f"mkdir '{trace}'")),
    "os.mkdir": inner,
    "eval": lambda trace: dumped(Call(builtins.eval, f"__import__('os').mkdir({str(trace)!r})")),
    "exec": lambda trace: dumped(Call(builtins.exec, f"import os; os.mkdir({str(trace)!r})")),
    "getattr": lambda trace: dumped(Call(Call(getattr, Call(importlib.import_module, "os"), "mkdir"), str(trace))),
    "subprocess": lambda trace: dumped(Call(subprocess.call, ["mkdir", str(trace)])),
    "partial": lambda trace: dumped(Call(functools.partial(os.mkdir, str(trace)))),
    "methodcaller": lambda trace: dumped(Call(operator.methodcaller("mkdir", str(trace)), os_of())),
    "pickle.loads": lambda trace: dumped(Call(pickle.loads, inner(trace))),
    "torch.load": lambda trace: dumped(Call(functools.partial(torch.load, weights_only=False), second_file(trace))),
    "an argument of OrderedDict": lambda trace: dumped(Call(collections.OrderedDict, [("a", Call(os.mkdir, str(trace)))])),
    "an argument of a tensor": lambda trace: dumped(Call(torch._utils._rebuild_parameter, torch.ones, Call(os.mkdir, str(trace)), 1)),
    "a tensor of a type": lambda trace: dumped(Call(torch._tensor._rebuild_from_type_v2, os.mkdir, str, (str(trace),), None)),
    "numpy's scalar of objects": lambda trace: dumped(Call(np.float64(1).__reduce__()[0], np.dtype("O"), Call(os.mkdir, str(trace)))),
    "numpy's array of a class": lambda trace: dumped(Call(np.ones(1).__reduce__()[0], Call(type, "A", (np.ndarray,), Call(eval, f"dict(a=__import__('os').mkdir({str(trace)!r}))")), (0,), b"b")),
    "numpy's array of objects": lambda trace: dumped(np.array([Call(os.mkdir, str(trace))], dtype=object)),
    "copyreg's new object": lambda trace: b"\x80\x02" + name(copyreg.__newobj__) + name(News) + text(str(trace)) + b"\x86R.",
    "copyreg's reconstructor": lambda trace: dumped(Call(copyreg._reconstructor, News, News, str(trace))),
    "NEWOBJ": lambda trace: b"\x80\x02" + name(News) + text(str(trace)) + b"\x85\x81.",
    "NEWOBJ_EX": lambda trace: b"\x80\x04" + name(News) + b")}" + text("path") + text(str(trace)) + b"s\x92.",
    "INST": lambda trace: b"(" + text(str(trace)) + b"ios\nmkdir\n.",
    "OBJ": lambda trace: b"(cos\nmkdir\n" + text(str(trace)) + b"o.",
    "STACK_GLOBAL": lambda trace: b"\x80\x04" + text("os") + text("mkdir") + b"\x93" + text(str(trace)) + b"\x85R.",
    "__setstate__": lambda trace: dumped(SetsState(str(trace))),
    "__init__": lambda trace: b"\x80\x02" + name(Inits) + text(str(trace)) + b"\x85R.",
    "append": lambda trace: b"\x80\x02" + name(Appends) + b")R" + text(str(trace)) + b"a.",
    "__setitem__": lambda trace: b"\x80\x02" + name(SetsItems) + b")R" + text("a") + text(str(trace)) + b"s.",
    "__hash__": lambda trace: b"\x80\x02}" + name(HashedKey) + b")\x81}" + text("path") + text(str(trace)) + b"sbNs.",
    "BUILD of a function": lambda trace: b"\x80\x02" + name(poke) + b"N}" + text("__defaults__") + text(str(trace)) + b"\x85s\x86b)R.",
    "BUILD of a class": lambda trace: b"\x80\x02" + name(WithMeta) + b"N}" + text("a") + text(str(trace)) + b"s\x86b.",
    "an import": import_hook,
}  # fmt: skip


def os_of() -> Any:
    return Call(importlib.import_module, "os")


def zip_of(pickled: bytes, path: Path, entries: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> None:  # fmt: skip
    """A zip archive as torch.save writes it, with this pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        for key, data in (entries or {}).items():
            archive.writestr(f"archive/{key}", data)
        archive.writestr("archive/version", b"3\n")


def legacy_of(pickled: bytes, path: Path, storages: bytes = b"\x80\x02].") -> None:
    """A file as torch.save wrote it before 1.6."""
    head = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
        pickle.dump(value, head, protocol=2)
    path.write_bytes(head.getvalue() + pickled + storages)


def beside_weights(pickled: bytes) -> bytes:
    """A checkpoint in which the pickle stands beside a state_dict that is empty."""
    body = pickled[2:] if pickled.startswith(b"\x80") else pickled
    return b"\x80\x02}(" + text("state_dict") + b"}" + text("meta") + body.removesuffix(b".") + b"u."
